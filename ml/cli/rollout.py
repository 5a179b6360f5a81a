"""`tips rollout`: start, watch and move rollouts of prompt versions and ranking policies."""

import getpass
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from ml.cli import rollout_tables as tables
from ml.cli.catalogues import serving_content
from ml.cli.stores import needs_recommender_extra, recommender_settings, with_tip_store
from ml.experiments.rollout_state import Kind, RolloutEvent
from ml.platform.clock import utc_now

if TYPE_CHECKING:
    from ml.rollouts.operations import Rollouts
    from ml.store.tips import TipStore

T = TypeVar("T")

Subject = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="The number of a rollout, or the version that it is about.")
]
Why = Annotated[str, typer.Option("--why", help="The reason, which is recorded.")]
Actor = Annotated[str | None, typer.Option(help="Who does it, instead of the user of the operating system.")]
Force = Annotated[bool, typer.Option("--force", help="Do it although gates fail, which is recorded.")]

app = typer.Typer(no_args_is_help=True)


@app.command()
def start(
    version: Annotated[str, typer.Argument(help="A prompt version, or the version of a loaded ranking policy.")],
    why: Why,
    actor: Actor = None,
    segment: Annotated[str, typer.Option(help="Only for users of a segment, such as locale:de.")] = "",
    force: Force = False,
) -> None:
    """Start a rollout: the version goes into shadow."""

    async def work(rollouts: "Rollouts") -> tuple[RolloutEvent, str | None]:
        kind: Kind = "policy" if version in (await rollouts.catalogue()).policies else "prompt"
        event = await rollouts.start(kind, version, actor=_actor(actor), reason=why, segment=segment, force=force)
        _, state = await rollouts.reports.state()
        return event, rollouts.reports.not_gated(state).get(kind)

    event, warning = with_rollouts(work)
    _print_event(event)
    if warning:
        print(warning)


@app.command()
def promote(
    rollout: Subject,
    why: Why,
    actor: Actor = None,
    share: Annotated[float | None, typer.Option(help="Of the tips, up to 1: the champion. Default: the next.")] = None,
    force: Force = False,
) -> None:
    """Promote a version: from shadow to canary, to a larger share, or to champion."""

    async def work(rollouts: "Rollouts") -> RolloutEvent:
        number = await _find(rollouts, rollout)
        return await rollouts.promote(number, actor=_actor(actor), reason=why, share=share, force=force)

    _print_event(with_rollouts(work))


@app.command()
def pause(rollout: Subject, why: Why, actor: Actor = None) -> None:
    """Pause a rollout: nothing promotes it, and its share stays."""

    async def work(rollouts: "Rollouts") -> RolloutEvent:
        return await rollouts.pause(await _find(rollouts, rollout), actor=_actor(actor), reason=why)

    _print_event(with_rollouts(work))


@app.command()
def resume(rollout: Subject, why: Why, actor: Actor = None) -> None:
    """Resume a paused rollout."""

    async def work(rollouts: "Rollouts") -> RolloutEvent:
        return await rollouts.resume(await _find(rollouts, rollout), actor=_actor(actor), reason=why)

    _print_event(with_rollouts(work))


@app.command()
def rollback(rollout: Subject, why: Why, actor: Actor = None) -> None:
    """Take a version out of use; the previous champion replaces a champion."""

    async def work(rollouts: "Rollouts") -> RolloutEvent:
        return await rollouts.rollback(await _find(rollouts, rollout), actor=_actor(actor), reason=why)

    _print_event(with_rollouts(work))


@app.command()
def status() -> None:
    """Show the champions, and the gates of each open rollout with their figures and bounds."""
    overview = with_rollouts(lambda rollouts: rollouts.reports.overview())
    console = Console()
    print(*tables.status_lines(overview), sep="\n")
    for report in overview.open:
        print("", *tables.report_lines(report), sep="\n")
        console.print(tables.gate_table(report.gates))


@app.command()
def proposals() -> None:
    """Show the versions that `tips nightly` proposes, with the gates of their starts."""
    overview = with_rollouts(lambda rollouts: rollouts.reports.overview())
    if not overview.proposals:
        sys.exit("There is no proposal.")
    console = Console()
    for report in overview.proposals:
        print(*tables.proposal_lines(report), sep="\n")
        console.print(tables.gate_table(report.gates))


@app.command()
def history(
    version: Annotated[str | None, typer.Argument(help="Only the events of this version.")] = None,
) -> None:
    """Show all events: who changed what, when, why and on which evidence."""
    events, _ = with_rollouts(lambda rollouts: rollouts.reports.state())
    found = [event for event in events if version in {None, event.version}]
    if not found:
        sys.exit(f"There is no event of {version}." if version else "There is no event yet.")
    print(*tables.history_lines(found), sep="\n")


def with_rollouts(work: "Callable[[Rollouts], Awaitable[T]]") -> T:
    """Return the result of `work` with the rollouts of DATABASE_URL."""
    with needs_recommender_extra():
        from ml.recommender.rollout_operations import build_rollouts
    settings = recommender_settings()

    async def open_and_work(store: "TipStore") -> T:
        async with serving_content() as serving:
            rollouts = build_rollouts(settings, store, catalogue=serving.catalogue, cards=serving.cards, clock=utc_now)
            return await work(rollouts)

    return with_tip_store(open_and_work)


async def _find(rollouts: "Rollouts", text: str) -> int:
    """Return the number of a rollout, given as such or by the version of one that has not ended."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    _, state = await rollouts.reports.state()
    positions = [
        position
        for track in (state.prompt, state.policy)
        for position in (*track.positions.values(), *([track.champion] if track.champion else []))
    ]
    found = [position.rollout for position in positions if position.version == text]
    if not found:
        open_versions = ", ".join(position.version for position in positions) or "none"
        sys.exit(f"There is no rollout of {text} that has not ended; there are those of: {open_versions}.")
    return found[0]


def _actor(actor: str | None) -> str:
    try:
        return actor or getpass.getuser()
    except (KeyError, OSError):
        sys.exit("The user of the operating system has no name: name yourself with --actor.")


def _print_event(event: RolloutEvent) -> None:
    print(tables.describe_event(event))
