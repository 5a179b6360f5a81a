"""Many runs of a scenario as daily counts, in numpy: tips, and the reactions that are known at the end of each day."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml.experiments.arrays import Floats
from ml.experiments.assignment import normalised
from ml.experiments.policies import POLICIES, UNIFORM
from ml.experiments.statistics import Sample
from ml.experiments.thompson import RewardHistory
from ml.simulation.scenarios import Scenario

Counts = npt.NDArray[np.int64]

_REACTION_IF_NOT_HELPFUL = 0.4
_LATE_BY_DAYS = np.array([0.25, 0.5, 0.25])
"""Of the late reactions, those that are received one, two and three days after the day of the tip: reactions are one to
three days late, and tips are spread evenly over their day."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A scenario and the numbers that it leaves open.

    `rate`: the preference of the mean user for every version. `effect`: what the last version adds to it.
    `spread`: the standard deviation of the preferences of users; `own_preferences`: whether a user has another
    preference for each version, or the same for all.
    """

    scenario: Scenario
    days: int
    tips_per_day: int = 500
    versions: int = 2
    rate: float = 0.2
    effect: float = 0.0
    users: int = 500
    spread: float = 0.0
    own_preferences: bool = False


@dataclass(frozen=True, slots=True)
class DailyCounts:
    """The counts of many runs, each of the shape (days, runs, versions).

    `propensities`: of each version. `tips`, `seen`: the numbers of tips. `rewarded`: the seen tips with a helpful
    reaction within the window of one day. `late`: shape (days, 3, runs, versions), those whose reaction arrives one,
    two and three days later. `reacted`: the tips with any reaction on the same day. `differences`: shape (days, runs),
    the true difference of the mean rewards of the first two versions in the tips of the day. `user_differences`: shape
    (runs,), the mean of the true differences of all users.
    """

    propensities: Floats
    tips: Counts
    seen: Counts
    rewarded: Counts
    late: Counts
    reacted: Counts
    differences: Floats
    user_differences: Floats


def draw_traffic(traffic: Traffic, runs: int, rng: np.random.Generator) -> DailyCounts:
    """Draw `runs` independent runs of the traffic."""
    scenario, k = traffic.scenario, traffic.versions
    shape = traffic.days, runs, k
    tips, seen, rewarded, reacted = np.zeros((4, *shape), np.int64)
    counts = DailyCounts(
        propensities=np.zeros(shape),
        tips=tips,
        seen=seen,
        rewarded=rewarded,
        late=np.zeros((traffic.days, 3, runs, k), np.int64),
        reacted=reacted,
        differences=np.zeros((traffic.days, runs)),
        user_differences=np.zeros(runs),
    )
    policy = _Policy(scenario, k, runs)
    activity = np.arange(1, traffic.users + 1) ** -scenario.activity_exponent
    preferences = _preferences(traffic, runs, rng)
    unseen = np.array([scenario.unseen_share(version) for version in range(k)])
    counts.user_differences[:] = (preferences[:, :, 1] - preferences[:, :, 0]).mean(axis=1)
    for day in range(traffic.days):
        counts.propensities[day] = policy.propensities(day, counts)
        if scenario.preferences_change_on == day:
            preferences = preferences[:, :, ::-1]
        rewards = np.clip(scenario.reward_scale * preferences + scenario.reward_shift(day), 0, 1)
        visits = rng.multinomial(traffic.tips_per_day, activity / activity.sum(), size=runs)
        if preferences.shape[1] == 1:  # users do not differ
            visits = np.full((runs, 1), traffic.tips_per_day)
        tips_of_users = rng.multinomial(visits, counts.propensities[day][:, None, :])
        seen_by_users = rng.binomial(tips_of_users, 1 - unseen)
        helpful = rng.binomial(seen_by_users, rewards).sum(axis=1)
        tips[day], seen[day] = tips_of_users.sum(axis=1), seen_by_users.sum(axis=1)
        counts.rewarded[day] = rng.binomial(helpful, 1 - scenario.late_reactions)
        counts.late[day] = np.moveaxis(rng.multinomial(helpful - counts.rewarded[day], _LATE_BY_DAYS), -1, 0)
        not_helpful = rng.binomial(counts.seen[day] - helpful, _REACTION_IF_NOT_HELPFUL * (1 - scenario.late_reactions))
        counts.reacted[day] = counts.rewarded[day] + not_helpful
        difference = (rewards[:, :, 1] - rewards[:, :, 0]) * (1 - scenario.late_reactions)
        counts.differences[day] = (visits * difference).sum(axis=1) / traffic.tips_per_day
    return counts


def received_by(counts: DailyCounts, day: int, end: int) -> Counts:
    """Return the helpful tips of a day that are known at the end of the day `end`, shape (runs, versions)."""
    received: Counts = counts.rewarded[day] + counts.late[day, : max(end - day, 0)].sum(axis=0)
    return received


def _preferences(traffic: Traffic, runs: int, rng: np.random.Generator) -> Floats:
    """Return the preferences of users, shape (runs, users or 1, versions); from Beta distributions if they differ."""
    if traffic.spread:
        size = traffic.rate * (1 - traffic.rate) / traffic.spread**2 - 1
        drawn = traffic.versions if traffic.own_preferences else 1
        values = rng.beta(traffic.rate * size, (1 - traffic.rate) * size, (runs, traffic.users, drawn))
        preferences = np.repeat(values, traffic.versions // drawn, axis=2)
    else:
        preferences = np.full((runs, 1, traffic.versions), traffic.rate)
    preferences[:, :, -1] += traffic.effect
    return preferences


class _Policy:
    """The prompt policy of the scenario in each run, with the weights of each day; it learns once a day."""

    def __init__(self, scenario: Scenario, versions: int, runs: int) -> None:
        self._policy = POLICIES[scenario.policy or UNIFORM]
        self._weights = dict(scenario.weights) or {0: (1.0,) * versions}
        self._versions = versions
        self._histories: list[dict[int, Mapping[str, Sample]]] = [defaultdict(dict) for _ in range(runs)]

    def propensities(self, day: int, counts: DailyCounts) -> Floats:
        """Return the propensities on a day, shape (runs, versions) or (versions,)."""
        weights = self._weights[max(start for start in self._weights if start <= day)]
        weights += (0,) * (self._versions - len(weights))
        by_name = {str(version): weight for version, weight in enumerate(weights) if weight}
        if not self._policy.learns:
            shares = normalised(by_name)
            return np.array([shares.get(str(version), 0.0) for version in range(self._versions)])
        # Mature at the start of a day: the tips of all days but the last.
        for mature in range(max(0, day - 5), day - 1):
            totals = received_by(counts, mature, day - 1)
            for history, n_of_run, totals_of_run in zip(
                self._histories, counts.tips[mature].tolist(), totals.tolist(), strict=True
            ):
                history[mature] = {
                    str(version): Sample(n, total, total)
                    for version, (n, total) in enumerate(zip(n_of_run, totals_of_run, strict=True))
                }
        return np.array(
            [
                [*self._policy.distribution(by_name, RewardHistory(history, today=day)).values()]
                for history in self._histories
            ]
        )
