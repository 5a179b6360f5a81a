"""`tips nightly`: features, training, evaluation and the proposal of a rollout, from the tips of a day."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ml.cli.engines import spark_engine
from ml.cli.options import check_figure_file
from ml.cli.progress import working
from ml.cli.stores import database_name, database_url, open_offline_store, recommender_settings, using_offline_store
from ml.features.online_store import OnlineStoreUnavailable
from ml.pipelines.settings import PipelineSettings
from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings

if TYPE_CHECKING:
    from ml.pipelines.nightly_job import NightlyJob

PLOTTED_NIGHTS = 30


def nightly(
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day (UTC); default: yesterday.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="STEP", help="Run one step only, and print the URI of its output.")
    ] = None,
    uri: Annotated[str, typer.Option(metavar="URI", help="The output of the step before, with --step.")] = "",
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=check_figure_file,
            help=f"Draw the gain of the policies of the last {PLOTTED_NIGHTS} nights to this file (.svg or .png).",
        ),
    ] = None,
) -> None:
    """Train, evaluate and propose a ranking policy; run it every night. It goes on where it was killed."""
    yesterday = utc_now().date() - timedelta(days=1)
    date = day.date() if day else yesterday
    if date > yesterday:
        raise typer.BadParameter(f"{date} has not ended", param_hint="--day")
    with _errors_of_steps():
        from ml.features.offline_store import day_of_date
        from ml.pipelines.nightly import STEPS

        number = day_of_date(date)
        if step not in {None, *STEPS}:
            raise typer.BadParameter(f"{step!r} should be one of {', '.join(STEPS)}", param_hint="--step")
        with nightly_job() as job:
            if step is None:
                _run_all(job, number, plot)
            else:
                print(STEPS[step](job, number, uri))


@contextmanager
def nightly_job() -> "Iterator[NightlyJob]":
    """Yield the job that the environment describes, with Spark if SPARK_MASTER is set. Raises ConfigurationError."""
    database_name()
    serving, recommender = ServingSettings.from_environment(), recommender_settings()
    with using_offline_store(), spark_engine() as spark:
        from ml.pipelines.aggregates import CountedTips
        from ml.pipelines.nightly_job import NightlyJob

        yield NightlyJob(
            database_url=database_url(),
            offline=open_offline_store(),
            counted=CountedTips(recommender.reaction_window, recommender.exposure_reported),
            policy_name=PipelineSettings.from_environment().nightly_policy_name,
            tracking_uri=serving.mlflow_tracking_uri,
            release=version("tip-service"),
            clock=utc_now,
            online_store_url=serving.online_store_url,
            contact=serving.card_contact,
            processes=os.cpu_count() or 1,
            aggregate_engine=spark,
            store_statistics=spark.store_statistics if spark else None,
        )


def _run_all(job: "NightlyJob", day: int, plot: Path | None) -> None:
    from ml.features.offline_store import date_of_day
    from ml.pipelines import plots
    from ml.pipelines.nightly import STEPS, run_steps
    from ml.pipelines.nightly_files import figures_of_nights

    table = Table("step", "seconds", "output")
    steps, started = run_steps(job, day), time.monotonic()
    for name in STEPS:
        with working(f"{date_of_day(day)}: {name}"):
            _, output = next(steps)
        table.add_row(name, f"{time.monotonic() - started:.1f}", output or "-")
        started = time.monotonic()
    Console().print(table)
    if plot:
        nights = dict(figures_of_nights(job.offline, "evaluation.json", range(day + 1 - PLOTTED_NIGHTS, day + 1)))
        try:
            plots.draw_nights({date_of_day(night): figures["held_out"] for night, figures in nights.items()}, plot)
        except OSError:
            raise ConfigurationError(f"{plot} cannot be written.") from None


@contextmanager
def _errors_of_steps() -> Iterator[None]:
    """End with one sentence if a step cannot be run; without tips to learn from, successfully."""
    with using_offline_store():
        from ml.pipelines.nightly_job import NothingToLearn

        try:
            yield
        except NothingToLearn as error:
            print(error, file=sys.stderr)  # standard output is for the URI of an output
            sys.exit(0)
        except OnlineStoreUnavailable as error:
            raise ConfigurationError(f"ONLINE_STORE_URL: {error}.") from None
