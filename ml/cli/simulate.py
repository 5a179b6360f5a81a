"""`tips simulate`: simulated users, for the reward page or for a comparison of policies."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ml.cli.options import check_figure_file, whole_number
from ml.cli.progress import tracked
from ml.cli.stores import database_name, needs_recommender_extra
from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from ml.serving.prompts import PROMPTS
from ml.simulation.scenarios import PLAIN, SCENARIOS


def _check_scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise typer.BadParameter(f"must be one of {', '.join(SCENARIOS)}.")
    return name


def simulate(
    users: Annotated[
        int, typer.Option(parser=whole_number(1, 100_000), metavar="N", help="The number of users.")
    ] = 500,
    days: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 365),
            metavar="N",
            help="The number of days, up to now.",
            show_default="14, or as many as the scenario takes",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=whole_number(0, 2**32), metavar="N", help="The same seed gives the same users.")
    ] = 1,
    scenario: Annotated[
        str,
        typer.Option(
            callback=_check_scenario,
            metavar="NAME",
            help="; ".join(f"{name}: {scenario.summary}" for name, scenario in SCENARIOS.items()) + ".",
        ),
    ] = PLAIN,
    regret: Annotated[
        Path | None,
        typer.Option(
            callback=check_figure_file,
            help="Compare the policies on these users instead, and draw their regret to this file (.svg or .png); "
            "nothing is stored.",
        ),
    ] = None,
) -> None:
    """Store tips and reactions of simulated users, for the reward page."""
    progress = partial(tracked, "Simulating")
    days = days or SCENARIOS[scenario].days
    if days < SCENARIOS[scenario].min_days:
        raise typer.BadParameter(
            f"the scenario {scenario} takes at least {SCENARIOS[scenario].min_days} days.", param_hint="--days"
        )
    if regret:
        if scenario != PLAIN:
            raise typer.BadParameter("--regret compares policies in the plain world only.", param_hint="--scenario")
        _compare_policies(users, days, seed, regret, progress)
        return
    with needs_recommender_extra():
        from ml.recommender.settings import RecommenderSettings
        from ml.simulation.service import SimulationFailed
        from ml.simulation.service import simulate as run_simulation
        from ml.store.recount import prepare_database
    settings = RecommenderSettings.from_environment()
    prepare_database(settings.database_url.get_secret_value(), settings.reaction_window)
    try:
        result = run_simulation(
            settings,
            users=users,
            days=days,
            end=utc_now(),
            seed=seed,
            progress=progress,
            scenario=SCENARIOS[scenario],
        )
    except SimulationFailed as error:
        sys.exit(f"The simulation ended early, and nothing is stored. {error}")
    print(
        f"simulated: {result.tips} tips, {result.exposures} exposures, {result.reactions} reactions "
        f"in {database_name()}; `tips serve` shows them on /admin/rewards"
    )


def _compare_policies(
    users: int, days: int, seed: int, file: Path, progress: Callable[[Iterable[int]], Iterable[int]]
) -> None:
    with needs_recommender_extra():
        from ml.simulation.plots import draw
        from ml.simulation.regret import compare_policies

        try:
            comparison = compare_policies([*PROMPTS], users=users, days=days, seed=seed, progress=progress)
            draw(comparison, file)
        except OSError:
            raise ConfigurationError(f"{file} cannot be written.") from None
    table = Table("policy", "mean reward", "of the oracle's", "regret", "of uniform's")
    for outcome in (comparison.oracle, *comparison.policies):
        table.add_row(
            outcome.policy,
            f"{outcome.reward:.3f}",
            _share(outcome.reward, comparison.oracle.reward),
            f"{outcome.regret[-1]:,.0f}",
            _share(outcome.regret[-1], comparison.policies[0].regret[-1]),
        )
    Console().print(table)
    print(f"{comparison.tips:,} tips per policy; regret over time: {file}")


def _share(part: float, total: float) -> str:
    return f"{part / total:.1%}" if total else "-"
