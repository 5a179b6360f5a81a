"""The `tips` command."""

import asyncio
import logging
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ml.errors import TipsError, from_validation
from ml.experiments.ranking import UnusablePolicy
from ml.features.definitions import SIGNALS
from ml.guards import is_loopback
from ml.service import assembled
from ml.serving import prompts as registry
from ml.serving.generate import Generator, Tip
from ml.serving.main import app_from_environment as serving_from_environment
from ml.serving.main import assemble, check
from ml.serving.schemas import GenerateRequest
from ml.settings import ConfigurationError, RecommenderSettings, ServiceSettings, ServingSettings
from ml.telemetry import Telemetry, configure_logging

if TYPE_CHECKING:
    from ml.experiments.decisions import Decision
    from ml.recommender.tip_scores import TipScores

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
prompts_app = typer.Typer(invoke_without_command=True)
app.add_typer(prompts_app, name="prompts", help="Show the prompt versions, or release new ones.")


def main() -> None:
    """Run the command; an error that the user can mend is one sentence on standard error, and exit code 1."""
    try:
        app()
    except (ConfigurationError, TipsError) as error:
        sys.exit(str(error))


class Only(StrEnum):
    """One of the two services."""

    SERVING = "serving"
    RECOMMENDER = "recommender"


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,5})([dh])", text)
    if not found:
        raise typer.BadParameter("should be a number of days or hours, such as 90d or 36h")
    return timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})


def _picture(file: Path | None) -> Path | None:
    if file and (file.suffix not in {".svg", ".png"} or not file.parent.is_dir()):
        raise typer.BadParameter("should be a file in a folder that is there, in .svg or .png")
    return file


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 8000,
    only: Annotated[Only | None, typer.Option(help="Run one of the two services; by default both.")] = None,
) -> None:
    """Run the service on this machine."""
    settings = ServiceSettings.from_environment()
    if not (settings.api_keys or settings.allow_anonymous or is_loopback(host)):
        raise ConfigurationError(f"API_KEYS: must be set to listen on {host}, or ALLOW_ANONYMOUS to true.")
    service = assembled(_service(only))
    # uvicorn finishes what is in flight and then raises the signal that stopped it once more: that is a success.
    signal.signal(signal.SIGTERM, _exit_well)
    uvicorn.run(
        service,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.generate_timeout_seconds) + 1,
    )


def _service(only: Only | None) -> Callable[[], FastAPI]:
    if only is Only.SERVING:
        return serving_from_environment
    with _recommender_extra():
        from ml.app import app_from_environment as both_from_environment
        from ml.recommender.main import app_from_environment as recommender_from_environment
    return recommender_from_environment if only else both_from_environment


@app.command()
def generate(
    signal: Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE; names: {', '.join(SIGNALS)}.")] = None,
    prompt_version: Annotated[str | None, typer.Option(help="One of `tips prompts`.")] = None,
) -> None:
    """Write one tip, here and now; on a terminal, word by word."""
    settings = ServingSettings.from_environment()
    check(settings)
    request = _request(signal or [], prompt_version)
    configure_logging(logging.CRITICAL, sys.stderr)
    asyncio.run(_generate(settings, request))


async def _generate(settings: ServingSettings, request: GenerateRequest) -> None:
    gateway, generator = assemble(settings, Telemetry())
    registry.resolve(request.prompt_version, settings.default_prompt_version)
    try:
        await gateway.warm(())  # loading may take longer than a tip is given
        if sys.stdout.isatty():
            await _print_words(generator, request)
        else:
            print((await generator.generate(request.signals.known(), request.prompt_version)).text)
    finally:
        await gateway.close()


async def _print_words(generator: Generator, request: GenerateRequest) -> None:
    stream = await generator.stream(request.signals.known(), request.prompt_version)
    try:
        async with aclosing(stream.pieces) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Tip):
                    print(piece, end="", flush=True)
    finally:
        print()


def _request(pairs: Sequence[str], prompt_version: str | None) -> GenerateRequest:
    signals: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter("should be NAME=VALUE, such as sleep_hours=5.5", param_hint="--signal")
        if name == "recent_tips":
            signals[name] = [*signals.get(name, []), value]
        else:
            signals[name] = value
    try:
        return GenerateRequest.model_validate({"signals": signals, "prompt_version": prompt_version}, strict=False)
    except ValidationError as error:
        raise from_validation(error.errors()) from None


