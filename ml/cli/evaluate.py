"""`tips evaluate`: off-policy evaluation."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from ml.cli.options import check_figure_file, parse_age
from ml.cli.progress import working
from ml.cli.stores import (
    database_name,
    decision_log,
    mature_period,
    needs_recommender_extra,
    reaction_window,
    recommender_settings,
    using_offline_store,
)
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings


def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            help="A value of TIP_PROMPT_POLICY, prompt versions as in TIP_PROMPT_VERSION, or a learned policy: a file "
            "or models:/NAME@ALIAS."
        ),
    ],
    since: Annotated[
        timedelta | None,
        typer.Option(parser=parse_age, metavar="AGE", help="Only decisions of the last days or hours, such as 30d."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(callback=check_figure_file, help="Draw the estimates to this file (.svg or .png).")
    ] = None,
) -> None:
    """Estimate from the logged decisions the mean reward that another policy would have earned."""
    with needs_recommender_extra():
        from ml.pipelines import evaluated_decisions, evaluation, plots, targets
    target = targets.parse_target(
        policy,
        reaction_window=reaction_window(),
        half_life_days=recommender_settings().thompson_half_life_days,
        tracking_uri=ServingSettings.from_environment().mlflow_tracking_uri,
    )
    database = database_name()
    log, (start, end) = decision_log(), mature_period(since=since)
    try:
        with working("Evaluating"), using_offline_store():
            report = evaluation.evaluate(log, target, since=start, before=end)
    except evaluated_decisions.NothingToEvaluate as error:
        sys.exit(f"{error} The log is in {database}.")
    names, *rows = report.table
    table = Table(*(Column(name, justify="right" if index else "left") for index, name in enumerate(names)))
    for row in rows:
        table.add_row(*row)
    print(f"The log is in {database}.", report.verdict, sep="\n")
    Console().print(table)
    print(*report.notes, sep="\n")
    if plot:
        try:
            with needs_recommender_extra():
                plots.draw(report, plot)
        except OSError:
            raise ConfigurationError(f"{plot} cannot be written.") from None
