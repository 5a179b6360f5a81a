"""The decisions of a log that a target policy can be evaluated with, as chunks of arrays with the reward models.

The log is read three times, in chunks: for what it contains, for the sums of the reward model, and for the arrays. In
memory are a chunk, the users, the prompt versions, and the segments. The sizes of the chunks do not change a result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

from ml.experiments.arrays import Bools, Floats, Integers
from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.decisions import DecisionLog, LoggedDecision
from ml.experiments.gain_sequence import gain_terms
from ml.experiments.off_policy_log import Log
from ml.experiments.reward_model import CrossFittedMeans, RewardModel, RunningMeans
from ml.features.segments import segments
from ml.pipelines.targets import Target, VersionTarget

FOLDS = 5
MIN_DECISIONS_PER_CELL = 100
"""The minimum mean number of decisions per prompt version with which a segment has its own reward model."""

Chunk = Sequence[LoggedDecision]


class NothingToEvaluate(Exception):
    """The log has no decision that the policy can be evaluated with; the message is one plain sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedChunk:
    """n >= 1 evaluated decisions in the order of time.

    `log`: as the target sees them, with clusters (users) from 0 on; `logging`: the distributions of the live policy,
    shape (n, k). `model`: the reward model from other users, and the target's distributions. `gain_terms`: those of
    `ml.experiments.gain_sequence`, with a reward model from earlier decisions only.
    """

    decisions: Chunk
    log: Log
    logging: Floats
    model: RewardModel
    gain_terms: Floats

    @property
    def live_log(self) -> Log:
        """The decisions as the live policy sees them."""
        propensities = self.log.propensities
        return Log(self.log.rewards, propensities, propensities, clusters=self.log.clusters)

    @property
    def drawn_anew(self) -> Bools:
        """Whether the version was drawn for the decision and not for its user, shape (n,): the gain counts these."""
        return np.array([not decision.per_user for decision in self.decisions])


class EvaluatedDecisions:
    """The decisions from `since` (included) to `before` (excluded) that `target` can be evaluated with.

    Only decisions at which the live policy could draw every candidate that the target can draw are used. Decisions with
    an earlier digest of a prompt version are left out (`NewestPrompts`). `n`, `n_users`: their numbers. `left_out`:
    sentences about the others.
    """

    def __init__(self, log: DecisionLog, target: Target, *, since: float = -inf, before: float = inf) -> None:
        """Read the log twice. Raises NothingToEvaluate."""
        self._log, self._target, self._since, self._before = log, target, since, before
        whole = _Contents()
        for _ in whole.watched(log.chunks(since, before)):
            pass
        if not whole.n:
            raise NothingToEvaluate("There is nothing to evaluate: the log holds no decision that is old enough.")
        if isinstance(target, VersionTarget):
            _refuse_unknown_versions(target, whole.versions)
        self._newest = log.newest_prompts(since, before)
        kept = _Contents() if self._newest.digests else whole
        if kept is not whole:
            for _ in kept.watched(self._kept()):
                pass
        self._duration = kept.last - kept.first
        self._versions = _Indices(sorted(kept.versions))
        self._users, self._segments = _Indices(), _Indices()
        self._folds: list[int] = []  # by user
        self._n_excluded = self._n_uncovered = 0
        self._read_reward_sums(whole.n, kept.n)

    def chunks(self) -> Iterator[EvaluatedChunk]:
        """Read the log once more, and yield the decisions in the order of time."""
        running = RunningMeans(len(self._versions.of))
        for decisions, distributions in self._selected():
            if not decisions:
                continue
            rows = np.arange(len(decisions))
            logging, target = np.zeros((2, len(decisions), self._max_candidates))
            prompt_versions = np.zeros(logging.shape, np.intp)
            for row, (decision, distribution) in enumerate(zip(decisions, distributions, strict=True)):
                columns = slice(distribution.size)
                logging[row, columns] = [candidate.probability for candidate in decision.candidates]
                target[row, columns] = distribution
                prompt_versions[row, columns] = [
                    self._versions.of[candidate.prompt_version] for candidate in decision.candidates
                ]
            rewards, chosen, users, first_segments = self._columns(decisions)
            log = Log.from_policies(rewards, chosen, logging, target, users)
            means = self._means[self._folds_of(users, decisions), first_segments]
            sequence_means = running.predict_and_add(rewards, prompt_versions[rows, chosen], first_segments)
            model, sequence_model = (
                RewardModel(chosen, np.take_along_axis(each, prompt_versions, axis=1), target)
                for each in (means, sequence_means)
            )
            yield EvaluatedChunk(decisions, log, logging, model, gain_terms(rewards, logging, sequence_model))

    def _kept(self) -> Iterator[Chunk]:
        """Yield the decisions with the newest prompts."""
        for chunk in self._log.chunks(self._since, self._before):
            yield self._newest.kept(chunk)

    def _selected(self) -> Iterator[tuple[list[LoggedDecision], list[Floats]]]:
        """Yield the evaluated decisions of each chunk, and the distributions of the target; count the others."""
        self._n_excluded = self._n_uncovered = 0
        distribute = self._target.replay(self._duration)
        for chunk in self._kept():
            decisions, distributions = [], []
            for decision, distribution in zip(chunk, distribute(chunk), strict=True):
                if distribution is None:
                    self._n_excluded += 1
                elif _is_covered(decision, distribution):
                    decisions.append(decision)
                    distributions.append(distribution)
                else:
                    self._n_uncovered += 1
            yield decisions, distributions

    def _read_reward_sums(self, n_read: int, n_kept: int) -> None:
        """Read the log for the sums of the reward model, and the numbers of evaluated and other decisions."""
        self.n, self._max_candidates = 0, 0
        sums = CrossFittedMeans(FOLDS, len(self._versions.of))
        has_version = np.zeros(len(self._versions.of), np.bool_)
        for decisions, _ in self._selected():
            if not decisions:
                continue
            self.n += len(decisions)
            self._max_candidates = max(self._max_candidates, *(len(each.candidates) for each in decisions))
            names = {candidate.prompt_version for decision in decisions for candidate in decision.candidates}
            has_version[[self._versions.of[name] for name in names]] = True
            rewards, _, users, first_segments = self._columns(decisions)
            shown = np.array([self._versions.of[each.candidates[each.chosen].prompt_version] for each in decisions])
            sums.add(rewards, shown, self._folds_of(users, decisions), first_segments)
        reasons = (
            (n_read - n_kept, "the digest of a prompt version has changed since"),
            (self._n_excluded, self._target.exclusion_reason),
            (self._n_uncovered, f"the live policy could not draw a candidate that {self._target.name} can draw"),
        )
        self.left_out = tuple(
            f"{n:,} of {n_read:,} decisions are left out, because {reason}." for n, reason in reasons if n
        )
        if not self.n:
            raise NothingToEvaluate(" ".join(["There is nothing to evaluate.", *self.left_out]))
        self.n_users = len(self._users.of)
        self._means = _predictions(sums, n_versions=int(has_version.sum()))

    def _columns(self, decisions: Chunk) -> tuple[Floats, Integers, Integers, Integers]:
        """Return the rewards, the drawn candidates, the users and their first segments, all of shape (n,)."""
        return (
            np.array([decision.reward for decision in decisions]),
            np.array([decision.chosen for decision in decisions]),
            self._users.indices([decision.user_id for decision in decisions]),
            self._segments.indices([next(iter(segments(decision.signals)), "") for decision in decisions]),
        )

    def _folds_of(self, users: Integers, decisions: Chunk) -> Integers:
        """Return the fold of the user of each decision, shape (n,); `users`: the indices of the users."""
        indices = users.tolist()
        for user, decision in zip(indices, decisions, strict=True):
            if user == len(self._folds):  # a new one
                self._folds.append(int(FOLDS * hash_to_unit_interval("fold", decision.user_id)))
        return np.array([self._folds[user] for user in indices])


