"""`tips migrate`: migrate the database."""

from ml.cli.stores import needs_recommender_extra


def migrate() -> None:
    """Migrate the database of DATABASE_URL to the newest schema."""
    with needs_recommender_extra():
        from ml.recommender.settings import RecommenderSettings
        from ml.store.database import migrate_database
    migrate_database(RecommenderSettings.from_environment().database_url.get_secret_value())
