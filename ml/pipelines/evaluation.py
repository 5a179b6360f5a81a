"""What another policy would have earned, from the log of decisions: by every estimator, with what to believe of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml.experiments.arrays import Floats, Integers
from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.decisions import LoggedDecision, with_newest_prompts
from ml.experiments.evaluation import Estimate, Log, dm, dr, ips, sndr, snips
from ml.experiments.reward_model import RewardModel, cross_fitted_means
from ml.features.definitions import segments
from ml.pipelines.targets import Target, VersionTarget

BEST = "sndr"
"""The estimate to believe: it is right whatever the model of the reward, and its weights need not average 1."""

ROWS = (
    "estimate",
    "mean reward",
    "   at least",
    "   at most",
    "gain in points",
    "   at least",
    "   at most",
    "effective sample size",
    "mean weight",
    "largest weight",
    "trusted",
)

FOLDS = 5
LEAST_IN_GROUP = 100
"""Decisions of each version, on average, from which on a group of people has a model of its own: with less, what such
groups differ in drowns in chance."""


class NothingToEvaluate(Exception):
    """The log holds no decision by which the policy could be judged; the message is one plain sentence."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What the log says of a policy.

    `earned`: what the live policy earned with the same decisions. `estimates`: what this one would have, by estimator,
    the one to believe first. `left_out`: sentences about decisions that say nothing of it.
    """

    policy: str
    decisions: int
    people: int
    earned: Estimate
    estimates: Mapping[str, Estimate]
    left_out: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the figures, in sentences."""
        return (
            f"{self.decisions:,} decisions, {self.people:,} people. Believe {BEST} first, and snips beside it.",
            *self.left_out,
        )

    @property
    def best(self) -> Estimate:
        """The estimate to believe."""
        return self.estimates[BEST]

    @property
    def verdict(self) -> str:
        """What the log earned, what the policy would have, and whether the difference can be trusted."""
        best, log = self.best, f"The log earned {_rate(self.earned)}."
        if best.refusal:
            reason = best.refusal[:1].lower() + best.refusal[1:]
            return f"{log} What {self.policy} would have earned cannot be told from it: {reason}"
        end = "which can be trusted" if best.is_significant else "which may be chance"
        gain = f"{_points(best.gain.estimate)} points ({_points(best.gain.low)} to {_points(best.gain.high)})"
        return f"{log} {self.policy} would have earned {_rate(best)}: {gain}, {end}."

    @property
    def table(self) -> tuple[tuple[str, ...], ...]:
        """All figures in words, the first row being the names of the columns: what the log earned, then each estimate.

        What is trusted is that the policy earns another reward than the log.
        """
        columns = [_column("the log", self.earned, compared=False)]
        columns += [_column(name, one, compared=True) for name, one in self.estimates.items()]
        return tuple(zip(ROWS, *columns, strict=True))


def evaluate(decisions: Sequence[LoggedDecision], target: Target) -> EvaluationReport:
    """Estimate what `target` would have earned from decisions that are old enough for their reactions to be in.

    It is judged by those at which the live policy could have taken whatever it takes. Raises NothingToEvaluate.
    """
    if not decisions:
        raise NothingToEvaluate("There is nothing to evaluate: the log holds no decision that is old enough.")
    if isinstance(target, VersionTarget):
        _refuse_unknown(target, decisions)
    in_time = with_newest_prompts(decisions)
    judged, unfit, uncovered = [], 0, 0
    for decision, distribution in zip(in_time, target.distributions(in_time), strict=True):
        if distribution is None:
            unfit += 1
        elif any(p > 0 and not one.probability for p, one in zip(distribution, decision.candidates, strict=True)):
            uncovered += 1
        else:
            judged.append((decision, distribution))
    left_out = [
        f"{n:,} of {len(decisions):,} decisions are left out, because {why}."
        for n, why in (
            (len(decisions) - len(in_time), "the digest of a prompt version has changed since"),
            (unfit, target.exclusion_reason),
            (uncovered, f"the live policy could not take there what {target.name} takes"),
        )
        if n
    ]
    if not judged:
        raise NothingToEvaluate(" ".join(["There is nothing to evaluate.", *left_out]))
    log, own, model = _arrays(judged)
    people = len({decision.user_id for decision, _ in judged})
    estimates = {
        "sndr": sndr(log, model),
        "snips": snips(log),
        "dr": dr(log, model),
        "ips": ips(log),
        "dm": dm(log, model),
    }
    return EvaluationReport(target.name, len(judged), people, ips(own), estimates, tuple(left_out))


