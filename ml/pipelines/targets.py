"""The target policies of off-policy evaluation: the distribution of each at every decision of a log."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.decisions import LoggedDecision
from ml.experiments.policies import POLICIES, parse_version_weights, selectable_policies
from ml.experiments.ranking import UnusablePolicyError
from ml.experiments.statistics import Sample
from ml.features.encoder import candidate_row
from ml.platform.settings import ConfigurationError
from ml.registry.policies import LearnedPolicy, load, validate_policy_source

MAX_UPDATES = 200
"""How often a policy that learns is updated over a whole log."""

MIN_UPDATE_INTERVAL = 3600.0
"""Seconds."""


class Target(Protocol):
    """A policy that is evaluated with the decisions of another one."""

    @property
    def name(self) -> str: ...

    @property
    def exclusion_reason(self) -> str:
        """The reason for leaving out decisions, as the end of a sentence after "because"."""

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        """Yield, for each decision, in the order of time, the probability of each candidate.

        None for a decision that the policy is not evaluated with.
        """


class PromptPolicyTarget:
    """One of `POLICIES`, with equal weights.

    A policy that learns does so along the log, at no time from rewards that were not known by then. It learns from the
    rewards of the log, in place of those of its own choices.
    """

    exclusion_reason = ""

    def __init__(self, name: str, reaction_window: float) -> None:
        """Take the name of the policy, and the seconds after which the reward of a decision is known."""
        self.name = name
        self._policy = POLICIES[name]
        self._reaction_window = reaction_window

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        rewards: dict[str, Sample] = defaultdict(Sample)
        cache: dict[tuple[str, ...], Mapping[str, float]] = {}
        mature, next_update = 0, -np.inf
        duration = decisions[-1].at - decisions[0].at if decisions else 0.0
        interval = max(duration / MAX_UPDATES, MIN_UPDATE_INTERVAL)
        for decision in decisions:
            if self._policy.learns and decision.at >= next_update:
                next_update = decision.at + interval
                while decisions[mature].at + self._reaction_window < decision.at:
                    past, mature = decisions[mature], mature + 1
                    prompt_version, reward = past.candidates[past.chosen].prompt_version, past.reward
                    rewards[prompt_version] += Sample(1, reward, reward**2)
                cache.clear()
            prompt_versions = tuple(candidate.prompt_version for candidate in decision.candidates)
            if prompt_versions not in cache:
                cache[prompt_versions] = self._policy.distribution(Counter(prompt_versions), rewards)
            yield _spread(decision, cache[prompt_versions])


class VersionTarget:
    """Prompt versions with fixed weights; the tips of one version share its weight.

    Where the candidates are versions, all of its own must be among them. Where they are tips that were written anyway,
    it chooses among those of its versions, by their weights.
    """

    def __init__(self, name: str, weights: Mapping[str, float]) -> None:
        self.name = name
        self.exclusion_reason = f"{' or '.join(weights)} was not a candidate there"
        self.weights = dict(weights)

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        for decision in decisions:
            present = self.weights.keys() & {candidate.prompt_version for candidate in decision.candidates}
            needed = 1 if decision.ranked else len(self.weights)
            yield _spread(decision, self.weights) if len(present) >= needed else None


class RankingTarget:
    """A learned ranking policy; decisions that it has learned from are left out.

    Where the candidates are versions, it ranks them without a text: the text of the one tip that was written would tell
    it which version was chosen.
    """

    def __init__(self, policy: LearnedPolicy) -> None:
        self.name = f"{policy.name} {policy.version}"
        until = datetime.fromtimestamp(policy.trained_until, UTC)
        self.exclusion_reason = f"{policy.name} has learned from decisions up to {until:%Y-%m-%d %H:%M} UTC"
        self._policy = policy

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        for decision in decisions:
            if decision.at <= self._policy.trained_until:
                yield None
                continue
            features = [
                candidate_row(candidate.prompt_version, candidate.tip if decision.ranked else None)
                for candidate in decision.candidates
            ]
            yield self._policy.rank({**decision.signals, **decision.aggregates}, features).probabilities


def parse_target(policy: str, *, reaction_window: timedelta, tracking_uri: str) -> Target:
    """Return the target that `--policy` names: one of `POLICIES`, versions, `models:/…` or a file.

    Versions are written as in TIP_PROMPT_VERSION. Raises ConfigurationError for anything else, and for a policy that
    cannot be loaded.
    """
    if policy in selectable_policies():
        return PromptPolicyTarget(policy, reaction_window.total_seconds())
    try:
        if "/" in policy or Path(policy).is_file():
            return RankingTarget(load(validate_policy_source(policy), tracking_uri))
        return VersionTarget(policy, dict(parse_version_weights(policy)))
    except UnusablePolicyError as error:
        raise ConfigurationError(f"--policy: the policy {error}.") from None
    except ValueError as error:
        names = ", ".join(selectable_policies())
        raise ConfigurationError(f"--policy: the value {error}; or else {names}, or a learned policy.") from None


def _spread(decision: LoggedDecision, weights: Mapping[str, float]) -> Floats:
    """Return the distribution over the candidates by version weight, shared by the candidates of a version."""
    prompt_versions = [candidate.prompt_version for candidate in decision.candidates]
    counts = Counter(prompt_versions)
    shares = np.array([weights.get(version, 0.0) / counts[version] for version in prompt_versions])
    distribution: Floats = shares / shares.sum()
    return distribution
