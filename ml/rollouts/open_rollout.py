"""A rollout that has not ended. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ml.experiments.rollout_state import Position, RolloutEvent, RolloutState


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """A rollout that has not ended: its position, and all events with the state after them."""

    position: Position
    state: RolloutState
    events: Sequence[RolloutEvent]
