"""Policies against people whose tastes are known: what each of them loses by not knowing those tastes.

In process, with no model and no service, so that many tips take seconds. All policies meet the same visits with the
same luck, and each learns from nothing but what came of its own tips, all of which it knows on the next morning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.policies import POLICIES, selectable_policies
from ml.experiments.ranking import Learner, RankingPolicy
from ml.experiments.statistics import Sample
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.simulation.people import MEAN_PREFERENCES, Progress, Visit, visits

_EQUAL = dict.fromkeys(MEAN_PREFERENCES, 1.0)
_DAY = 86_400.0
"""Seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class PolicyOutcome:
    """What came of a policy over n days.

    `reward`: the mean of all tips. `regret`: shape (n + 1,), from 0 before the first day on, how many more tips up to
    the end of each day would have helped if each person had got the version that their kind likes best. Both count
    expected rewards: they say how well was chosen, not how lucky that was.
    """

    policy: str
    reward: float
    regret: Floats


@dataclass(frozen=True, slots=True)
class RegretComparison:
    """How the `policies` did with so many tips each, and how an oracle would have done, which has no regret."""

    tips: int
    oracle: PolicyOutcome
    policies: tuple[PolicyOutcome, ...]


_Log = Sequence[tuple[Visit, str, float]]
"""The visits of a day, each with the version that was chosen and the reward of its tip."""


class _Policy(Protocol):
    name: str

    def choose(self, today: Sequence[Visit]) -> list[str]:
        """Choose a version for each visit."""

    def learn(self, yesterday: _Log) -> None:
        """Learn what came of what was chosen."""


class _Oracle:
    """Knows what nobody can: each person's kind, and its tastes."""

    name = "oracle"

    def choose(self, today: Sequence[Visit]) -> list[str]:
        return [max(MEAN_PREFERENCES, key=visit.persona.preference) for visit in today]

    def learn(self, yesterday: _Log) -> None:
        pass


class _PromptPolicyPlayer:
    """One of `POLICIES`, with equal weights."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._policy = POLICIES[name]
        self._rewards = dict.fromkeys(MEAN_PREFERENCES, Sample())
        self._distribution = self._policy.distribution(_EQUAL, self._rewards)

    def choose(self, today: Sequence[Visit]) -> list[str]:
        return [self._policy.draw(self._distribution, visit.user_id, visit.id).option for visit in today]

    def learn(self, yesterday: _Log) -> None:
        for _, version, reward in yesterday:
            self._rewards[version] += Sample(1, reward, reward**2)
        self._distribution = self._policy.distribution(_EQUAL, self._rewards)


class _Ranking:
    """Ranks a candidate of each version, and knows no more of it, by a policy that is made and deployed each night."""

    name = "ranking"

    def __init__(self) -> None:
        space = candidate_encoder([*MEAN_PREFERENCES])
        self._candidates = dict(
            zip(
                MEAN_PREFERENCES,
                space.encode_rows([candidate_row(version, None) for version in MEAN_PREFERENCES]),
                strict=True,
            )
        )
        self._learner = Learner(CONTEXT_ENCODER.columns, space.columns)
        self._tips = self._nights = 0
        self._deployed: RankingPolicy | None = None

    def choose(self, today: Sequence[Visit]) -> list[str]:
        contexts = CONTEXT_ENCODER.encode_rows([visit.signals for visit in today])
        return [_drawn(self._weights(context), visit) for context, visit in zip(contexts, today, strict=True)]

    def _weights(self, context: Floats) -> Mapping[str, float]:
        if not self._deployed:
            return _EQUAL
        ranking = self._deployed.rank(context, np.stack([*self._candidates.values()]))
        return dict(zip(self._candidates, ranking.probabilities.tolist(), strict=True))

    def learn(self, yesterday: _Log) -> None:
        contexts = CONTEXT_ENCODER.encode_rows([visit.signals for visit, _, _ in yesterday])
        for context, (_, version, reward) in zip(contexts, yesterday, strict=True):
            self._learner.learn(context, self._candidates[version], reward)
        self._tips += len(yesterday)
        self._nights += 1
        blob = self._learner.policy(
            self.name, versions=[*MEAN_PREFERENCES], learned_from=self._tips, trained_until=_DAY * self._nights
        )
        self._deployed = RankingPolicy.load(blob)


def compare_policies(*, users: int, days: int, seed: int, progress: Progress) -> RegretComparison:
    """Let each policy choose for all who come in `days` days; the same seed gives the same outcomes.

    Raises UnusablePolicyError without the `ranking` extra.
    """
    players: tuple[_Policy, ...] = (
        _Oracle(),
        *(_PromptPolicyPlayer(name) for name in selectable_policies()),
        _Ranking(),
    )
    earned = np.zeros((len(players), days + 1))
    tips = 0
    for day in progress(range(days)):
        today = visits(users, day, seed)
        tips += len(today)
        for player, of_days in zip(players, earned, strict=True):
            chosen = [*zip(today, player.choose(today), strict=True)]
            of_days[day + 1] = sum(visit.persona.preference(version) for visit, version in chosen)
            player.learn([(visit, version, float(visit.helps(version))) for visit, version in chosen])
    total = earned.cumsum(axis=1)
    oracle, *policies = (
        PolicyOutcome(player.name, float(mine[-1]) / max(tips, 1), total[0] - mine)
        for player, mine in zip(players, total, strict=True)
    )
    return RegretComparison(tips, oracle, tuple(policies))


def _drawn(weights: Mapping[str, float], visit: Visit) -> str:
    return draw_weighted(weights, hash_to_unit_interval("regret", visit.id)).option
