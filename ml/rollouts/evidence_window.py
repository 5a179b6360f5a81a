"""The evidence window of a rollout: the hours that its evidence is from. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ml.rollouts.open_rollout import OpenRollout
from ml.store.hours import hour_of
from ml.store.strata import DigestedVersion

_PlacedEvents = ("start", "promote", "ramp")


@dataclass(frozen=True, slots=True)
class EvidenceWindow:
    """The period of the evidence of a rollout, and of its present share, as hours; and the pair that is compared."""

    hours: range
    step_hours: range
    mature_before: int
    segment: str
    baseline: DigestedVersion
    other: DigestedVersion


def window_of(subject: OpenRollout, reaction_window: timedelta, now: datetime) -> EvidenceWindow:
    """Return the window that ends now: since the version is in its stage, or since the last change of the model."""
    position, state = subject.position, subject.state
    placed = [
        event.at for event in subject.events if event.rollout == position.rollout and event.action in _PlacedEvents
    ]
    end = hour_of(now) + 1
    champion = state.track(position.kind).champion
    return EvidenceWindow(
        hours=range(_hour(max(position.stage_since, state.model_since)), end),
        step_hours=range(_hour(max([*placed, position.stage_since, state.model_since])), end),
        mature_before=hour_of(now - reaction_window),
        segment=position.segment,
        baseline=DigestedVersion(champion.version if champion else "", champion.digest if champion else ""),
        other=DigestedVersion(position.version, position.digest),
    )


def _hour(at: float) -> int:
    return hour_of(datetime.fromtimestamp(at, UTC))
