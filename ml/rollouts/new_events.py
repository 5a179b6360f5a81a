"""New events of rollouts, as they are appended to the log."""

from datetime import datetime

from ml.experiments.rollout_state import Action, Kind, Position
from ml.store.rollouts import NewRolloutEvent

ENVIRONMENT = "environment"
"""The actor of events that follow from settings."""


def event_at(position: Position, action: Action, *, actor: str, reason: str, at: datetime) -> NewRolloutEvent:
    """Return an event that leaves a version where it is; the caller changes the stage or the share."""
    return NewRolloutEvent(
        at=at,
        kind=position.kind,
        version=position.version,
        digest=position.digest,
        action=action,
        from_stage=position.stage,
        to_stage=position.stage,
        actor=actor,
        reason=reason,
        rollout=position.rollout,
        share=position.share,
        segment=position.segment,
        paused=position.paused,
    )


def champion_of_environment(kind: Kind, version: str, digest: str, *, reason: str, at: datetime) -> NewRolloutEvent:
    """Return the event that records the champion that settings name, which no gate has checked."""
    return NewRolloutEvent(
        at=at,
        kind=kind,
        version=version,
        digest=digest,
        action="initial",
        from_stage="registered",
        to_stage="champion",
        actor=ENVIRONMENT,
        reason=reason,
        share=1.0,
    )


def model_of_environment(model: str, *, at: datetime) -> NewRolloutEvent:
    """Return the event that records another language model: a new evidence window begins."""
    return NewRolloutEvent(
        at=at,
        kind="model",
        version=model,
        digest="",
        action="change",
        from_stage="registered",
        to_stage="champion",
        actor=ENVIRONMENT,
        reason=f"TIP_MODEL is {model} now.",
    )
