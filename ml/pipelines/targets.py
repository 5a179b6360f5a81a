"""The policies that a log can be asked about: what each would have done at every decision in it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np

from ml.experiments import policies
from ml.experiments.arrays import Floats
from ml.experiments.decisions import LoggedDecision
from ml.experiments.policies import parse_version_weights
from ml.experiments.ranking import UnusablePolicy
from ml.experiments.statistics import Sample
from ml.features.encoder import candidate_row
from ml.platform.settings import ConfigurationError
from ml.registry.policies import Learned, load, validate_policy_source

MOST_LOOKS = 200
"""How often Thompson sampling looks at what was earned, over the whole of a log."""

LEAST_BETWEEN_LOOKS = 3600.0
"""In seconds."""


class Target(Protocol):
    """A policy that is judged by decisions of another one."""

    @property
    def name(self) -> str: ...

    @property
    def without(self) -> str:
        """Why it has nothing to do with some decisions, after "because"."""

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        """Return the probability with which it takes each candidate of each decision, which are in order of time.

        None for a decision that it is not to be judged by.
        """


class Uniform:
    """Takes each candidate as often."""

    name = "uniform"
    without = ""

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        for decision in decisions:
            k = len(decision.candidates)
            yield np.full(k, 1 / k)


class Versions:
    """Takes prompt versions by fixed weights, of several tips of a version each as often.

    Where the candidates are versions, all of its own must be among them. Tips are what was written anyway: there it
    takes, by their weights, those of its versions that are there.
    """

    def __init__(self, name: str, weights: Mapping[str, float]) -> None:
        self.name = name
        self.without = f"{' or '.join(weights)} could not be taken there"
        self.weights = dict(weights)

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        for decision in decisions:
            there = self.weights.keys() & {candidate.prompt_version for candidate in decision.candidates}
            enough = 1 if decision.ranked else len(self.weights)
            yield _spread(decision, self.weights) if len(there) >= enough else None


class Thompson:
    """Thompson sampling of versions, which learns along the log: at no time from rewards that were not known by then.

    It learns from what the log earned, in place of what it would have earned itself. `window`: after how many seconds
    the reward of a decision is known.
    """

    name = "thompson"
    without = ""

    def __init__(self, window: float) -> None:
        self._window = window
        self._policy = policies.Thompson()

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        earned: dict[str, Sample] = defaultdict(Sample)
        found: dict[tuple[str, ...], Mapping[str, float]] = {}
        known, next_look = 0, -np.inf
        between = max((decisions[-1].at - decisions[0].at) / MOST_LOOKS, LEAST_BETWEEN_LOOKS) if decisions else 0.0
        for decision in decisions:
            if decision.at >= next_look:
                next_look = decision.at + between
                while decisions[known].at + self._window < decision.at:
                    past, known = decisions[known], known + 1
                    version, reward = past.candidates[past.taken].prompt_version, past.reward
                    earned[version] += Sample(1, reward, reward**2)
                found.clear()
            versions = tuple(dict.fromkeys(candidate.prompt_version for candidate in decision.candidates))
            if versions not in found:
                found[versions] = self._policy.distribution({version: earned[version] for version in versions})
            yield _spread(decision, found[versions])


class Ranked:
    """A policy that was learned; it is not judged by decisions that it has learned from.

    Where the candidates are versions, it ranks them without any text: that of the one tip that was then written would
    tell it which one was taken.
    """

    def __init__(self, policy: Learned) -> None:
        self.name = f"{policy.name} {policy.version}"
        until = datetime.fromtimestamp(policy.trained_until, UTC)
        self.without = f"{policy.name} has learned from decisions up to {until:%Y-%m-%d %H:%M} UTC"
        self._policy = policy

    def distributions(self, decisions: Sequence[LoggedDecision]) -> Iterator[Floats | None]:
        for decision in decisions:
            if decision.at <= self._policy.trained_until:
                yield None
                continue
            tips = [candidate_row(one.prompt_version, one.tip if decision.ranked else None) for one in decision.candidates]
            yield self._policy.rank({**decision.signals, **decision.aggregates}, tips).probabilities


def read(policy: str, *, window: timedelta, tracking_uri: str) -> Target:
    """Return the policy that is meant: `uniform`, `thompson`, versions, `models:/…` or a file.

    Versions are written as in TIP_PROMPT_VERSION. `window`: how long a tip waits for a reaction. Raises
    ConfigurationError for what is none of these, and for a policy that cannot be loaded.
    """
    if policy == Uniform.name:
        return Uniform()
    if policy == Thompson.name:
        return Thompson(window.total_seconds())
    try:
        if "/" in policy or Path(policy).is_file():
            return Ranked(load(validate_policy_source(policy), tracking_uri))
        return Versions(policy, dict(parse_version_weights(policy)))
    except UnusablePolicy as error:
        raise ConfigurationError(f"--policy: the policy {error}.") from None
    except ValueError as error:
        raise ConfigurationError(
            f"--policy: the value {error}; or else uniform, thompson or a learned policy."
        ) from None


def _spread(decision: LoggedDecision, weights: Mapping[str, float]) -> Floats:
    """The distribution over the candidates in which each version there has its weight, shared by its candidates."""
    versions = [candidate.prompt_version for candidate in decision.candidates]
    each = Counter(versions)
    shares = np.array([weights.get(version, 0.0) / each[version] for version in versions])
    spread: Floats = shares / shares.sum()
    return spread
