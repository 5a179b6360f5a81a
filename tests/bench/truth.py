"""How often verdicts are wrong in each scenario, and how soon they come: `python -m tests.bench.truth [--runs N]`.

All versions are identical, but in the rows on preferences and power. Each run is looked at at the end of every day, and
a run counts once, however many of its looks were wrong. "Pooled means" is the usual method on the same traffic:
`tests.bench.daily_looks.pooled_looks`, or Pearson's chi-square test for the sample ratio.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from ml.experiments.sample_ratio import ALARM_LEVEL, sample_ratio
from ml.simulation.scenarios import SCENARIOS, Scenario
from tests.bench.daily_looks import LEVEL, overlap_looks, pooled_looks
from tests.bench.daily_traffic import Counts, Traffic, draw_traffic

_BATCH = 200
"""Runs that are drawn together, which limits memory."""


@dataclass(frozen=True, slots=True)
class Result:
    """The share of runs, or the median number of days: of this project, and of the usual method."""

    seen: float
    usual: float


def _late_version(day: int) -> Scenario:
    return replace(SCENARIOS["late-version"], weights={0: (1,), day: (1, 1)})


def _at_once(name: str) -> Scenario:
    """Return a scenario without late reactions, so that the effect is not reduced by those after the window."""
    return replace(SCENARIOS[name], late_reactions=0.0)


FALSE_VERDICTS = {
    "plain, 50/50": Traffic(SCENARIOS["plain"], days=60),
    "season of 10 points": Traffic(SCENARIOS["season"], days=90),
    "second version added on day 2": Traffic(_late_version(2), days=60),
    "second version added on day 4": Traffic(_late_version(4), days=60),
    "90/10 to 50/50 on day 30, rewards rise from 20 to 30 %": Traffic(SCENARIOS["changed-shares"], days=90),
    "version added on day 30, rewards rise from 20 to 25 %": Traffic(SCENARIOS["late-version-in-drift"], days=90),
    "Thompson, a third of the reactions late": Traffic(SCENARIOS["thompson"], days=60),
    "the same, rewards rise from 20 to 30 %": Traffic(SCENARIOS["thompson-in-drift"], days=60),
    "five versions at 80/5/5/5/5, rate 1 %": Traffic(SCENARIOS["small-arms"], days=60, versions=5),
    "five versions at 80/5/5/5/5, rate 2 %": Traffic(
        replace(SCENARIOS["small-arms"], reward_scale=0.1), days=60, versions=5
    ),
    "3 % of one version's tips not seen, 100,000 tips": Traffic(SCENARIOS["unseen-tips"], days=80, tips_per_day=1_250),
    "3 % of one version's tips not seen, 400,000 tips": Traffic(SCENARIOS["unseen-tips"], days=80, tips_per_day=5_000),
    "heavy users, each with the same preference for both versions": Traffic(
        SCENARIOS["heavy-users"], days=60, spread=0.15
    ),
}
"""Identical versions: a verdict is false."""

MISSES = {
    "heavy users, each with other preferences: misses the traffic's difference": Traffic(
        SCENARIOS["heavy-users"], days=60, spread=0.15, own_preferences=True
    ),
    "+5 points, -5 points from day 30 on: misses the mean difference": Traffic(
        SCENARIOS["changed-preferences"], days=60, effect=0.05
    ),
}
"""Different versions: the interval must contain the mean difference of the tips so far. Pooled means are read as a
statement about the mean user where users differ."""

POWER = {
    "+2 points at 50/50": (Traffic(_at_once("plain"), days=90, effect=0.02), 33.0),
    "+5 points at 50/50": (Traffic(_at_once("plain"), days=90, effect=0.05), 7.0),
}
"""Traffic, and the bound of the median number of days to a verdict."""

SAMPLE_RATIOS = {
    "sample ratio, 50/50": Traffic(SCENARIOS["plain"], days=90),
    "sample ratio, 90/10 to 50/50 on day 30": Traffic(SCENARIOS["changed-shares"], days=90),
}


def false_verdicts(traffic: Traffic, runs: int, rng: np.random.Generator) -> Result:
    """Return the share of runs with a verdict about any of the identical versions at any look."""
    counts = draw_traffic(traffic, runs, rng)
    ours, usual = (looks(counts).verdicts().any(axis=0).mean() for looks in (overlap_looks, pooled_looks))
    return Result(float(ours), float(usual))


def misses(traffic: Traffic, runs: int, rng: np.random.Generator) -> Result:
    """Return the share of runs in which the interval of any look does not contain the true difference."""
    counts = draw_traffic(traffic, runs, rng)
    ours = overlap_looks(counts)
    usual_truths = counts.user_differences if traffic.own_preferences else ours.truths
    usual = pooled_looks(counts).misses(usual_truths)
    return Result(float(ours.misses(ours.truths).any(axis=0).mean()), float(usual.any(axis=0).mean()))


def median_days(traffic: Traffic, runs: int, rng: np.random.Generator) -> Result:
    """Return the median number of days of mature tips at the first verdict; infinite if most runs have none."""
    counts = draw_traffic(traffic, runs, rng)
    medians = []
    for looks in (overlap_looks, pooled_looks):
        verdicts = looks(counts).verdicts()
        medians.append(float(np.median(np.where(verdicts.any(axis=0), verdicts.argmax(axis=0), np.inf))))
    return Result(*medians)


def sample_ratio_alarms(traffic: Traffic, runs: int, rng: np.random.Generator) -> Result:
    """Return the share of runs in which the test of assignments alarms at any look, though nothing is lost."""
    counts = draw_traffic(traffic, runs, rng)
    observed, expected = counts.tips.cumsum(axis=0), (counts.propensities * traffic.tips_per_day).cumsum(axis=0)
    statistic = ((observed - expected) ** 2 / expected).sum(axis=2)
    chi_square = special.chdtrc(traffic.versions - 1, statistic) < ALARM_LEVEL
    alarms = [_alarms(counts.tips[:, run], counts.propensities[:, run]) for run in range(runs)]
    return Result(float(np.mean(alarms)), float(chi_square.any(axis=0).mean()))


def _alarms(tips: Counts, propensities: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Return whether one run has an alarm at any look. Tips under equal distributions are added up."""
    so_far: dict[tuple[float, ...], Counts] = {}
    for of_day, tips_of_day in zip(propensities.tolist(), tips, strict=True):
        so_far[tuple(of_day)] = so_far.get(tuple(of_day), np.zeros_like(tips_of_day)) + tips_of_day
        strata = (
            ({str(v): p for v, p in enumerate(options)}, {str(v): n for v, n in enumerate(drawn.tolist())})
            for options, drawn in so_far.items()
        )
        if sample_ratio(strata).alarm:
            return True
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="runs of each row; ten times as many of sample ratios")
    runs = parser.parse_args(arguments).runs
    print("| scenario | bound | seen | runs | pooled means |\n|---|---|---|---|---|")
    for method, rows in ((false_verdicts, FALSE_VERDICTS), (misses, MISSES)):
        for name, traffic in rows.items():
            parts = [method(traffic, size, rng) for size, rng in _batches(runs)]
            _print_shares(name, LEVEL, parts, runs)
    for name, traffic in SAMPLE_RATIOS.items():
        parts = [sample_ratio_alarms(traffic, size, rng) for size, rng in _batches(10 * runs)]
        _print_shares(name, ALARM_LEVEL, parts, 10 * runs)
    for name, (traffic, bound) in POWER.items():
        days = median_days(traffic, runs, np.random.default_rng(1))
        print(f"| {name}: median days to a verdict | {bound:.0f} | {days.seen:.0f} | {runs:,} | {days.usual:.0f} |")


def _batches(runs: int) -> list[tuple[int, np.random.Generator]]:
    sizes = [min(_BATCH, runs - start) for start in range(0, runs, _BATCH)]
    return [*zip(sizes, np.random.default_rng(1).spawn(len(sizes)), strict=True)]


def _print_shares(name: str, bound: float, parts: Sequence[Result], runs: int) -> None:
    sizes = [size for size, _ in _batches(runs)]
    seen, usual = (np.average([getattr(part, field) for part in parts], weights=sizes) for field in ("seen", "usual"))
    digits = 1 if bound >= 0.01 else 2
    print(f"| {name} | {bound:.1%} | {seen:.{digits}%} | {runs:,} | {usual:.1%} |", flush=True)


if __name__ == "__main__":
    main()
