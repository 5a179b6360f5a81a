"""How often guardrails roll back falsely, and how soon rightly: `python -m tests.bench.guardrails [--runs N]`.

Each run is looked at once an hour, at all mature tips so far. A run counts once, however many of its looks were wrong.
"z-test" is the usual method on the same traffic: a one-sided test of the pooled means at 5 %, at every look with at
least 30 tips of each version.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from ml.experiments.arrays import Floats
from ml.experiments.comparison import Stratum, sum_pair
from ml.experiments.confidence_sequence import boundary
from ml.experiments.failure_excess import _ODDS_RATIOS, failure_excess
from ml.experiments.guardrails import (
    HARM_ALPHA,
    RARE_HARM_ALPHA,
    TUNED_AT,
    OneSidedLimits,
    difference_limits,
    slice_results,
    tips_to_detect,
)
from ml.experiments.shadow_pairs import ShadowPair, excess_tokens, slow_difference, unusable_difference
from ml.experiments.statistics import Sample
from ml.rollouts.gate_settings import GateSettings

RAMP = (0.01, 0.05, 0.25, 0.5)
MAX_TIPS = 5_000
"""Mature tips of both versions within which the harm of the first row of `HARMS` must be found."""
SLICE_TIPS = (1, 1, 2, 3, 5, 10, 20, 40, 80, 120)
"""The tips an hour of ten slices."""

_MIN_TIPS, _CRITICAL_VALUE = 30, 1.6449
_PAIRS_PER_DAY = 250
_BATCH = 200
"""Runs that are drawn together, which limits memory."""

Found = npt.NDArray[np.bool_]
Harm = Literal["lower", "higher"]
Rule = Callable[["HourlyCounts", Harm], Found]


@dataclass(frozen=True, slots=True)
class Traffic:
    """A champion and a canary whose rewards and shares change in time.

    `champion`: the mean reward of the champion in the first and in the last hour, linear in between. `effect`: what the
    canary's adds to it. `shares`: of the canary, each for an equal part of the time. `harm`: whether a lower or a
    higher reward is the harm: higher if a reward of 1 says that a tip is unusable. `earlier_tips`: those of the
    champion on the day before the first hour, which give the first day a centre.
    """

    champion: tuple[float, float] = (0.23, 0.23)
    effect: float = 0.0
    shares: tuple[float, ...] = (0.1,)
    harm: Harm = "lower"
    hours: int = 1_000
    tips_per_hour: int = 20
    earlier_tips: int = 480


@dataclass(frozen=True, slots=True)
class HourlyCounts:
    """The tips of many runs, and those with a reward of 1, each of the shape (hours, runs, 2): champion and canary.

    `shares`: shape (hours,), of the canary. `earlier`: shape (runs, 2), the tips of the day before, and the rewards.
    """

    shares: Floats
    earlier: npt.NDArray[np.int64]
    tips: npt.NDArray[np.int64]
    rewarded: npt.NDArray[np.int64]


EQUAL = {
    "23 % against 23 %, share 10 %": Traffic(),
    "the same, 60,000 tips": Traffic(hours=3_000),
    "both rise from 20 to 30 %": Traffic(champion=(0.2, 0.3)),
    "share of 1, 5, 25, 50 %": Traffic(shares=RAMP),
    "the same, and both fall from 30 to 20 %": Traffic(champion=(0.3, 0.2), shares=RAMP),
    "unusable: 2 % against 2 %, share 10 %": Traffic(champion=(0.02, 0.02), harm="higher"),
    "unusable: 2 % against 2 %, share of 1, 5, 25, 50 %": Traffic(champion=(0.02, 0.02), shares=RAMP, harm="higher"),
}
"""Equal versions over 20,000 tips unless stated: a rollback is false."""

HARMS = {
    "23 % against 15 %, share 10 %": Traffic(effect=-0.08),
    "the same, no tips on the day before": Traffic(effect=-0.08, earlier_tips=0),
    "the same, 6,000 tips a day": Traffic(effect=-0.08, hours=96, tips_per_hour=250),
    "the same, 6,000 tips a day, none on the day before": Traffic((0.23, 0.23), -0.08, (0.1,), "lower", 96, 250, 0),
    "23 % against 15 %, share 50 %": Traffic(effect=-0.08, shares=(0.5,)),
    "23 % against 18 %, share 10 %": Traffic(effect=-0.05, hours=1_500),
    "unusable: 2 % against 20 %, share 10 %": Traffic((0.02, 0.02), 0.18, harm="higher"),
    "unusable: 2 % against 20 %, share 1 %": Traffic((0.02, 0.02), 0.18, (0.01,), harm="higher"),
    "unusable: 2 % against 100 %, share 1 %": Traffic((0.02, 0.02), 0.98, (0.01,), harm="higher"),
    "unusable: 2 % against 4 %, share 10 %": Traffic((0.02, 0.02), 0.02, harm="higher", hours=2_500),
}


def draw_traffic(traffic: Traffic, runs: int, rng: np.random.Generator) -> HourlyCounts:
    """Draw `runs` independent runs of the traffic."""
    shares = np.repeat(traffic.shares, -(-traffic.hours // len(traffic.shares)))[: traffic.hours]
    canary = rng.binomial(traffic.tips_per_hour, shares[:, None], (traffic.hours, runs))
    tips = np.stack([traffic.tips_per_hour - canary, canary], axis=2)
    champion = np.linspace(*traffic.champion, traffic.hours)
    rates = np.stack([champion, champion + traffic.effect], axis=1)
    earlier = np.full(runs, traffic.earlier_tips)
    earlier = np.stack([earlier, rng.binomial(earlier, traffic.champion[0])], axis=1)
    return HourlyCounts(shares, earlier, tips, rng.binomial(tips, rates[:, None]))


def rollbacks(counts: HourlyCounts, harm: Harm, *, alpha: float = HARM_ALPHA) -> Found:
    """Return in which looks `difference_limits` says that the canary does harm, shape (hours, runs)."""
    effect, squares, overlap = _sums(counts)
    half_widths = boundary(squares, alpha=alpha, tuned_at=TUNED_AT)
    lows, highs = (effect - half_widths) / overlap, (effect + half_widths) / overlap
    for run in range(0, counts.tips.shape[1], 20):
        _require_the_same_limits(counts, run, lows[-1, run], highs[-1, run], alpha)
    found: Found = highs < 0 if harm == "lower" else lows > 0
    return found


def _sums(counts: HourlyCounts) -> tuple[Floats, Floats, Floats]:
    """Return the cumulative sums of the terms, of their squares and of the overlap, each of shape (hours, runs)."""
    hours, runs, _ = counts.tips.shape
    q = counts.shares[:, None]
    centres = np.zeros((hours, runs))
    centres[:24] = counts.earlier[:, 1] / np.maximum(counts.earlier[:, 0], 1)
    for start in range(24, hours, 24):
        day = slice(start - 24, start)
        centres[start : start + 24] = counts.rewarded[day].sum(axis=(0, 2)) / counts.tips[day].sum(axis=(0, 2))
    effect, squares = np.zeros((2, hours, runs))
    for version, weight in enumerate((-q, 1 - q)):
        n, good = counts.tips[:, :, version], counts.rewarded[:, :, version]
        effect += weight * (good - n * centres)
        squares += weight**2 * (good * (1 - centres) ** 2 + (n - good) * centres**2)
    overlap = (counts.tips.sum(axis=2) * q * (1 - q)).cumsum(axis=0)
    return effect.cumsum(axis=0), squares.cumsum(axis=0), overlap


def excess_rollbacks(counts: HourlyCounts, harm: Harm) -> Found:
    """Return in which looks the guardrail of unusable tips rolls back, shape (hours, runs).

    As in the gates, `failure_excess` says that the canary fails more often, and the estimated difference is above the
    bound.
    """
    effect, _, overlap = _sums(counts)
    is_large: Found = effect > GateSettings().max_unusable * overlap
    return failure_alarms(counts, harm, alpha=RARE_HARM_ALPHA) & is_large


def failure_alarms(counts: HourlyCounts, harm: Harm, *, alpha: float = HARM_ALPHA) -> Found:
    """Return in which looks `failure_excess` says that the canary fails more often, shape (hours, runs)."""
    if harm != "higher":
        raise ValueError("rewards must say that a tip failed")
    by_hour = np.log1p(counts.shares[:, None] * (_ODDS_RATIOS - 1))
    failed = counts.rewarded[:, :, :, None]
    log_likelihoods = failed[:, :, 1] * np.log(_ODDS_RATIOS) - failed.sum(axis=2) * by_hour[:, None]
    log_e = special.logsumexp(log_likelihoods.cumsum(axis=0), axis=2) - np.log(_ODDS_RATIOS.size)
    for run in range(0, counts.tips.shape[1], 20):
        p_value = failure_excess(strata_of(counts, run), "0", "1").p_value
        if not np.isclose(p_value, np.exp(min(0.0, -log_e[-1, run]))):
            raise AssertionError(f"the test has the p-value {p_value}, unlike in the simulation")
    found: Found = log_e > -np.log(alpha)
    return found


def strata_of(counts: HourlyCounts, run: int) -> list[Stratum]:
    """Return the strata of one run: the champion is "0", and the canary is "1"."""
    strata = []
    for hour, share in enumerate(counts.shares.tolist()):
        for version in range(2):
            good = float(counts.rewarded[hour, run, version])
            sample = Sample(int(counts.tips[hour, run, version]), good, good)
            strata.append(Stratum(hour // 24, {"0": 1 - share, "1": share}, str(version), sample))
    return strata


def _require_the_same_limits(counts: HourlyCounts, run: int, low: float, high: float, alpha: float) -> None:
    """Raise AssertionError if `difference_limits` gives other limits for all hours of a run."""
    n, good = counts.earlier[run].tolist()
    earlier = Stratum(-1, {"0": 1.0}, "0", Sample(n, good, good))
    limits = difference_limits(sum_pair(strata_of(counts, run), "0", "1", earlier=[earlier]), alpha=alpha)
    if limits is None or not np.allclose([limits.low, limits.high], np.clip([low, high], -1, 1), rtol=0, atol=1e-9):
        raise AssertionError(f"the guardrail has the limits {limits}, and the simulation {low}, {high}")


def z_tests(counts: HourlyCounts, harm: Harm) -> Found:
    """Return in which looks a one-sided z-test of the pooled means says that the canary does harm."""
    n, good = counts.tips.cumsum(axis=0), counts.rewarded.cumsum(axis=0)
    pooled = good.sum(axis=2) / n.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = good / n
        z = (means[:, :, 1] - means[:, :, 0]) / np.sqrt(pooled * (1 - pooled) * (1 / n).sum(axis=2))
    is_harm = z < -_CRITICAL_VALUE if harm == "lower" else z > _CRITICAL_VALUE
    found: Found = is_harm & (n.min(axis=2) >= _MIN_TIPS)
    return found


def tips_until_found(traffic: Traffic, runs: int, rng: np.random.Generator, rule: Rule = rollbacks) -> Floats:
    """Return the tips at the first rollback of each run, shape (runs,); infinite without one."""
    found = rule(draw_traffic(traffic, runs, rng), traffic.harm)
    return np.where(found.any(axis=0), (found.argmax(axis=0) + 1) * float(traffic.tips_per_hour), np.inf)


def planned_tips(traffic: Traffic) -> int | None:
    """Return what `tips_to_detect` says about the traffic; unusable tips are a harm of the usable ones."""
    baseline, harmed = traffic.champion[0], traffic.champion[0] + traffic.effect
    if traffic.harm == "higher":
        baseline, harmed = 1 - baseline, 1 - harmed
    return tips_to_detect(baseline, harmed, traffic.shares[0])


def harmed_slices(runs: int, rng: np.random.Generator, *, hours: int = 720) -> tuple[Found, Found]:
    """Return which runs of equal versions ever had a "harmed" slice, and by a z-test, each of shape (runs,)."""
    traffic = Traffic(hours=hours, earlier_tips=0)
    slices = [draw_traffic(replace(traffic, tips_per_hour=tips), runs, rng) for tips in SLICE_TIPS]
    found = [rollbacks(counts, traffic.harm, alpha=HARM_ALPHA / len(SLICE_TIPS)) for counts in slices]
    named = {str(tips): strata_of(counts, 0) for tips, counts in enumerate(slices)}
    statuses = [result.status for result in slice_results(named, "0", "1", alpha=HARM_ALPHA, margin=0.05)]
    if [status == "harmed" for status in statuses] != [bool(looks[-1, 0]) for looks in found]:
        raise AssertionError(f"the slices are {statuses}, unlike in the simulation")
    tests = [z_tests(counts, traffic.harm) for counts in slices]
    return np.any(np.stack(found), axis=(0, 1)), np.any(np.stack(tests), axis=(0, 1))


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version in shadow, relative to a live one that fails for 1 % of tips.

    Times to write a tip are log-normal, with a 95th percentile of twice their median.
    """

    unusable: float = 0.01
    slowness: float = 1.0
    tokens: float = 1.0