@dataclass(slots=True)
class _Contents:
    """The contents of a log."""

    n: int = 0
    first: float = inf
    last: float = -inf
    versions: set[str] = field(default_factory=set)

    def watched(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks, and note what they contain."""
        for chunk in chunks:
            if chunk:
                self.n += len(chunk)
                self.first, self.last = min(self.first, chunk[0].at), chunk[-1].at
                self.versions.update(each.prompt_version for decision in chunk for each in decision.candidates)
            yield chunk


class _Indices:
    """Indices of names, in the order in which they first appear."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.of = {name: index for index, name in enumerate(names)}

    def indices(self, names: Sequence[str]) -> Integers:
        """Return the index of each name, shape (n,); a new name gets the next index."""
        return np.array([self.of.setdefault(name, len(self.of)) for name in names])


def _refuse_unknown_versions(target: VersionTarget, known: set[str]) -> None:
    if unknown := [prompt_version for prompt_version in target.weights if prompt_version not in known]:
        raise NothingToEvaluate(
            f"There is nothing to evaluate: {' or '.join(unknown)} was never a candidate; "
            f"the prompt versions in the log are {', '.join(sorted(known))}."
        )


def _is_covered(decision: LoggedDecision, distribution: Floats) -> bool:
    """Whether the live policy could draw every candidate that the target can draw."""
    return all(
        candidate.probability > 0 or probability == 0
        for probability, candidate in zip(distribution.tolist(), decision.candidates, strict=True)
    )


def _predictions(sums: CrossFittedMeans, *, n_versions: int) -> Floats:
    """Return the predicted mean reward of each prompt version, shape (folds, segments, prompt versions).

    `n_versions`: the number of versions that were candidates. All small segments together have one model.
    """
    per_segment = sums.counts.sum(axis=(0, 2))
    if np.count_nonzero(sums.counts.sum(axis=(1, 2))) == 1:
        return np.full(sums.counts.shape, 0.5)  # too few users for cross-fitting
    is_large = per_segment >= MIN_DECISIONS_PER_CELL * n_versions
    models = np.where(is_large, 1 + np.arange(per_segment.size), 0)
    predictions: Floats = sums.merged(models).means()[:, models]
    return predictions
