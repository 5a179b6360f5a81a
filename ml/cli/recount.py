"""`tips recount`: count all stored tips again."""

from ml.cli.progress import working
from ml.cli.stores import database_name, database_url, needs_recommender_extra, reaction_window


def recount() -> None:
    """Count all stored tips again, with the present REACTION_WINDOW_HOURS; stop all recommenders first."""
    with needs_recommender_extra():
        from ml.store.recount import recount_database
    database, window = database_name(), reaction_window()
    with working("Counting tips") as show:
        counted = recount_database(database_url(), window, show)
    hours = f"{window.total_seconds() / 3600:g}"
    print(
        f"counted: {counted.tips:,} tips and {counted.failures:,} failed generations of {database}, "
        f"with a reaction window of {hours} hours"
    )
    if counted.dropped_hours:
        print(
            f"removed: the draws of {counted.dropped_hours:,} purged hours, which were counted with another window; "
            "verdicts start anew after them"
        )