SHADOWS = {
    "equal": Shadow(),
    "1 % more unusable": Shadow(unusable=0.02),
    "10 % slower, 20 % more tokens": Shadow(slowness=1.1, tokens=1.2),
    "at all bounds: 5 % more unusable, 5 % more slow, 1.5 times the tokens": Shadow(0.06, 1.32, 1.5),
}


def draw_pairs(shadow: Shadow, pairs: int, rng: np.random.Generator) -> list[ShadowPair]:
    """Draw pairs of a live tip and a tip in shadow, 250 a day. Their lengths vary by a third around 600 tokens."""
    live_failed, failed = rng.random((2, pairs)) < np.array([[0.01], [shadow.unusable]])
    ms = 1_500 * np.exp(rng.normal(0, np.log(2) / 1.6449, (2, pairs))) * np.array([[1], [shadow.slowness]])
    tokens = rng.integers(400, 801, (2, pairs)) * np.array([[1], [shadow.tokens]])
    return [
        ShadowPair(number // _PAIRS_PER_DAY, *live, *own)
        for number, (live, own) in enumerate(
            zip(
                zip(live_failed.tolist(), ms[0].astype(int).tolist(), tokens[0].astype(int).tolist(), strict=True),
                zip(failed.tolist(), ms[1].astype(int).tolist(), tokens[1].astype(int).tolist(), strict=True),
                strict=True,
            )
        )
    ]


def passes(pairs: Sequence[ShadowPair]) -> tuple[bool, bool, bool]:
    """Return whether the pairs pass gates of at most 5 % more unusable and slow tips, and of `TOKEN_FACTOR`."""

    def below(limits: OneSidedLimits | None, bound: float) -> bool:
        return limits is not None and limits.high < bound

    return (
        below(unusable_difference(pairs), 0.05),
        below(slow_difference(pairs), 0.05),
        below(excess_tokens(pairs), 0.0),
    )


def passed(shadow: Shadow, looks: Sequence[int], runs: int, rng: np.random.Generator) -> Floats:
    """Return the shares of runs that pass the gates on unusable tips, slow tips and tokens at any of the looks."""
    results = []
    for _ in range(runs):
        pairs = draw_pairs(shadow, max(looks), rng)
        results.append(np.any([passes(pairs[:look]) for look in looks], axis=0))
    shares: Floats = np.mean(results, axis=0)
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="runs of each row")
    runs = parser.parse_args(arguments).runs
    print("| equal versions | bound | rolled back | by failures | runs | z-test |\n|---|---|---|---|---|---|")
    for name, traffic in EQUAL.items():
        parts: list[Sequence[Found]] = []
        rules = [rollbacks, z_tests, *([excess_rollbacks] if traffic.harm == "higher" else [])]
        for size, rng in _batches(runs):
            counts = draw_traffic(traffic, size, rng)
            parts.append([np.any(rule(counts, traffic.harm), axis=0) for rule in rules])
        _print_row(name, parts, runs)
    _print_row('ten slices, 200,000 tips: any "harmed"', [harmed_slices(*batch) for batch in _batches(runs)], runs)
    print("\n| harm | planned | found: half of runs | 90 % of runs | within 5,000 tips |\n|---|---|---|---|---|")
    for name, traffic in HARMS.items():
        _print_harm(name, f"{planned_tips(traffic) or 0:,}", traffic, runs, rollbacks)
        if traffic.harm == "higher":
            _print_harm("the same, by failures", "", traffic, runs, excess_rollbacks)
    print("\n| shadow | pairs | unusable | slow | tokens |\n|---|---|---|---|---|")
    for name, shadow in SHADOWS.items():
        for looks in ([500], [1_000]) if shadow.unusable < 0.05 else (range(100, 2_001, 100),):
            shares = passed(shadow, looks, runs // 5, np.random.default_rng(1))
            print(f"| {name} | {max(looks):,} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


def _batches(runs: int) -> list[tuple[int, np.random.Generator]]:
    sizes = [min(_BATCH, runs - start) for start in range(0, runs, _BATCH)]
    return [*zip(sizes, np.random.default_rng(1).spawn(len(sizes)), strict=True)]


def _print_row(name: str, parts: Sequence[Sequence[Found]], runs: int) -> None:
    ours, usual, *failures = (f"{np.concatenate(method).mean():.1%}" for method in zip(*parts, strict=True))
    print(f"| {name} | {HARM_ALPHA:.0%} | {ours} | {' '.join(failures)} | {runs:,} | {usual} |", flush=True)


def _print_harm(name: str, planned: str, traffic: Traffic, runs: int, rule: Rule) -> None:
    tips = np.concatenate([tips_until_found(traffic, size, rng, rule) for size, rng in _batches(runs)])
    half, most = np.quantile(tips, [0.5, 0.9], method="higher")
    print(f"| {name} | {planned} | {half:,.0f} | {most:,.0f} | {(tips <= MAX_TIPS).mean():.1%} |", flush=True)


if __name__ == "__main__":
    main()
