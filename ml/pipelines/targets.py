"""Target policies of off-policy evaluation: the distribution over the candidates of each logged decision."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.decisions import LoggedDecision
from ml.experiments.policies import POLICIES, comparable_policies, parse_version_weights
from ml.experiments.statistics import Sample
from ml.experiments.thompson import HALF_LIFE_DAYS, RewardHistory
from ml.features.encoder import candidate_row
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import UnusablePolicyError
from ml.registry.policies import LearnedPolicy, load_policy, validate_policy_source

MAX_UPDATES = 200
"""The maximum number of updates of a policy that learns, over a whole log."""

MIN_UPDATE_INTERVAL = 3600.0
"""The minimum time between two updates, in seconds."""

_CACHED_DISTRIBUTIONS = 4_096
"""Distributions that are kept, by the prompt versions of the candidates."""

_DAY = 86_400.0

_FILE_SUFFIXES = (".npz", ".zip")
"""The endings of policy files, of this and of earlier releases; a value that has one is not a prompt version."""


Distribute = Callable[[Sequence[LoggedDecision]], Sequence[Floats | None]]
"""Returns the distribution over the candidates of each decision of the next chunk of a log.

Its shape is (number of candidates,). None for a decision that the policy is not evaluated with.
"""


class Target(Protocol):
    """A policy that is evaluated with the decisions of another policy."""

    @property
    def name(self) -> str: ...

    @property
    def exclusion_reason(self) -> str:
        """The reason for leaving out decisions, as the end of a sentence after "because"."""

    def replay(self, duration: float) -> Distribute:
        """Return a function for one pass over a log, which is called with each of its chunks, in the order of time.

        `duration`: of the log, from its first to its last decision, in seconds. The sizes of the chunks do not change
        the distributions.
        """


class PromptPolicyTarget:
    """One of `comparable_policies`, with equal weights.

    A policy that learns is updated along the log, with what was known at the time: the reward of a decision is known at
    the end of its reaction window, without the reactions that were received later. It learns from the rewards of the
    logged decisions, since those of its own decisions are unknown.
    """

    exclusion_reason = ""

    def __init__(self, name: str, reaction_window: float, half_life_days: float = HALF_LIFE_DAYS) -> None:
        """`reaction_window`: in seconds. `half_life_days`: of the rewards that a policy learns from."""
        self.name = name
        self._policy = POLICIES[name]
        self._reaction_window = reaction_window
        self._half_life_days = half_life_days

    def replay(self, duration: float) -> Distribute:
        days: dict[int, dict[str, Sample]] = defaultdict(lambda: defaultdict(Sample))
        # The time, version and reward of the decisions whose reward is not known yet.
        unknown: deque[tuple[float, str, float]] = deque()
        cache: dict[tuple[str, ...], Floats] = {}
        next_update, history = -np.inf, RewardHistory()
        interval = max(duration / MAX_UPDATES, MIN_UPDATE_INTERVAL)

        def distribution(decision: LoggedDecision) -> Floats:
            nonlocal next_update, history
            if self._policy.learns:
                if decision.at >= next_update:
                    next_update = decision.at + interval
                    while unknown and unknown[0][0] + self._reaction_window < decision.at:
                        at, prompt_version, reward = unknown.popleft()
                        days[int(at // _DAY)][prompt_version] += Sample(1, reward, reward**2)
                    known_until = int((decision.at - self._reaction_window) // _DAY)
                    history = RewardHistory(days, today=known_until, half_life_days=self._half_life_days)
                    cache.clear()
                shown = decision.candidates[decision.chosen].prompt_version
                unknown.append((decision.at, shown, decision.reward_in_window))
            prompt_versions = _prompt_versions(decision)
            if prompt_versions not in cache:
                if len(cache) >= _CACHED_DISTRIBUTIONS:
                    cache.clear()
                weights = self._policy.distribution(Counter(prompt_versions), history)
                cache[prompt_versions] = _distribute(prompt_versions, weights)
            return cache[prompt_versions]

        return lambda chunk: [distribution(decision) for decision in chunk]


class VersionTarget:
    """Prompt versions with fixed weights; the candidates of one version share its weight.

    A decision among prompt versions must have all versions of the target as candidates. In a decision among tips, at
    least one version of the target must be present, and the weights of the absent ones are left out.
    """

    def __init__(self, name: str, weights: Mapping[str, float]) -> None:
        self.name = name
        self.exclusion_reason = f"{' or '.join(weights)} was not a candidate"
        self.weights = dict(weights)

    def replay(self, duration: float) -> Distribute:  # noqa: ARG002
        @lru_cache(_CACHED_DISTRIBUTIONS)
        def distribution(prompt_versions: tuple[str, ...], *, ranked: bool) -> Floats | None:
            present = self.weights.keys() & {*prompt_versions}
            needed = 1 if ranked else len(self.weights)
            return _distribute(prompt_versions, self.weights) if len(present) >= needed else None

        return lambda chunk: [distribution(_prompt_versions(each), ranked=each.ranked) for each in chunk]


class RankingTarget:
    """A learned ranking policy; decisions that it was trained on are left out.

    Prompt versions are ranked without the text of a tip: only the drawn version has one, so it would reveal the draw.
    """

    def __init__(self, policy: LearnedPolicy) -> None:
        self.name = f"{policy.name} {policy.version}"
        until = datetime.fromtimestamp(policy.trained_until, UTC)
        self.exclusion_reason = f"{policy.name} has learned from decisions up to {until:%Y-%m-%d %H:%M} UTC"
        self._policy = policy

    def replay(self, duration: float) -> Distribute:  # noqa: ARG002
        return self._distributions

    def _distributions(self, chunk: Sequence[LoggedDecision]) -> list[Floats | None]:
        later = [decision for decision in chunk if decision.at > self._policy.trained_until]
        # The chunk is in the order of time.
        return [*repeat(None, len(chunk) - len(later)), *self.probabilities(later)]

    def probabilities(self, decisions: Sequence[LoggedDecision]) -> list[Floats]:
        """Return the probability of each candidate of each decision, whether the policy has learned from it or not."""
        rankings = self._policy.rank_each(
            [{**decision.signals, **decision.aggregates} for decision in decisions],
            [
                [
                    candidate_row(candidate.prompt_version, candidate.tip if decision.ranked else None)
                    for candidate in decision.candidates
                ]
                for decision in decisions
            ],
        )
        return [ranking.probabilities for ranking in rankings]


def parse_target(
    policy: str, *, reaction_window: timedelta, half_life_days: float = HALF_LIFE_DAYS, tracking_uri: str
) -> Target:
    """Return the target that `--policy` names: a prompt policy, prompt versions, `models:/…` or a file.

    `half_life_days`: of the rewards that a prompt policy learns from. Prompt versions have the format of
    TIP_PROMPT_VERSION. Raises ConfigurationError for any other value, and for a policy that cannot be loaded.
    """
    if policy in comparable_policies():
        return PromptPolicyTarget(policy, reaction_window.total_seconds(), half_life_days)
    if "/" in policy or Path(policy).suffix in _FILE_SUFFIXES or Path(policy).is_file():
        try:
            return RankingTarget(load_policy(validate_policy_source(policy), tracking_uri))
        except UnusablePolicyError as error:
            raise ConfigurationError(f"--policy: the policy {policy} {error}.") from None
        except ValueError as error:
            raise ConfigurationError(f"--policy: {policy!r} {error}.") from None
    try:
        if policy in POLICIES:
            raise ValueError("chooses among no given versions")
        return VersionTarget(policy, dict(parse_version_weights(policy)))
    except ValueError:
        raise ConfigurationError(
            f"--policy: {policy!r} should be one of {', '.join(comparable_policies())}; or prompt versions, such as "
            "v2-mentor or v1=90,v2-mentor=10; or a learned policy: a file or models:/NAME@ALIAS."
        ) from None


def _prompt_versions(decision: LoggedDecision) -> tuple[str, ...]:
    return tuple([candidate.prompt_version for candidate in decision.candidates])


def _distribute(prompt_versions: Sequence[str], weights: Mapping[str, float]) -> Floats:
    """Return the distribution over candidates by version weight; candidates of one version share its weight."""
    counts = Counter(prompt_versions)
    shares = np.array([weights.get(prompt_version, 0.0) / counts[prompt_version] for prompt_version in prompt_versions])
    distribution: Floats = shares / shares.sum()
    return distribution
