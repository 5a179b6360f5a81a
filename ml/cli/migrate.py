"""`tips migrate`: migrate the database."""

from ml.cli.stores import database_url, needs_recommender_extra, reaction_window


def migrate() -> None:
    """Migrate the database of DATABASE_URL to the newest schema."""
    with needs_recommender_extra():
        from ml.store.database import migrate_database
        from ml.store.recount import prepare_database
    migrate_database(database_url())
    prepare_database(database_url(), reaction_window())
