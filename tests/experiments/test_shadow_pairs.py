"""Comparisons of the tips in shadow with the live tips."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ml.experiments.guardrails import HARM_ALPHA, MIN_LATENCIES, OneSidedLimits
from ml.experiments.shadow_pairs import TOKEN_FACTOR, ShadowPair, excess_tokens, slow_difference, unusable_difference
from tests.bench.guardrails import SHADOWS, passed

PAIR = ShadowPair(day=0, live_failed=False, live_ms=1_000, live_tokens=600, failed=False, ms=1_000, tokens=600)

Limits = Callable[[list[ShadowPair]], OneSidedLimits | None]


def test_an_equal_version_passes_the_gates_within_500_pairs() -> None:
    assert (passed(SHADOWS["equal"], [500], 20, np.random.default_rng(1)) >= 0.9).all()


def test_a_version_at_the_bounds_rarely_passes_any_gate_at_any_look() -> None:
    (name,) = (name for name in SHADOWS if name.startswith("at all bounds"))
    assert (passed(SHADOWS[name], range(200, 801, 200), 30, np.random.default_rng(1)) <= HARM_ALPHA).all()


def test_unusable_tips_of_both_are_subtracted() -> None:
    pairs = [PAIR] * 6 + [replace(PAIR, failed=True)] * 3 + [replace(PAIR, live_failed=True)]
    pairs += [replace(PAIR, failed=True, live_failed=True)] * 2
    limits = unusable_difference(pairs)
    assert limits
    assert limits.estimate == pytest.approx(2 / 12)
    assert limits.high > 0.5


@pytest.mark.parametrize(("live_tokens", "tokens", "excess"), [(600, 600, -1 / 3), (600, 900, 0), (600, 1_800, 0.5)])
def test_the_excess_of_tokens_is_relative_to_the_allowed_factor(live_tokens: int, tokens: int, excess: float) -> None:
    limits = excess_tokens([replace(PAIR, live_tokens=live_tokens, tokens=tokens)] * 3)
    assert limits
    assert limits.estimate == pytest.approx(excess)
    assert TOKEN_FACTOR == 1.5


def test_tips_without_tokens_have_no_excess() -> None:
    limits = excess_tokens([replace(PAIR, live_tokens=0, tokens=0)])
    assert limits
    assert limits.estimate == 0


def test_slow_is_relative_to_earlier_live_tips_only() -> None:
    first = [replace(PAIR, live_ms=1_000 + number, ms=9_000) for number in range(MIN_LATENCIES)]
    assert slow_difference(first) is None
    at, above = (replace(PAIR, ms=round(1.25 * 1_018) + excess) for excess in (-1, 1))
    for pair, expected in ((at, 0.0), (above, 1.0), (replace(PAIR, live_ms=2_000), -1.0)):
        limits = slow_difference([*first, pair])
        assert limits
        assert limits.estimate == expected
    # Later live tips do not change the terms of earlier pairs.
    limits = slow_difference([*first, above, *[replace(PAIR, live_ms=1_000, ms=1_000)] * 9])
    assert limits
    assert limits.estimate == pytest.approx(0.1)


@pytest.mark.parametrize("limits_of", [slow_difference, excess_tokens])
def test_failed_tips_do_not_count_as_slow_or_long(limits_of: Limits) -> None:
    pairs = [PAIR] * 60
    failed = replace(PAIR, failed=True, ms=60_000, tokens=0)
    live_failed = replace(PAIR, live_failed=True, live_ms=60_000, live_tokens=0)
    assert limits_of([failed, *pairs, failed, live_failed]) == limits_of(pairs)


@pytest.mark.parametrize("limits_of", [unusable_difference, slow_difference, excess_tokens])
def test_without_pairs_there_are_no_limits(limits_of: Limits) -> None:
    assert limits_of([]) is None
