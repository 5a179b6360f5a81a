"""Keep the database in order, and remove people's data."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ml.cli.stores import age, in_store, recommender_extra
from ml.features import online_store
from ml.platform.settings import ConfigurationError
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings

app = typer.Typer()


@app.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL up to the newest schema."""
    with recommender_extra():
        from ml.store.database import migrate_database as upgrade
    upgrade(RecommenderSettings.from_environment().database_url.get_secret_value())


@app.command()
def purge(
    older_than: Annotated[
        timedelta, typer.Option(parser=age, metavar="AGE", help="In days or hours, such as 90d or 36h.")
    ],
) -> None:
    """Remove the tips older than that, with the reactions to them and what was counted of both."""
    print(f"removed: {in_store(lambda store: store.purge(datetime.now(UTC) - older_than))} tips")


@app.command()
def forget(user: Annotated[str, typer.Argument(help="The user_id that the caller gave.")]) -> None:
    """Remove everything that is stored of one person, also in the store of ONLINE_STORE_URL."""
    tips = in_store(lambda store: store.forget(user))
    if url := ServingSettings.from_environment().online_store_url:
        try:
            online_store.forget(url, user)
        except online_store.NoStore as error:
            raise ConfigurationError(f"ONLINE_STORE_URL: the file {error}; {tips} tips are removed.") from None
    print(f"removed: {tips} tips")
