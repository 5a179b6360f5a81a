"""Rollouts as text and tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ml.experiments.rollout_state import RolloutEvent, Stage

if TYPE_CHECKING:
    from ml.rollouts.gates import GateResult
    from ml.rollouts.reports import ProposalReport, RolloutOverview, RolloutReport

_LIMITS = {
    "reward": "reward",
    "live_unusable": "unusable",
    "live_slow": "slow",
    "unusable": "unusable in shadow",
    "slow": "slow in shadow",
}
_PROMOTIONS = ("start", "promote", "ramp")


def describe_event(event: RolloutEvent) -> str:
    """Return an event as one line."""
    place = _place(event.to_stage, event.share, event.segment)
    gating = gating_of(event)
    return (
        f"rollout {event.rollout}: {event.version} {event.from_stage} → {place}{', paused' if event.paused else ''}"
        f"{f' ({gating})' if gating else ''}; event {event.id}"
    )


def gating_of(event: RolloutEvent) -> str:
    """Return whether an event was gated or forced; empty for events that no gate is about."""
    if event.action not in _PROMOTIONS:
        return ""
    failed = event.evidence.get("failed", [])
    return "gated" if event.gated else f"forced, although these gates failed: {', '.join(failed)}"


def status_lines(overview: "RolloutOverview") -> Iterator[str]:
    """Yield sentences on what is decided by whom, and who the champions are."""
    yield from overview.not_gated
    for kind, champion in overview.champions.items():
        yield f"The champion of {kind} versions is {champion.version}, since {_time(champion.stage_since)}."
    if not overview.open:
        yield "There is no open rollout."


def report_lines(report: "RolloutReport") -> Iterator[str]:
    """Yield where a rollout is, and what its next step needs."""
    position, move = report.position, report.move
    if position:
        paused = ", paused" if position.paused else ""
        place = _place(position.stage, position.share, position.segment)
        yield f"Rollout {report.rollout}: the {report.kind} {report.version} is in {place}{paused}."
    if move:
        yield f"Next: {_place(move.stage, move.share, move.segment)}."
    yield from report.detectable


def proposal_lines(report: "ProposalReport") -> Iterator[str]:
    """Yield what is proposed, and how its rollout is started."""
    proposal = report.proposal
    yield f"Proposed {_time(proposal.at.timestamp())}: the {proposal.kind} {proposal.version}, as {proposal.source}."
    yield f"To start its rollout: tips rollout start {proposal.version} --why REASON"


def gate_table(gates: "Iterable[GateResult]") -> Table:
    """Return the gates of a step."""
    table = Table("gate", "passes", "figure", "bound")
    for gate in gates:
        table.add_row(gate.name, "yes" if gate.passed else "no", escape(gate.figure), escape(gate.bound))
    return table


def history_lines(events: Iterable[RolloutEvent]) -> Iterator[str]:
    """Yield events, the oldest first: when and by whom, from where to where, why, and on which figures."""
    for event in events:
        place = _place(event.to_stage, event.share, event.segment)
        move = f"{event.kind} {event.version} {event.from_stage} → {place}, {event.action}"
        gating = gating_of(event)
        yield f"{event.id}. {_time(event.at)} UTC, {event.actor}: {move}{f' ({gating})' if gating else ''}"
        yield f"   why: {event.reason}"
        if figures := "; ".join(_key_figures(event.evidence)):
            yield f"   figures: {figures}"


def _key_figures(evidence: Mapping[str, Any]) -> Iterator[str]:
    for name, label in _LIMITS.items():
        if limits := evidence.get(name):
            estimate, low, high = (f"{100 * limits[each]:+.1f}" for each in ("estimate", "low", "high"))
            yield f"{label} {estimate} points ({low} to {high})"
    if tips := evidence.get("reward_tips"):
        yield f"{tips:,} mature tips"
    if decisions := evidence.get("shadow_decisions"):
        yield f"{decisions:,} decisions in shadow"
    yield from evidence.get("alarms", [])


def _place(stage: Stage, share: float, segment: str) -> str:
    at = f" at {share:.0%}" if stage == "canary" else ""
    return f"{stage}{at}{f' of {segment}' if segment else ''}"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
