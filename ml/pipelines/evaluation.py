"""Off-policy evaluation of a target policy with the decision log: the gain at every look, and all estimators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml.experiments.arrays import PROBABILITY_TOLERANCE, Bools, Floats, Integers
from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.decisions import LoggedDecision, with_newest_prompts
from ml.experiments.evaluation import Estimate, dm, dr, ips, mean_weight_refusal, sndr, snips
from ml.experiments.gain_sequence import gain_sequence
from ml.experiments.off_policy_log import Log
from ml.experiments.reward_model import RewardModel, cross_fitted_means, running_means
from ml.experiments.statistics import Interval
from ml.features.definitions import segments
from ml.pipelines.targets import Target, VersionTarget

BEST = "sndr"
"""The recommended estimator: it is consistent whatever the reward model, and its weights are normalised."""

TABLE_ROWS = (
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
    "gain excludes 0",
)
"""The names of the rows of `EvaluationReport.table`; the first one is that of the row of column names."""

FOLDS = 5
MIN_DECISIONS_PER_CELL = 100
"""The minimum mean number of decisions per prompt version with which a segment has its own reward model."""


class NothingToEvaluate(Exception):
    """The log has no decision that the policy can be evaluated with; the message is one plain sentence."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The off-policy evaluation of one target policy.

    `policy`: its name. `decisions`, `users`: how many it was evaluated with. `earned`: the mean reward of the live
    policy at the same decisions. `gain`: the confidence sequence of the gain, which holds at every look; None if
    refused. `gain_refusal`: the reason, as the end of a sentence. `is_identical`: the policy has the probabilities of
    the log. `estimates`: those of the target policy by estimator, the recommended one first. `left_out`: sentences
    about the decisions that were left out.
    """

    policy: str
    decisions: int
    users: int
    earned: Estimate
    gain: Interval | None
    gain_refusal: str | None
    is_identical: bool
    estimates: Mapping[str, Estimate]
    left_out: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the data and the use of the estimates."""
        return (
            f"{self.decisions:,} decisions, {self.users:,} users. The estimates are for a single look, at a policy "
            f"that was chosen beforehand; use {BEST}, and snips as a check.",
            *self.left_out,
        )

    @property
    def best(self) -> Estimate:
        """The estimate of the recommended estimator."""
        return self.estimates[BEST]

    @property
    def verdict(self) -> str:
        """Sentences with the mean reward of the log, and the gain of the policy with its interval at every look."""
        log = f"The log earned {percent(self.earned.value)}."
        if self.is_identical:
            return f"{log} {self.policy} and the log are identical: they have the same probabilities, so the gain is 0."
        if self.gain is None:
            return f"{log} The gain of {self.policy} cannot be estimated: {self.gain_refusal}"
        gain = f"{_points(self.gain.estimate)} points ({_points(self.gain.low)} to {_points(self.gain.high)})"
        if self.gain.low > 0:
            found = f"{self.policy} is better in this traffic"
        elif self.gain.high < 0:
            found = f"{self.policy} is worse in this traffic"
        else:
            found = f"No difference from {self.policy} has been found so far"
        return f"{log} {found}: {gain}. This 95% interval holds at every look."

    @property
    def table(self) -> tuple[tuple[str, ...], ...]:
        """All figures as text, by row; the first row has the column names, the first column those of `TABLE_ROWS`."""
        columns = [_column("the log", self.earned, with_gain=False)]
        columns += [_column(name, estimate, with_gain=True) for name, estimate in self.estimates.items()]
        return tuple(zip(TABLE_ROWS, *columns, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationData:
    """The decisions that a target policy can be evaluated with, n >= 1 in the order of time, as arrays.

    `decisions`: the decisions. `log`: as the target sees them; `live_log`: as the live policy does. `model`: the reward
    model from other users, and the target's distributions; `sequence_model`: the one from earlier decisions only.
    `logging`: the distributions of the live policy, shape (n, k). `left_out`: sentences about other decisions.
    """

    decisions: Sequence[LoggedDecision]
    log: Log
    live_log: Log
    model: RewardModel
    sequence_model: RewardModel
    logging: Floats
    left_out: tuple[str, ...] = ()

    @property
    def drawn_anew(self) -> Bools:
        """Whether the version was drawn for the decision and not for its user, shape (n,): the gain counts these."""
        return np.array([not decision.per_user for decision in self.decisions])

    @property
    def gain_refusal(self) -> str | None:
        """The reason why the gain cannot be estimated, as the end of a sentence; None if it can be."""
        if not self.drawn_anew.any():
            return "all versions were drawn per user, so the decisions of a user are not drawn independently."
        return mean_weight_refusal(self.log)

    def gain(self, rows: Bools | None = None, *, alpha: float = 0.05) -> Interval:
        """Return the confidence sequence of the gain over the decisions that count.

        `rows`: shape (n,), the decisions of a slice, which must follow from their contexts; by default all. At least
        one of them must be drawn anew. `alpha`: the probability that it ever misses.
        """
        counted = self.drawn_anew if rows is None else self.drawn_anew & rows
        model = self.sequence_model
        selected = RewardModel(model.options[counted], model.means[counted], model.target[counted])
        (gain,) = gain_sequence(self.log.rewards[counted], self.logging[counted], selected, alpha=alpha)
        return gain


def evaluate(decisions: Sequence[LoggedDecision], target: Target) -> EvaluationReport:
    """Estimate the mean reward of `target` from mature decisions.

    Only decisions at which the live policy could draw every candidate that the target can draw are used. Decisions with
    an earlier digest of a prompt version are left out (`with_newest_prompts`). Raises NothingToEvaluate.
    """
    data = evaluation_data(decisions, target)
    log, model, left_out = data.log, data.model, [*data.left_out]
    if n_per_user := int((~data.drawn_anew).sum()):
        left_out.append(f"The gain does not count {n_per_user:,} decisions whose version was drawn per user.")
    estimates = {
        "sndr": sndr(log, model),
        "snips": snips(log),
        "dr": dr(log, model),
        "ips": ips(log),
        "dm": dm(log, model),
    }
    return EvaluationReport(
        target.name,
        len(data.decisions),
        len({decision.user_id for decision in data.decisions}),
        ips(data.live_log),
        None if data.gain_refusal else data.gain(),
        data.gain_refusal,
        bool((abs(model.target - data.logging) <= PROBABILITY_TOLERANCE).all()),
        estimates,
        tuple(left_out),
    )


def evaluation_data(decisions: Sequence[LoggedDecision], target: Target) -> EvaluationData:
    """Return the decisions that `target` can be evaluated with. Raises NothingToEvaluate. See `evaluate`."""
    if not decisions:
        raise NothingToEvaluate("There is nothing to evaluate: the log holds no decision that is old enough.")
    if isinstance(target, VersionTarget):
        _refuse_unknown_versions(target, decisions)
    newest = with_newest_prompts(decisions)
    evaluated, n_excluded, n_uncovered = [], 0, 0
    for decision, distribution in zip(newest, target.distributions(newest), strict=True):
        if distribution is None:
            n_excluded += 1
        elif _is_covered(decision, distribution):
            evaluated.append((decision, distribution))
        else:
            n_uncovered += 1
    left_out = tuple(
        f"{n:,} of {len(decisions):,} decisions are left out, because {reason}."
        for n, reason in (
            (len(decisions) - len(newest), "the digest of a prompt version has changed since"),
            (n_excluded, target.exclusion_reason),
            (n_uncovered, f"the live policy could not draw a candidate that {target.name} can draw"),
        )
        if n
    )
    if not evaluated:
        raise NothingToEvaluate(" ".join(["There is nothing to evaluate.", *left_out]))
    return replace(_arrays(evaluated), left_out=left_out)


def percent(reward: float) -> str:
    """Format a reward as a percentage."""
    return f"{100 * reward:.1f}%"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _column(name: str, estimate: Estimate, *, with_gain: bool) -> tuple[str, ...]:
    """Return a column of the table; that of the log has no gain."""
    gain = estimate.gain
    excludes_zero = "refused" if estimate.refusal else "yes" if estimate.gain_excludes_zero else "no"
    return (
        name,
        *(percent(reward) for reward in (estimate.value, estimate.low, estimate.high)),
        *(_points(points) if with_gain else "" for points in (gain.estimate, gain.low, gain.high)),
        f"{estimate.effective_sample_size:,.0f}",
        f"{estimate.mean_weight:.2f}",
        f"{estimate.largest_weight:.1f}",
        excludes_zero if with_gain else "",
    )


def _refuse_unknown_versions(target: VersionTarget, decisions: Sequence[LoggedDecision]) -> None:
    known = {candidate.prompt_version for decision in decisions for candidate in decision.candidates}
    if unknown := [prompt_version for prompt_version in target.weights if prompt_version not in known]:
        raise NothingToEvaluate(
            f"There is nothing to evaluate: {' or '.join(unknown)} was never a candidate; "
            f"the prompt versions in the log are {', '.join(sorted(known))}."
        )


def _is_covered(decision: LoggedDecision, distribution: Floats) -> bool:
    """Whether the live policy could draw every candidate that the target can draw."""
    return all(
        candidate.probability > 0 or probability == 0
        for probability, candidate in zip(distribution, decision.candidates, strict=True)
    )


def _arrays(evaluated: Sequence[tuple[LoggedDecision, Floats]]) -> EvaluationData:
    """Return decisions as arrays, with the reward models; each is given with the distribution of the target."""
    n, max_candidates = len(evaluated), max(len(distribution) for _, distribution in evaluated)
    names = sorted({candidate.prompt_version for decision, _ in evaluated for candidate in decision.candidates})
    indices = {prompt_version: index for index, prompt_version in enumerate(names)}
    logging, target = np.zeros((n, max_candidates)), np.zeros((n, max_candidates))
    prompt_versions = np.zeros((n, max_candidates), np.intp)
    for row, (decision, distribution) in enumerate(evaluated):
        columns = slice(len(decision.candidates))
        logging[row, columns] = [candidate.probability for candidate in decision.candidates]
        target[row, columns] = distribution
        prompt_versions[row, columns] = [indices[candidate.prompt_version] for candidate in decision.candidates]
    decisions = [decision for decision, _ in evaluated]
    rewards = np.array([decision.reward for decision in decisions])
    chosen = np.array([decision.chosen for decision in decisions])
    user_ids, clusters = np.unique([decision.user_id for decision in decisions], return_inverse=True)
    log = Log.from_policies(rewards, chosen, logging, target, clusters)
    live_log = Log(rewards, log.propensities, log.propensities, clusters=clusters)
    folds = np.array([int(FOLDS * hash_to_unit_interval("fold", str(user_id))) for user_id in user_ids])[clusters]
    chosen_versions, first_segments = prompt_versions[np.arange(n), chosen], _first_segments(decisions)
    groups = _large_segments(first_segments, len(names))
    version_means = _version_means(rewards, chosen_versions, folds, groups, len(names))
    means = np.take_along_axis(version_means, prompt_versions, axis=1)
    running = running_means(rewards, chosen_versions, n_options=len(names), groups=first_segments)
    sequence_means = np.take_along_axis(running, prompt_versions, axis=1)
    return EvaluationData(
        decisions,
        log,
        live_log,
        RewardModel(chosen, means, target),
        RewardModel(chosen, sequence_means, target),
        logging,
    )


def _first_segments(decisions: Sequence[LoggedDecision]) -> Integers:
    """Return the index of the first segment of each decision's user, shape (n,)."""
    names = [next(iter(segments(decision.signals)), "") for decision in decisions]
    return np.unique(names, return_inverse=True)[1]


def _large_segments(first_segments: Integers, n_versions: int) -> Integers:
    """Return the index of each decision's segment from 1 on, shape (n,); 0 for all small segments together."""
    is_large = np.bincount(first_segments) >= MIN_DECISIONS_PER_CELL * n_versions
    return np.where(is_large[first_segments], first_segments + 1, 0)


def _version_means(
    rewards: Floats, prompt_versions: Integers, folds: Integers, groups: Integers, n_versions: int
) -> Floats:
    """Return the predicted mean reward of each prompt version at each decision, shape (n, n_versions)."""
    if np.unique(folds).size == 1:
        return np.full((rewards.size, n_versions), 0.5)  # too few users for cross-fitting
    return cross_fitted_means(rewards, prompt_versions, folds, n_options=n_versions, groups=groups)
