"""`tips features`: compute the users' aggregates, and write them to the online store."""

from datetime import datetime, timedelta
from typing import Annotated

import typer

from ml.cli.engines import spark_engine
from ml.cli.progress import working
from ml.cli.stores import (
    database_name,
    database_url,
    exposure_reported,
    open_offline_store,
    reaction_window,
    using_offline_store,
)
from ml.features import online_store
from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def features() -> None:
    """Compute the users' aggregates, which policies use, and write them to the online store."""


@app.command()
def materialize(
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="As of the end of this day (UTC); default: yesterday.")
    ] = None,
) -> None:
    """Export changed days, and write the aggregates of all users to ONLINE_STORE_URL; run it every night (UTC)."""
    yesterday = utc_now().date() - timedelta(days=1)
    last = day.date() if day else yesterday
    if last > yesterday:
        raise typer.BadParameter(f"{last} has not ended", param_hint="--day")
    url = _online_store_url("sqlite:///features.db")
    database, offline = database_name(), open_offline_store()
    with using_offline_store():
        from ml.features.offline_store import day_of_date, start_of_day
        from ml.pipelines.aggregates import CountedTips, snapshot, write_snapshots
        from ml.pipelines.export import export_days
        from ml.pipelines.offline_lease import hold_offline_store

        number, counted = day_of_date(last), CountedTips(reaction_window(), exposure_reported())
        with hold_offline_store(database_url(), offline) as held:

            def keep_lease() -> None:
                if held.is_due:
                    held.renew()

            with working("Exporting days") as show:
                export_days(database_url(), offline, held, show)
            with working("Computing users' aggregates"), spark_engine() as spark:
                write_snapshots(offline, counted, [number], step=keep_lease, engine=spark)
            held.renew()
            offline.commit()
        at = start_of_day(number + 1)
        try:
            users = online_store.replace_all(url, snapshot(offline, number), at)
        except online_store.OnlineStoreUnavailable as error:
            raise ConfigurationError(f"ONLINE_STORE_URL: {error}.") from None
    print(f"written: {users:,} users of {database} to {online_store.store_name(url)}, as of {at:%Y-%m-%d %H:%M} UTC")


@app.command(name="apply")
def apply_definitions() -> None:
    """Register the aggregates in Feast, whose registry and settings are in the folder `feast` of OFFLINE_STORE."""
    url, offline = _online_store_url("redis://localhost:6379/0"), open_offline_store()
    try:
        from ml.features import feast  # takes seconds to import, and is an extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is missing: this needs the `feast` extra.") from None
    try:
        with using_offline_store():
            changes = feast.apply_definitions(offline, url)
    except feast.FeastUnavailable as error:
        raise ConfigurationError(f"{error}.") from None
    print("\n".join(changes) if changes else "Nothing has changed.")


def _online_store_url(example: str) -> str:
    url = ServingSettings.from_environment().online_store_url
    if not url:
        raise ConfigurationError(f"ONLINE_STORE_URL: must name the store, such as {example}.")
    return url
