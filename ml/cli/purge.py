"""`tips purge`: delete old tips."""

from datetime import timedelta
from typing import Annotated

import typer

from ml.cli.options import parse_age
from ml.cli.stores import database_name, database_url, deleting_offline, existing_offline_store, with_tip_store
from ml.platform.clock import utc_now


def purge(
    older_than: Annotated[
        timedelta, typer.Option(parser=parse_age, metavar="AGE", help="In days or hours, such as 90d or 36h.")
    ],
) -> None:
    """Delete the tips of all full hours that are older than an age, with their reactions and counts."""
    database, offline, before = database_name(), existing_offline_store(), utc_now() - older_than
    tips = with_tip_store(lambda store: store.purge(before))
    print(f"removed: {tips:,} tips from {database}")
    if offline:
        with deleting_offline(database):
            from ml.pipelines import deletion  # the driver of the database is in an extra

            deletion.purge(database_url(), offline, before)
        print(f"removed: the same tips from {offline.url}")
