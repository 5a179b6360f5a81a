"""How often `gain_sequence` is wrong, and how often it finds a gain: `python -m tests.bench.evaluation [--runs N]`.

All versions are identical, but in the rows on power. Each run is looked at at the end of every day, and counts once,
however many of its looks are wrong. Two rows of small logs also show how often the single-look estimate is accepted and
differs. The live policies are uniform, weighted, or Thompson sampling (normal approximation, updated every day).
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy import special

from ml.experiments.arrays import Floats, Integers
from ml.experiments.evaluation import sndr
from ml.experiments.gain_sequence import gain_sequence
from ml.experiments.off_policy_log import Log
from ml.experiments.off_policy_sums import OffPolicySums
from ml.experiments.reward_model import RewardModel, cross_fitted_means, running_means

_FLOOR = 0.02
_USERS = 300


@dataclass(frozen=True, slots=True)
class Traffic:
    """Decisions between two versions.

    `share`, `target_share`: the propensity of the second version, None for Thompson sampling, and the target's
    probability of it. `rate`, `drift`, `effect`: the mean reward of the first version on the first day, its change
    until the last day, and what the second version adds. `zipf`: the number of a user's decisions is proportional to
    1 / rank, and users differ in their mean reward.
    """

    share: float | None = 0.5
    target_share: float = 1.0
    rate: float = 0.2
    drift: float = 0.0
    effect: float = 0.0
    zipf: bool = False
    days: int = 60
    per_day: int = 200


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """One log: rewards, drawn versions and users of shape (n,), and distributions of shape (n, 2)."""

    rewards: Floats
    drawn: Integers
    users: Integers
    logging: Floats
    target: Floats


IDENTICAL = {
    "uniform": Traffic(),
    "uniform, heavy users": Traffic(zipf=True),
    "uniform, rate 1 %": Traffic(rate=0.01),
    "uniform, rewards rise from 20 to 30 %": Traffic(drift=0.1),
    "95/5": Traffic(share=0.05),
    "95/5, rate 2 %": Traffic(share=0.05, rate=0.02),
    "Thompson": Traffic(share=None),
    "Thompson, heavy users": Traffic(share=None, zipf=True),
    "Thompson, rewards rise from 20 to 30 %": Traffic(share=None, drift=0.1),
    "3 tips of the target among 300": Traffic(share=0.01, days=1, per_day=300),
    "5 tips of the target among 1,000": Traffic(share=0.005, days=1, per_day=1_000),
    "3 tips among 300, for a target with twice as many": Traffic(share=0.01, target_share=0.02, days=1, per_day=300),
}
"""Without a difference: a difference that is found is false."""

BETTER = {"uniform, +5 points, 20,000 decisions": Traffic(effect=0.05, days=40, per_day=500)}
SMALL = [name for name in IDENTICAL if "tips" in name]


def draw_decisions(traffic: Traffic, rng: np.random.Generator) -> Decisions:
    """Return one random log."""
    activity = 1 / np.arange(1, _USERS + 1) if traffic.zipf else np.ones(_USERS)
    user_effects = rng.uniform(-0.15, 0.15, _USERS) if traffic.zipf else np.zeros(_USERS)
    counts, earned = np.full(2, 2.0), np.full(2, 1.0)  # two pseudo-observations of each version
    parts = []
    for day in range(traffic.days):
        share = traffic.share if traffic.share is not None else _share_of_second(counts, earned)
        users = rng.choice(_USERS, traffic.per_day, p=activity / activity.sum())
        drawn = (rng.random(traffic.per_day) < share).astype(np.intp)
        rate = traffic.rate + traffic.drift * day / max(traffic.days - 1, 1) + user_effects[users]
        rewards = (rng.random(traffic.per_day) < rate + traffic.effect * drawn).astype(np.float64)
        counts += np.bincount(drawn, minlength=2)
        earned += np.bincount(drawn, weights=rewards, minlength=2)
        parts.append((rewards, drawn, users, np.tile([1 - share, share], (traffic.per_day, 1))))
    rewards, drawn, users, logging = (np.concatenate(each) for each in zip(*parts, strict=True))
    target = np.tile([1 - traffic.target_share, traffic.target_share], (rewards.size, 1))
    return Decisions(rewards, drawn, users, logging, target)


def _share_of_second(counts: Floats, earned: Floats) -> float:
    means = earned / counts
    error = np.sqrt((means * (1 - means) / counts).sum())
    return float(_FLOOR + (1 - 2 * _FLOOR) * special.ndtr((means[1] - means[0]) / error))


def differs(traffic: Traffic, log: Decisions, *, with_model: bool = True) -> bool:
    """Return whether any daily interval of the gain excludes the 0."""
    means = running_means(log.rewards, log.drawn, n_options=2)
    model = RewardModel(log.drawn, means if with_model else np.zeros_like(means), log.target)
    looks = range(traffic.per_day, log.rewards.size + 1, traffic.per_day)
    intervals = gain_sequence(log.rewards, log.logging, model, looks=looks)
    return any(interval.low > 0 or interval.high < 0 for interval in intervals)


def differs_at_single_look(log: Decisions) -> bool:
    """Return whether the single-look estimate is accepted, and the interval of its gain excludes 0."""
    means = cross_fitted_means(log.rewards, log.drawn, log.users % 5, n_options=2)
    off_policy = Log.from_policies(log.rewards, log.drawn, log.logging, log.target, log.users)
    return sndr(OffPolicySums.of(off_policy, RewardModel(log.drawn, means, log.target))).gain_excludes_zero


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("| scenario | limit | seen | runs |", "|---|---|---|---|", sep="\n")
    for name, traffic in (IDENTICAL | BETTER).items():
        rng = np.random.default_rng(7)
        logs = [draw_decisions(traffic, rng) for _ in range(runs)]
        limit = "at least 80 %" if name in BETTER else "at most 5 %"
        for label, with_model in (("", True), (", without a model", False)):
            found = np.mean([differs(traffic, log, with_model=with_model) for log in logs])
            print(f"| {name}{label} | {limit} | {found:.1%} | {runs} |", flush=True)
        if name in SMALL:
            found = np.mean([differs_at_single_look(log) for log in logs])
            print(f"| {name}, single look | {limit} | {found:.1%} | {runs} |", flush=True)


if __name__ == "__main__":
    main()