@prompts_app.callback()
def prompts(context: typer.Context) -> None:
    """Show the prompt versions."""
    if context.invoked_subcommand:
        return
    default = ServingSettings.from_environment().default_prompt_version
    released = registry.locked_digests()
    table = Table("version", "description", "digest", "released")
    for version, prompt in registry.PROMPTS.items():
        state = "yes" if released.get(version) == prompt.digest else "changed!" if version in released else "no"
        name = f"{version} (default)" if version == default else version
        table.add_row(name, prompt.description, prompt.digest[:12], state)
    Console().print(table)


@prompts_app.command()
def lock() -> None:
    """Release the new versions: from then on their text cannot change without a test failing."""
    changed = registry.changed_versions()
    if changed:
        sys.exit(f"{', '.join(changed)}: released, so it cannot change any more; add a new version instead.")
    print(f"released: {', '.join(registry.lock()) or 'nothing new'}")


@app.command()
def migrate() -> None:
    """Bring the database of DATABASE_URL up to the newest schema."""
    with _recommender_extra():
        from ml.recommender.database import migrate as upgrade
    upgrade(RecommenderSettings.from_environment().database_url.get_secret_value())


@app.command()
def purge(
    older_than: Annotated[
        timedelta, typer.Option(parser=_age, metavar="AGE", help="In days or hours, such as 90d or 36h.")
    ],
) -> None:
    """Remove the tips older than that, with the reactions to them and what was counted of both."""
    print(f"removed: {asyncio.run(_in_store(lambda store: store.purge(datetime.now(UTC) - older_than)))} tips")


@app.command()
def forget(user: Annotated[str, typer.Argument(help="The user_id that the caller gave.")]) -> None:
    """Remove everything that is stored of one person."""
    print(f"removed: {asyncio.run(_in_store(lambda store: store.forget(user)))} tips")


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
        typer.Option(parser=_age, metavar="AGE", help="Only by tips of the last days or hours, such as 30d."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(callback=_picture, help="Draw the estimates into this file (.svg or .png).")
    ] = None,
) -> None:
    """Tell from the tips and reactions so far what another policy would have earned."""
    with _recommender_extra():
        from ml.pipelines import evaluation, plots, targets
    window = timedelta(hours=RecommenderSettings.from_environment().reaction_window_hours)
    target = targets.read(policy, window=window, tracking_uri=ServingSettings.from_environment().mlflow_tracking_uri)
    try:
        report = evaluation.evaluate(asyncio.run(_in_store(lambda store: _decisions(store, window, since))), target)
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
            with _recommender_extra():
                plots.draw(report, plot)
        except OSError:
            raise ConfigurationError(f"{plot} cannot be written.") from None


async def _decisions(store: "TipScores", window: timedelta, age: timedelta | None) -> "list[Decision]":
    """Return the decisions that are old enough for their reactions to be in."""
    now = datetime.now(UTC)
    return [decision async for decision in store.decisions(now - window, None if age is None else now - age)]


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
    with _recommender_extra():
        from ml.recommender.database import prepare
        from ml.simulation.service import simulate as run
    settings = RecommenderSettings.from_environment()
    prepare(settings.database_url.get_secret_value())
    configure_logging(logging.CRITICAL, sys.stderr)
    done = run(settings, users=users, days=days, end=datetime.now(UTC), seed=seed, progress=progress)
    print(f"simulated: {done.tips} tips, {done.reactions} reactions; `tips serve` shows them on /admin/rewards")


def _compare_policies(
    users: int, days: int, seed: int, file: Path, progress: Callable[[Iterable[int]], Iterable[int]]
) -> None:
    with _recommender_extra():
        from ml.simulation.plots import draw
        from ml.simulation.regret import play

        try:
            played = play(users=users, days=days, seed=seed, progress=progress)
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


async def _in_store(work: Callable[["TipScores"], Awaitable[T]]) -> T:
    with _recommender_extra():
        from ml.recommender.tip_scores import open_tip_scores
    url = RecommenderSettings.from_environment().database_url.get_secret_value()
    async with open_tip_scores(url, lambda: datetime.now(UTC)) as store:
        return await work(store)


@contextmanager
def _recommender_extra() -> Iterator[None]:
    """Around the imports of what only the recommender needs: serving and writing tips go without."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is missing: this needs the `recommender` extra; `tips serve --only serving` does not."
        ) from None


def _exit_well(*_: Any) -> NoReturn:
    sys.exit(0)
