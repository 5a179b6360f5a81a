"""`tips export`: write the stored tips to the offline store."""

import sys
from typing import Annotated

import typer

from ml.cli.progress import working
from ml.cli.stores import database_name, database_url, open_offline_store, using_offline_store


def export(
    check: Annotated[
        bool, typer.Option("--check", help="Only compare the files with the digests of the manifest.")
    ] = False,
) -> None:
    """Write the tips, reactions and exposures of days that have changed to OFFLINE_STORE, as Parquet files."""
    if check:
        _check()
        return
    database = database_name()
    with using_offline_store():
        from ml.pipelines import export as pipeline  # the driver of the database is in an extra

        offline = open_offline_store()
        with working("Exporting days") as show:
            summary = pipeline.export(database_url(), offline, show=show)
    rows = summary.rows
    print(
        f"exported: {database} to {offline.url}: {summary.written:,} days written, {summary.unchanged:,} unchanged, "
        f"{summary.removed:,} removed; it has {rows['tip_scores']:,} tips, {rows['reactions']:,} reactions and "
        f"{rows['exposures']:,} exposures"
    )


def _check() -> None:
    offline = open_offline_store()
    with using_offline_store(), working("Reading files"):
        damaged = [*offline.damaged()]
    if damaged:
        files = "\n".join(f"{offline.url}/{path} is missing or damaged." for path in damaged)
        sys.exit(f"{files}\nDelete manifest.json there, and run `tips export`: it writes all files again.")
    print(f"checked: {sum(len(offline.days(table)) for table in offline.tables):,} files of {offline.url}")
