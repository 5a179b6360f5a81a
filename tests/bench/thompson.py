"""Thompson sampling with constant, changing and seasonal rewards, beside Thompson sampling that never forgets.

    python -m tests.bench.thompson [--runs 100]

prints the table of docs/benchmarks.md. The policy is the one of the service (`ml.experiments.thompson`). It learns each
day from the rewards of all days before; in the last column, without those of the day before. Rewards are thus known
after half a day or one and a half on average; a service with a reaction window of 24 hours is half-way between. The
peer is Thompson sampling with Beta posteriors over all rewards since the start, with the same floor (Chapelle & Li, "An
empirical evaluation of Thompson sampling", NeurIPS 2011).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.exploration import FLOOR
from ml.experiments.thompson import HALF_LIFE_DAYS, probability_best

TIPS_PER_DAY = 500
BETA_DRAWS = 2_000

Posterior = Callable[[Floats, Floats, int, np.random.Generator], Floats]
"""Returns the probability of each version to be the best, from n and totals by day, (days, k), and the current day."""


def within_days(half_life_days: float = HALF_LIFE_DAYS) -> Posterior:
    """Return the posterior of the service."""

    def best(n: Floats, totals: Floats, today: int, rng: np.random.Generator) -> Floats:  # noqa: ARG001
        return probability_best(n, totals, 0.5 ** ((today - np.arange(len(n))) / half_life_days))

    return best


def a_day_later(posterior: Posterior) -> Posterior:
    """Return a posterior that does not know the rewards of the last day."""

    def best(n: Floats, totals: Floats, today: int, rng: np.random.Generator) -> Floats:
        return posterior(n[:-1], totals[:-1], today, rng)

    return best


def pooled_beta(n: Floats, totals: Floats, today: int, rng: np.random.Generator) -> Floats:  # noqa: ARG001
    """Return the posterior of the peer: Beta distributions over all rewards since the start."""
    successes, tips = totals.sum(0), n.sum(0)
    drawn = rng.beta(1 + successes, 1 + tips - successes, (BETA_DRAWS, tips.size))
    best: Floats = np.bincount(drawn.argmax(1), minlength=tips.size) / BETA_DRAWS
    return best


def shares(posterior: Posterior, rates: Floats, available: Floats, runs: int, seed: int) -> Floats:
    """Return the share of tips of each version on each day, shape (runs, days, k).

    `rates`, `available`: shape (days, k), the reward rate of each version, and 1 where it is one of the policy's.
    """
    rng = np.random.default_rng(seed)
    days, k = rates.shape
    shown = np.zeros((runs, days, k))
    for run in range(runs):
        totals = np.zeros((days, k))
        for day in range(days):
            versions = np.flatnonzero(available[day])
            best = posterior(shown[run, :day, versions].T, totals[:day, versions], day, rng)
            floor = min(FLOOR, 0.1 / versions.size)
            probabilities = floor + (1 - versions.size * floor) * best
            shown[run, day, versions] = rng.multinomial(TIPS_PER_DAY, probabilities / probabilities.sum())
            totals[day] = rng.binomial(shown[run, day].astype(int), rates[day])
    return shown / TIPS_PER_DAY


def regret(share: Floats, rates: Floats) -> float:
    """Return the expected reward that was lost to the best version of each day, as a share of that of uniform."""
    gaps = rates.max(1, keepdims=True) - rates
    return float((share * gaps).sum(2).mean() / gaps.mean(1).mean())


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """`before`: the regret until the change. `days_to_follow`: from the change until the new best version has half of
    the tips, in the median run. `overall`: the regret of all 180 days."""

    before: float
    days_to_follow: float
    overall: float


def change_of_the_best(posterior: Posterior | None = None, *, runs: int, seed: int) -> ChangeOutcome:
    """Three versions, of which another one becomes the best on day 60 of 180: 20, 22, 27 % and then 27, 22, 20 %."""
    change, days = 60, 180
    rates = np.tile([0.20, 0.22, 0.27], (days, 1))
    rates[change:] = [0.27, 0.22, 0.20]
    share = shares(posterior or within_days(), rates, np.ones_like(rates), runs, seed)
    leads = share[:, change:, 0] >= 1 / 2
    followed = np.where(leads.any(1), leads.argmax(1), days - change)
    return ChangeOutcome(regret(share[:, :change], rates[:change]), float(np.median(followed)), regret(share, rates))


def worse_version_in_a_lift(posterior: Posterior | None = None, *, runs: int, seed: int) -> Floats:
    """Return the mean share of a version 3 points worse, by day since it was added on day 30 of 210.

    It is added on the day on which a lift raises the rates of all versions from 20 by 10 points.
    """
    added, days = 30, 210
    rates = np.tile([0.20, 0.17], (days, 1))
    rates[added:] += 0.10
    available = np.ones_like(rates)
    available[:added, 1] = 0
    share = shares(posterior or within_days(), rates, available, runs, seed)
    mean: Floats = share[:, added:, 1].mean(0)
    return mean


def season(posterior: Posterior | None = None, *, runs: int, seed: int) -> float:
    """Return the regret with three versions and a season of 10 points up and down over 60 days."""
    days = 180
    rates = 0.22 + np.tile([-0.02, 0.0, 0.05], (days, 1)) + 0.1 * np.sin(2 * np.pi * np.arange(days)[:, None] / 60)
    return regret(shares(posterior or within_days(), rates, np.ones_like(rates), runs, seed), rates)


def uniform_regret_share(posterior: Posterior | None = None, *, versions: int, runs: int, seed: int) -> float:
    """Return the regret of 20,000 tips over 40 days: 20, 22, 27 % for three versions; from 15 to 30 % for ten."""
    of_versions = np.array([0.20, 0.22, 0.27]) if versions == 3 else np.linspace(0.15, 0.30, versions)
    rates = np.tile(of_versions, (40, 1))
    return regret(shares(posterior or within_days(), rates, np.ones_like(rates), runs, seed), rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    peers: dict[str, Posterior] = {
        "pooled, never forgets": pooled_beta,
        "within days, 28 days": within_days(),
        "within days, 28 days, a day later": a_day_later(within_days()),
    }
    print("| " + " | ".join([f"{runs} runs", *peers]) + " |")
    print("|---" * (1 + len(peers)) + "|")

    def row(name: str, figure: Callable[[Posterior], str]) -> None:
        print("| " + " | ".join([name, *(figure(posterior) for posterior in peers.values())]) + " |", flush=True)

    for versions in (3, 10):
        row(
            f"regret, % of uniform's: {versions} versions, 20,000 tips",
            lambda posterior, k=versions: f"{uniform_regret_share(posterior, versions=k, runs=runs, seed=1):.1%}",  # type: ignore[misc]
        )
    changes = {name: change_of_the_best(posterior, runs=runs, seed=2) for name, posterior in peers.items()}
    by_posterior = dict(zip(peers.values(), changes.values(), strict=True))
    row("the best version changes on day 60: regret before", lambda p: f"{by_posterior[p].before:.1%}")
    row("days until the new best version has half of the tips", lambda p: f"{by_posterior[p].days_to_follow:.0f}")
    row("regret over all 180 days", lambda p: f"{by_posterior[p].overall:.1%}")
    lifts = {posterior: worse_version_in_a_lift(posterior, runs=runs, seed=3) for posterior in peers.values()}
    row(
        "a version 3 points worse, added during a lift of 10 points: its share after 15, 30, 150 days",
        lambda p: ", ".join(f"{lifts[p][day]:.0%}" for day in (15, 30, 150)),
    )
    row("a season of ± 10 points, 3 versions: regret", lambda p: f"{season(p, runs=runs, seed=4):.1%}")


if __name__ == "__main__":
    main()
