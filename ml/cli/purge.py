"""`tips purge`: delete old tips."""

from datetime import timedelta
from typing import Annotated

import typer

from ml.cli.options import parse_age
from ml.cli.stores import database_name, with_tip_store
from ml.platform.clock import utc_now


def purge(
    older_than: Annotated[
        timedelta, typer.Option(parser=parse_age, metavar="AGE", help="In days or hours, such as 90d or 36h.")
    ],
) -> None:
    """Delete the tips of all full hours that are older than an age, with their reactions and counts."""
    tips = with_tip_store(lambda store: store.purge(utc_now() - older_than))
    print(f"removed: {tips:,} tips from {database_name()}")
