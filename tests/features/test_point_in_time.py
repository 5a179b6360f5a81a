"""Aggregates as of a time: what counts, and when, compared with a definition that looks at each tip."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.features import point_in_time
from ml.features.point_in_time import DAY, NEVER, TipTimeline, aggregates_as_of, reward_changes

HOUR = DAY // 24
START = 20_000 * DAY
REWARDS = (1.0, 0.0, 0.0, 0.5)
"""By the place of a kind of reaction in the alphabet."""


@dataclass(frozen=True)
class Tip:
    user: int
    created_at: int
    exposed_at: int | None
    reactions: tuple[tuple[int, int, int], ...]
    """Each with the time at which the user reacted, its kind, and when it was received."""


def timeline(tips: list[Tip]) -> TipTimeline:
    rows = [(i, at, kind, received) for i, tip in enumerate(tips) for at, kind, received in tip.reactions]
    tip, at, kind, received_at = np.array(rows, np.int64).reshape(-1, 4).T
    changes = reward_changes(tip, at, kind, received_at, np.array(REWARDS)[kind])
    user, created_at, exposed_at = (
        np.array([[tip.user, tip.created_at, NEVER if tip.exposed_at is None else tip.exposed_at] for tip in tips])
        .reshape(-1, 3)
        .astype(np.int64)
        .T
    )
    return TipTimeline(user, created_at, exposed_at, *changes)


def definition(tips: list[Tip], user: int, as_of: int, window: int, *, seen_only: bool) -> tuple[float, float]:
    """Return `reward_rate_30d` and `tips_7d`, by looking at all tips."""
    known = [tip for tip in tips if tip.user == user and as_of - 30 * DAY <= tip.created_at < as_of]
    if seen_only:
        known = [
            tip
            for tip in known
            if tip.exposed_at is not None and tip.exposed_at <= tip.created_at + window and tip.exposed_at < as_of
        ]
    mature = [tip for tip in known if tip.created_at < as_of - window]
    rewards = []
    for tip in mature:
        received = [(at, kind) for at, kind, received_at in tip.reactions if received_at < as_of]
        rewards.append(REWARDS[max(received)[1]] if received else 0.0)
    rate = sum(rewards) / len(rewards) if rewards else np.nan
    return rate, sum(tip.created_at >= as_of - 7 * DAY for tip in known) if known else np.nan


def computed(tips: list[Tip], user: int, as_of: int, window: int, *, seen_only: bool = False) -> tuple[float, float]:
    values = aggregates_as_of(
        timeline(tips),
        np.array([user]),
        np.array([as_of]),
        reaction_window=timedelta(microseconds=window),
        seen_only=seen_only,
    )
    return float(values["reward_rate_30d"][0]), float(values["tips_7d"][0])


# Few different times, so that many are equal, or a period apart.
_steps = st.integers(0, 40 * 4).map(lambda quarters: START + quarters * 6 * HOUR)
_times = st.builds(lambda step, off: step + off, _steps, st.sampled_from((-1, 0, 0, 0, 1)))
_reactions = st.lists(
    st.tuples(_times, st.integers(0, 3), _times), max_size=4, unique_by=lambda reaction: reaction[:2]
).map(tuple)
_tips = st.lists(st.builds(Tip, st.integers(0, 3), _times, st.none() | _times, _reactions), max_size=25)
_questions = st.lists(st.tuples(st.integers(0, 4), _times), min_size=1, max_size=12)
_windows = st.sampled_from((6 * HOUR, DAY, 8 * DAY, 30 * DAY, 45 * DAY))


@given(tips=_tips, questions=_questions, window=_windows, seen_only=st.booleans(), few_at_once=st.booleans())
def test_the_aggregates_are_those_of_the_definition(
    tips: list[Tip], questions: list[tuple[int, int]], window: int, *, seen_only: bool, few_at_once: bool
) -> None:
    users, as_of = np.array(questions, np.int64).T
    with pytest.MonkeyPatch.context() as patch:
        if few_at_once:  # of four users, keys for two fit
            patch.setattr(point_in_time, "_MAX_KEY", 2 * 105 * DAY)
        values = aggregates_as_of(
            timeline(tips), users, as_of, reaction_window=timedelta(microseconds=window), seen_only=seen_only
        )
    expected = [definition(tips, user, at, window, seen_only=seen_only) for user, at in questions]
    np.testing.assert_array_equal(np.column_stack([values["reward_rate_30d"], values["tips_7d"]]), expected)


@given(tips=_tips, question=st.tuples(st.integers(0, 3), _times), seen_only=st.booleans())
def test_nothing_that_becomes_known_later_changes_the_aggregates(
    tips: list[Tip], question: tuple[int, int], *, seen_only: bool
) -> None:
    user, as_of = question
    then = [
        Tip(
            tip.user,
            tip.created_at,
            tip.exposed_at if tip.exposed_at is not None and tip.exposed_at < as_of else None,
            tuple(reaction for reaction in tip.reactions if reaction[2] < as_of),
        )
        for tip in tips
        if tip.created_at < as_of
    ]
    known_now, known_then = (computed(known, user, as_of, DAY, seen_only=seen_only) for known in (tips, then))
    np.testing.assert_array_equal(known_now, known_then)


def test_each_period_begins_and_ends_at_its_instant() -> None:
    tip = Tip(0, START, None, ((START, 0, START + 2 * HOUR),))
    assert np.isnan(computed([tip], 0, START, DAY)).all()
    for after, expected in (
        (1, (np.nan, 1)),
        (DAY, (np.nan, 1)),
        (DAY + 1, (1, 1)),
        (7 * DAY, (1, 1)),
        (7 * DAY + 1, (1, 0)),
        (30 * DAY, (1, 0)),
        (30 * DAY + 1, (np.nan, np.nan)),
    ):
        np.testing.assert_array_equal(computed([tip], 0, START + after, DAY), expected)


def test_the_latest_reaction_counts_in_whatever_order_reactions_arrive() -> None:
    late, early = (START + 5 * HOUR, 3, START + 2 * DAY), (START + 4 * HOUR, 0, START + 3 * DAY)
    first, same_instant = (START + HOUR, 0, START + HOUR), (START + 5 * HOUR, 1, START + 2 * DAY)
    tip = Tip(0, START, None, (early, late, same_instant, first))
    rates = [computed([tip], 0, START + at, HOUR)[0] for at in (HOUR + 1, 2 * DAY, 2 * DAY + 1, 3 * DAY + 1)]
    assert rates == [1, 1, 0.5, 0.5]


def test_a_sum_of_rewards_is_exact_in_any_order() -> None:
    rng = np.random.default_rng(1)
    n = 10_000
    at, order = START + rng.integers(0, 20 * DAY, n), rng.permutation(n)
    tenths, zeros = np.full(n, 0.1), np.zeros(n, np.int64)

    def rate(order: np.ndarray) -> float:
        changes = reward_changes(np.arange(n), at[order], zeros, at[order], tenths)
        tips = TipTimeline(zeros, at[order], np.full(n, NEVER), *changes)
        values = aggregates_as_of(
            tips, np.array([0]), np.array([START + 25 * DAY]), reaction_window=timedelta(days=1), seen_only=False
        )
        return float(values["reward_rate_30d"][0])

    assert rate(np.arange(n)) == rate(order) == round(0.1 * 2**14) / 2**14