def percent(reward: float) -> str:
    """Put a reward into percent."""
    return f"{100 * reward:.1f}%"


def _rate(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _column(name: str, estimate: Estimate, *, compared: bool) -> tuple[str, ...]:
    """What `ROWS` say of an estimate; what the log earned is compared with nothing."""
    gain = estimate.gain
    trusted = "refused" if estimate.refusal else "yes" if estimate.is_significant else "no"
    return (
        name,
        *(percent(reward) for reward in (estimate.value, estimate.low, estimate.high)),
        *(_points(points) if compared else "" for points in (gain.estimate, gain.low, gain.high)),
        f"{estimate.effective_sample_size:,.0f}",
        f"{estimate.mean_weight:.2f}",
        f"{estimate.largest_weight:.1f}",
        trusted if compared else "",
    )


def _refuse_unknown(target: VersionTarget, decisions: Sequence[LoggedDecision]) -> None:
    known = {candidate.prompt_version for decision in decisions for candidate in decision.candidates}
    if unknown := [version for version in target.weights if version not in known]:
        raise NothingToEvaluate(
            f"There is nothing to evaluate: the log never had the choice of {' or '.join(unknown)}; "
            f"the versions in it are {', '.join(sorted(known))}."
        )


def _arrays(judged: Sequence[tuple[LoggedDecision, Floats]]) -> tuple[Log, Log, RewardModel]:
    """The log as the target sees it, the same as it was, and the model of the reward."""
    n, k = len(judged), max(len(distribution) for _, distribution in judged)
    names = sorted({candidate.prompt_version for decision, _ in judged for candidate in decision.candidates})
    place = {name: index for index, name in enumerate(names)}
    live, target, versions = np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, k), np.intp)
    for i, (decision, distribution) in enumerate(judged):
        there = slice(len(decision.candidates))
        live[i, there] = [candidate.probability for candidate in decision.candidates]
        target[i, there] = distribution
        versions[i, there] = [place[candidate.prompt_version] for candidate in decision.candidates]
    decisions = [decision for decision, _ in judged]
    rewards = np.array([decision.reward for decision in decisions])
    taken = np.array([decision.chosen for decision in decisions])
    users, people = np.unique([decision.user_id for decision in decisions], return_inverse=True)
    log = Log.from_policies(rewards, taken, live, target, people)
    folds = np.array([int(FOLDS * hash_to_unit_interval("fold", str(user))) for user in users])[people]
    of_versions = _means(rewards, versions[np.arange(n), taken], folds, _groups(decisions, len(names)), len(names))
    means = np.take_along_axis(of_versions, versions, axis=1)
    own = Log(rewards, log.propensities, log.propensities, people=people)
    return log, own, RewardModel(taken, means, target)


def _means(rewards: Floats, versions: Integers, folds: Integers, groups: Integers, n_versions: int) -> Floats:
    """The expected reward of each version at each decision, shape (n, n_versions)."""
    if np.unique(folds).size == 1:
        return np.full((rewards.size, n_versions), 0.5)  # too few people for any to be judged by what others like
    return cross_fitted_means(rewards, versions, folds, n_options=n_versions, groups=groups)


def _groups(decisions: Sequence[LoggedDecision], n_versions: int) -> Integers:
    """The group of each decision's person, who may like other versions than others do: the first of their segments.

    Of a large group only; all the others are one.
    """
    of_each = [next(iter(segments(decision.signals)), "") for decision in decisions]
    large = [group for group, n in Counter(of_each).items() if n >= LEAST_IN_GROUP * n_versions]
    place = {group: index for index, group in enumerate(large, 1)}
    return np.array([place.get(group, 0) for group in of_each])
