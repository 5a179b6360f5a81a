"""The regret of policies on simulated users, whose preferences are known.

It runs in process, without a language model or a service, so that thousands of tips take seconds. All policies get the
same visits with the same random numbers. Each policy learns from the rewards of its own tips only, all of which are
known on the next day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.linear import DayAdjustedStatistics
from ml.experiments.policies import POLICIES, SALT, comparable_policies
from ml.experiments.regression_statistics import RegressionStatistics
from ml.experiments.statistics import Sample
from ml.experiments.thompson import RewardHistory
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.pipelines.training import fit_policy
from ml.registry.artifacts import RankingPolicy
from ml.simulation.people import Progress, Visit, visits

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class PolicyOutcome:
    """The outcome of a policy over n days.

    `reward`: the mean expected reward of all tips. `regret`: shape (n + 1,), the cumulative expected reward that was
    lost up to the end of each day, starting with 0, compared with the prompt version that each user's persona prefers.
    Both use expected rewards, so they measure the choices and not chance.
    """

    policy: str
    reward: float
    regret: Floats


@dataclass(frozen=True, slots=True)
class RegretComparison:
    """The outcomes of the `policies` with `tips` tips each, and that of an oracle, which has no regret."""

    tips: int
    oracle: PolicyOutcome
    policies: tuple[PolicyOutcome, ...]


def compare_policies(
    versions: Sequence[str], *, users: int, days: int, seed: int, progress: Progress
) -> RegretComparison:
    """Simulate each policy for all users over `days` days; the same seed gives the same outcomes.

    `versions`: the prompt versions that all policies choose among.
    """
    policies: tuple[_SimulatedPolicy, ...] = (
        _Oracle(versions),
        *(_PromptPolicy(name, versions) for name in comparable_policies()),
        _NightlyRanking(versions),
    )
    daily_rewards = np.zeros((len(policies), days + 1))
    tips = 0
    for day in progress(range(days)):
        today = visits(users, day, seed)
        tips += len(today)
        for policy, rewards_by_day in zip(policies, daily_rewards, strict=True):
            chosen = [*zip(today, policy.choose(today), strict=True)]
            rewards_by_day[day + 1] = sum(visit.persona.preference(prompt_version) for visit, prompt_version in chosen)
            policy.learn(
                [(visit, prompt_version, float(visit.helps(prompt_version))) for visit, prompt_version in chosen]
            )
    cumulative = daily_rewards.cumsum(axis=1)
    oracle, *outcomes = (
        PolicyOutcome(policy.name, float(rewards[-1]) / max(tips, 1), cumulative[0] - rewards)
        for policy, rewards in zip(policies, cumulative, strict=True)
    )
    return RegretComparison(tips, oracle, tuple(outcomes))


_DayLog = Sequence[tuple[Visit, str, float]]
"""The visits of a day, each with the prompt version that was chosen and the reward of its tip."""


class _SimulatedPolicy(Protocol):
    name: str

    def choose(self, today: Sequence[Visit]) -> list[str]:
        """Choose a prompt version for each visit."""

    def learn(self, yesterday: _DayLog) -> None:
        """Learn from the rewards of a day."""


class _Oracle:
    """Chooses the preferred prompt version of each user's persona, which no policy can know."""

    name = "oracle"

    def __init__(self, versions: Sequence[str]) -> None:
        self._versions = versions

    def choose(self, today: Sequence[Visit]) -> list[str]:
        return [max(self._versions, key=visit.persona.preference) for visit in today]

    def learn(self, yesterday: _DayLog) -> None:
        pass


class _PromptPolicy:
    """One of `comparable_policies`, with equal weights."""

    def __init__(self, name: str, versions: Sequence[str]) -> None:
        self.name = name
        self._policy = POLICIES[name]
        self._weights = dict.fromkeys(versions, 1.0)
        self._rewards: list[Mapping[str, Sample]] = []
        self._distribution = self._policy.distribution(self._weights, RewardHistory())

    def choose(self, today: Sequence[Visit]) -> list[str]:
        return [self._policy.draw(self._distribution, visit.user_id, [visit.id])[0].option for visit in today]

    def learn(self, yesterday: _DayLog) -> None:
        of_day = dict.fromkeys(self._weights, Sample())
        for _, prompt_version, reward in yesterday:
            of_day[prompt_version] += Sample(1, reward, reward**2)
        self._rewards.append(of_day)
        history = RewardHistory(dict(enumerate(self._rewards)), today=len(self._rewards))
        self._distribution = self._policy.distribution(self._weights, history)


class _NightlyRanking:
    """A ranking policy that is fitted each night. It ranks one candidate of each prompt version, without a text."""

    name = "ranking"

    def __init__(self, versions: Sequence[str]) -> None:
        encoder = candidate_encoder(versions)
        rows = encoder.encode_rows([candidate_row(prompt_version, None) for prompt_version in versions])
        self._candidates = dict(zip(versions, rows, strict=True))
        self._columns = encoder.columns
        self._days: dict[int, DayAdjustedStatistics] = {}
        self._nights = 0
        self._policy: RankingPolicy | None = None

    def choose(self, today: Sequence[Visit]) -> list[str]:
        contexts = CONTEXT_ENCODER.encode_rows([visit.signals for visit in today])
        return [
            draw_weighted(self._weights(context), hash_to_unit_interval(SALT, visit.id)).option
            for context, visit in zip(contexts, today, strict=True)
        ]

    def _weights(self, context: Floats) -> Mapping[str, float]:
        if not self._policy:
            return dict.fromkeys(self._candidates, 1.0)
        ranking = self._policy.rank(context, np.stack([*self._candidates.values()]))
        return dict(zip(self._candidates, ranking.probabilities.tolist(), strict=True))

    def learn(self, yesterday: _DayLog) -> None:
        self._nights += 1
        if not yesterday:
            return
        statistics = RegressionStatistics.from_rows(
            CONTEXT_ENCODER.columns,
            self._columns,
            CONTEXT_ENCODER.encode_rows([visit.signals for visit, _, _ in yesterday]),
            np.stack([self._candidates[prompt_version] for _, prompt_version, _ in yesterday]),
            np.array([reward for _, _, reward in yesterday]),
        )
        self._days[self._nights] = DayAdjustedStatistics.of_day(statistics)
        self._policy = fit_policy(
            self._days, name=self.name, versions=[*self._candidates], trained_until=_DAY_SECONDS * self._nights
        )
