"""Learn from the tips and reactions so far, and judge what would be chosen next."""

import logging
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ml.cli.stores import age, in_store, recommender_extra
from ml.experiments.ranking import RankingPolicy, UnusablePolicy
from ml.features import online_store
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import configure_logging
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ml.experiments.decisions import LoggedDecision
    from ml.store.tips import TipStore

app = typer.Typer()


def _picture(file: Path | None) -> Path | None:
    if file and (file.suffix not in {".svg", ".png"} or not file.parent.is_dir()):
        raise typer.BadParameter("should be a file in a folder that is there, in .svg or .png")
    return file


@app.command()
def train(
    to: Annotated[Path | None, typer.Option(help="Write the policy into this file; by default policy.zip.")] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add it to MLflow's registry instead, as a version of this name.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="With --register: what shall name this version from now on, such as champion.")
    ] = None,
    since: Annotated[
        timedelta | None, typer.Option(parser=age, metavar="AGE", help="Only from tips of the last days, such as 90d.")
    ] = None,
    until: Annotated[
        timedelta | None,
        typer.Option(
            parser=age, metavar="AGE", help="Leave out tips younger than this, for `tips evaluate` to judge it by."
        ),
    ] = None,
) -> None:
    """Learn from the tips and reactions so far which tip to show whom, for SCORE_POLICY."""
    if to and register:
        raise typer.BadParameter("is for a file, and --register for MLflow: one of them at a time", param_hint="--to")
    if alias and not register:
        raise typer.BadParameter("needs --register", param_hint="--alias")
    from ml.pipelines.training import train as learn

    window = timedelta(hours=RecommenderSettings.from_environment().reaction_window_hours)
    decisions = _decisions(window, since=since, until=until)
    if not decisions:
        sys.exit("There are no tips old enough to learn from.")
    try:
        blob = learn(decisions, name=register or "tips")
        version = RankingPolicy.load(blob).version
    except UnusablePolicy as error:
        raise ConfigurationError(f"A policy {error}.") from None
    except ValidationError:
        raise typer.BadParameter(
            "should be a name of letters, digits, dots, dashes and underscores, and not that of another kind of policy",
            param_hint="--register",
        ) from None
    learned = f"learned from {len(decisions):,} tips: policy version {version}"
    if register:
        from ml.registry import models  # MLflow takes seconds to import, and is an extra

        tracking_uri = ServingSettings.from_environment().mlflow_tracking_uri
        number = models.register(blob, register, tracking_uri, alias=alias)
        print(f"{learned}, in MLflow as {models.SCHEME}{register}/{number}{f' and @{alias}' if alias else ''}")
        return
    file = to or Path("policy.zip")
    try:
        whole = file.with_name(f"{file.name}.new")  # whoever loads the policy meanwhile gets the one or the other
        whole.write_bytes(blob)
        whole.replace(file)
    except OSError:
        raise ConfigurationError(f"{file} cannot be written.") from None
    print(f"{learned}, in {file}")


@app.command()
def features() -> None:
    """Count what is known of each person beforehand, into the store of ONLINE_STORE_URL; to be run every day."""
    url = ServingSettings.from_environment().online_store_url
    if not url:
        raise ConfigurationError("ONLINE_STORE_URL: must say where to write, such as sqlite:///features.db.")
    window = timedelta(hours=RecommenderSettings.from_environment().reaction_window_hours)
    now = datetime.now(UTC)

    async def count(store: "TipScores") -> "list[tuple[str, Mapping[str, float]]]":
        return [person async for person in store.user_aggregates(now, window)]

    try:
        print(f"written: {online_store.replace(url, in_store(count), now):,} people")
    except online_store.NoStore as error:
        raise ConfigurationError(f"ONLINE_STORE_URL: the file {error}.") from None


