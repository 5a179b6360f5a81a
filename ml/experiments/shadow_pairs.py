"""Comparisons of the tips in shadow with the live tips of the same decisions, one-sided and valid at every look."""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ml.experiments.guardrails import HARM_ALPHA, MIN_LATENCIES, OneSidedLimits, mean_limits, slow_limit
from ml.experiments.statistics import Sample

TOKEN_FACTOR = 1.5
"""The tokens of a tip in shadow, relative to those of the live tip, above which `excess_tokens` is above 0."""


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """The live tip and the tip in shadow of one decision.

    `day`: days since 1970. `live_failed`, `failed`: whether there is no usable tip. `live_ms`, `ms`: the time to write
    it. `live_tokens`, `tokens`: of prompt and tip.
    """

    day: int
    live_failed: bool
    live_ms: int
    live_tokens: int
    failed: bool
    ms: int
    tokens: int


def unusable_difference(pairs: Iterable[ShadowPair], *, alpha: float = HARM_ALPHA) -> OneSidedLimits | None:
    """Return the limits of the difference of the shares without a usable tip, shadow minus live; None without pairs.

    If both fail for 1 % of tips, `high` is below 5 % after 300 pairs with a probability of 93 %, and after 500 pairs
    nearly always; if the shadow fails for 2 %, after 500 pairs with 92 %.
    """
    return mean_limits(_samples((pair.day, pair.failed - pair.live_failed) for pair in pairs), alpha=alpha)


def slow_difference(pairs: Iterable[ShadowPair], *, alpha: float = HARM_ALPHA) -> OneSidedLimits | None:
    """Return the limits of the difference of the shares of slow tips, shadow minus live.

    `pairs`: in the order of time. Slow is what takes longer than `slow_limit` of the 95th percentile of the live tips
    of all earlier pairs. This limit is known before the pair, so the terms -1, 0 and 1 are exact, which a
    comparison of the percentiles themselves is not. The first `MIN_LATENCIES` pairs only count for later limits. Pairs
    with a failed tip are left out: they count in `unusable_difference`. None without further pairs.

    For log-normal times whose 95th percentile is twice the median, `high` is below 5 % after 500 pairs with a
    probability of 97 % if both are equally fast, and if the shadow is 10 % slower after 1,000 pairs with 98 %. A shadow
    that is a third slower has 5 % more slow tips.
    """
    earlier: list[int] = []
    terms: list[tuple[int, float]] = []
    for pair in _usable(pairs):
        if len(earlier) >= MIN_LATENCIES:
            limit = slow_limit(earlier[math.ceil(0.95 * len(earlier)) - 1])
            terms.append((pair.day, (pair.ms > limit) - (pair.live_ms > limit)))
        insort(earlier, pair.live_ms)
    return mean_limits(_samples(terms), alpha=alpha)


def excess_tokens(pairs: Iterable[ShadowPair], *, alpha: float = HARM_ALPHA) -> OneSidedLimits | None:
    """Return the limits of the mean relative excess of tokens over `TOKEN_FACTOR` times those of the live tip.

    With s tokens in shadow and l = `TOKEN_FACTOR` times the live ones, the term is (s - l) / max(s, l). It is in
    [-1, 1] whatever the lengths are, so the limits are exact, which those of the mean number of tokens are only with a
    known maximum. 0 means that a typical tip has `TOKEN_FACTOR` times the tokens; equal tokens give -1/3. Pairs with a
    failed tip are left out: they count in `unusable_difference`. None without pairs.

    For lengths that vary by a third, `high` is below 0 after 50 pairs with equal tokens, and after 100 with 1.2 times.
    """
    return mean_limits(_samples((pair.day, _relative_excess(pair)) for pair in _usable(pairs)), alpha=alpha)


def _relative_excess(pair: ShadowPair) -> float:
    allowed = TOKEN_FACTOR * pair.live_tokens
    return (pair.tokens - allowed) / max(pair.tokens, allowed, 1)


def _usable(pairs: Iterable[ShadowPair]) -> list[ShadowPair]:
    return [pair for pair in pairs if not (pair.failed or pair.live_failed)]


def _samples(terms: Iterable[tuple[int, float]]) -> dict[int, Sample]:
    """Return the sums of the terms of each day."""
    days: dict[int, Sample] = defaultdict(Sample)
    for day, term in terms:
        days[day] += Sample(1, term, term**2)
    return days
