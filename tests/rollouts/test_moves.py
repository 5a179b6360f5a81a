"""The moves of rollouts: shares only grow, and everyone's canary ends as the champion."""

from hypothesis import given
from hypothesis import strategies as st

from ml.experiments.rollout_state import Position
from ml.rollouts.moves import RAMP, next_move

SHARES = st.floats(0.0001, 0.9999)


def a_canary(share: float, segment: str = "") -> Position:
    return Position("prompt", "v2", "d", "canary", share, segment, False, 2, 3, 3, 0.0, 0.0)


@given(SHARES, st.sampled_from(["", "locale:de"]))
def test_every_canary_becomes_the_champion_by_larger_shares(share: float, segment: str) -> None:
    canary = a_canary(share, segment)
    for _ in range(2 * len(RAMP)):
        move = next_move(canary)
        if move.stage == "champion":
            break
        assert move.share > canary.share or (canary.segment and not move.segment)
        assert (move.step, move.stage) == ("ramp", "canary")
        canary = a_canary(move.share, move.segment)
    assert (move.step, move.share, move.segment) == ("champion", 1.0, "")


@given(SHARES, SHARES)
def test_a_larger_share_is_taken_as_it_is(share: float, larger: float) -> None:
    if larger > share:
        move = next_move(a_canary(share), larger)
        assert (move.step, move.share) == ("ramp", larger)