@app.command()
def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            help="uniform, thompson, one prompt version or several as in TIP_PROMPT_VERSION, or a policy that was "
            "learned: a file or models:/NAME@ALIAS."
        ),
    ],
    since: Annotated[
        timedelta | None,
        typer.Option(parser=age, metavar="AGE", help="Only by tips of the last days or hours, such as 30d."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(callback=_picture, help="Draw the estimates into this file (.svg or .png).")
    ] = None,
) -> None:
    """Tell from the tips and reactions so far what another policy would have earned."""
    with recommender_extra():
        from ml.pipelines import evaluation, plots, targets
    window = timedelta(hours=RecommenderSettings.from_environment().reaction_window_hours)
    target = targets.read(policy, window=window, tracking_uri=ServingSettings.from_environment().mlflow_tracking_uri)
    try:
        report = evaluation.evaluate(_decisions(window, since=since), target)
    except evaluation.NothingToEvaluate as nothing:
        sys.exit(str(nothing))
    names, *rows = report.table
    table = Table(*(Column(name, justify="right" if index else "left") for index, name in enumerate(names)))
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(*report.notes, report.verdict, sep="\n")
    if plot:
        try:
            with recommender_extra():
                plots.draw(report, plot)
        except OSError:
            raise ConfigurationError(f"{plot} cannot be written.") from None


def _decisions(
    window: timedelta, *, since: timedelta | None = None, until: timedelta | None = None
) -> "list[Decision]":
    """Return the decisions of an age, of those that are old enough for their reactions to be in."""
    now = datetime.now(UTC)
    before = now - max(window, until or window)

    async def read(store: "TipScores") -> "list[Decision]":
        return [decision async for decision in store.decisions(before, None if since is None else now - since)]

    return in_store(read)


@app.command()
def simulate(
    users: Annotated[int, typer.Option(min=1, max=100_000, help="How many people.")] = 500,
    days: Annotated[int, typer.Option(min=1, max=365, help="How many days, up to now.")] = 14,
    seed: Annotated[int, typer.Option(help="The same seed gives the same people.")] = 1,
    regret: Annotated[
        Path | None,
        typer.Option(
            callback=_picture,
            help="Instead, let each policy choose for these people, and draw into this file (.svg or .png) what it "
            "loses until it has learned who likes what; nothing else is stored.",
        ),
    ] = None,
) -> None:
    """Fill the database with simulated people's tips and reactions, to see what the reward page shows of them."""
    bar = Console(stderr=True)

    def progress(steps: Iterable[int]) -> Iterable[int]:
        return track([*steps], "Simulating", console=bar)

    if regret:
        _compare_policies(users, days, seed, regret, progress)
        return
    with recommender_extra():
        from ml.simulation.service import simulate as run
        from ml.store.database import prepare_database
    settings = RecommenderSettings.from_environment()
    prepare_database(settings.database_url.get_secret_value())
    configure_logging(logging.CRITICAL, sys.stderr)
    done = run(settings, users=users, days=days, end=datetime.now(UTC), seed=seed, progress=progress)
    print(f"simulated: {done.tips} tips, {done.reactions} reactions; `tips serve` shows them on /admin/rewards")


def _compare_policies(
    users: int, days: int, seed: int, file: Path, progress: Callable[[Iterable[int]], Iterable[int]]
) -> None:
    with recommender_extra():
        from ml.simulation.plots import draw
        from ml.simulation.regret import compare_policies

        try:
            played = compare_policies(users=users, days=days, seed=seed, progress=progress)
            draw(played, file)
        except UnusablePolicy as error:
            raise ConfigurationError(f"The policy that ranks {error}.") from None
        except OSError:
            raise ConfigurationError(f"{file} cannot be written.") from None
    table = Table("policy", "mean reward", "of the oracle's", "regret", "of uniform's")
    for one in (played.oracle, *played.policies):
        table.add_row(
            one.policy,
            f"{one.reward:.3f}",
            _share(one.reward, played.oracle.reward),
            f"{one.regret[-1]:,.0f}",
            _share(one.regret[-1], played.policies[0].regret[-1]),
        )
    Console().print(table)
    print(f"{played.tips:,} tips for each policy; regret over time: {file}")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
