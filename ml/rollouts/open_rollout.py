"""The open rollouts: those that have not ended. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ml.experiments.rollout_state import Position, RolloutEvent, RolloutState
from ml.platform.errors import RolloutRefused, UnknownRollout


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """A rollout that has not ended: its position, and all events with the state after them."""

    position: Position
    state: RolloutState
    events: Sequence[RolloutEvent]


def open_rollout(
    rollout: int, events: Sequence[RolloutEvent], state: RolloutState, *, with_champion: bool = False
) -> OpenRollout:
    """Return a rollout that can be changed. Raises UnknownRollout and RolloutRefused."""
    last = [event for event in events if event.rollout == rollout and event.kind != "model"][-1:]
    if not last:
        raise UnknownRollout(f"There is no rollout {rollout}.")
    position = state.position(rollout)
    if position is None:
        raise RolloutRefused(f"The rollout of {last[0].version} has ended.")
    if position.stage == "champion" and not with_champion:
        raise RolloutRefused(f"{position.version} is the champion already.")
    return OpenRollout(position, state, events)
