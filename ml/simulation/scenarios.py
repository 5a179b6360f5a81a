"""Scenarios: the ways in which traffic differs from the plain world, each of which misled some method of comparison.

To add one, add an entry to `SCENARIOS`. `tips simulate --scenario` runs it through both services, and the benchmark of
verdicts (`tests/bench/truth.py`) runs it in numpy with identical versions.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

UNIFORM, THOMPSON = "uniform", "thompson"  # not imported: the help text needs them without the recommender's packages


def _constant(day: int) -> float:  # noqa: ARG001
    return 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A difference from the plain world.

    `summary`: one clause for help texts. `days`: the default number of days, the first of which is day 0.
    `weights`: from each of these days on, the weight of each version, in the order of TIP_PROMPT_VERSION; a version
    that has no weight yet is not drawn. Empty for the weights of the settings. `policy`: the prompt policy; None for
    that of the settings. `reward_scale`, `reward_shift`: the probability that a tip helps is a user's preference times
    `reward_scale` plus the value of `reward_shift` on that day. `late_reactions`: the share of the reactions that
    are sent one to three days late. `unseen`: for each version, the share of its tips that nobody sees.
    `activity_exponent`: the number of tips of a user is proportional to 1 / rank^`activity_exponent` (Zipf's law); 0 if
    all users are equally active. `preferences_change_on`: the day from which each user has other preferences.
    """

    summary: str
    days: int = 60
    weights: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    policy: str | None = None
    reward_scale: float = 1.0
    reward_shift: Callable[[int], float] = _constant
    late_reactions: float = 0.1
    unseen: tuple[float, ...] = ()
    activity_exponent: float = 0.0
    preferences_change_on: int | None = None

    @property
    def min_days(self) -> int:
        """The number of days after which all changes have happened."""
        return 1 + max([0, *self.weights, self.preferences_change_on or 0])

    @property
    def min_versions(self) -> int:
        """The number of versions without which the scenario would be another one."""
        return 2 if self.weights or self.policy == THOMPSON or self.unseen else 1

    def periods(self, days: int) -> Iterator[tuple[range, tuple[float, ...]]]:
        """Yield each period in which the weights stay the same, as its days, and the weights (empty: the settings')."""
        starts = sorted(day for day in {0, *self.weights} if day < days)
        for start, end in zip(starts, [*starts[1:], days], strict=True):
            yield range(start, end), self.weights.get(start, ())

    def reward_probability(self, preference: float, day: int) -> float:
        """Return the probability that a tip helps a user whose preference for its version is `preference`."""
        return min(max(self.reward_scale * preference + self.reward_shift(day), 0.0), 1.0)

    def unseen_share(self, version: int) -> float:
        """Return the share of the tips that nobody sees, of the version with this index."""
        return self.unseen[version] if version < len(self.unseen) else 0.0


def rising(points: float, days: int) -> Callable[[int], float]:
    """Return a shift that rises from 0 to `points` (a difference of probabilities) in `days` days, and stays there."""
    return lambda day: points * min(day / days, 1.0)


def seasonal(points: float, days: int) -> Callable[[int], float]:
    """Return a shift that moves between -`points` and `points` like a sine, with a period of `days` days."""
    return lambda day: points * math.sin(2 * math.pi * day / days)


PLAIN = "plain"

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        PLAIN: Scenario("nothing changes", days=14),
        "season": Scenario("all rewards rise and fall by 10 points in 60 days", reward_shift=seasonal(0.1, 60)),
        "changed-shares": Scenario(
            "shares change from 90/10 to 50/50 on day 30, while rewards rise by 10 points",
            weights={0: (9, 1), 30: (1, 1)},
            policy=UNIFORM,
            reward_shift=rising(0.1, 60),
        ),
        "late-version": Scenario(
            "a second version is added on day 2", days=14, weights={0: (1,), 2: (1, 1)}, policy=UNIFORM
        ),
        "late-version-in-drift": Scenario(
            "a second version is added on day 30, while rewards rise by 5 points",
            weights={0: (1,), 30: (1, 1)},
            policy=UNIFORM,
            reward_shift=rising(0.05, 60),
        ),
        "thompson": Scenario(
            "Thompson sampling, and a third of the reactions are late", policy=THOMPSON, late_reactions=1 / 3
        ),
        "thompson-in-drift": Scenario(
            "Thompson sampling, a third of the reactions are late, and rewards rise by 10 points",
            policy=THOMPSON,
            late_reactions=1 / 3,
            reward_shift=rising(0.1, 60),
        ),
        "small-arms": Scenario(
            "the first version has a share of 80 %, and few tips help",
            weights={0: (80, 5, 5, 5, 5)},
            policy=UNIFORM,
            reward_scale=0.05,
        ),
        "unseen-tips": Scenario("nobody sees 3 % of the second version's tips", unseen=(0.0, 0.03)),
        "heavy-users": Scenario("few users have most tips (Zipf's law)", days=30, activity_exponent=1.0),
        "changed-preferences": Scenario("users have other preferences from day 30 on", preferences_change_on=30),
    }
)
"""The scenarios by name."""
