"""Figures of a policy on held-out days: errors, gain over the log, calibration, and the gain in each slice.

The policy was fitted to the days before. All intervals are confidence sequences: each family of them (the calibration,
the slices) misses with a probability of at most `ALPHA` at any number of decisions. They are about these decisions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.confidence_sequence import rate
from ml.experiments.decisions import DAY_SECONDS, DecisionLog, LoggedDecision
from ml.experiments.gain_sequence import GainSequence
from ml.experiments.off_policy_sums import OffPolicySums
from ml.experiments.statistics import Interval, Sample
from ml.features.encoder import candidate_row
from ml.features.segments import segments
from ml.pipelines.evaluated_decisions import EvaluatedDecisions, NothingToEvaluate
from ml.pipelines.evaluation import gain_refusal
from ml.pipelines.targets import RankingTarget
from ml.registry.artifacts import MAX_SLICES, HeldOutFigures, RankingPolicy
from ml.registry.cards import CalibrationBin, Metric, Slice, SliceStatus
from ml.registry.policies import LearnedPolicy

ALPHA = 0.05
"""The probability that any interval of a metric, of the calibration or of the slices misses."""
CALIBRATION_BINS = 10
"""The predictions are divided at these quantiles of the predictions for the days before."""
MIN_SLICE_DECISIONS = 30
"""A slice with fewer decisions on the days before has the status unknown, and no interval."""
SLICE_MARGIN = 0.05
"""A slice is not harmed if its gain is above minus this."""
EARLIER_DAYS = 28
"""The days before the held-out days that determine the bins and the slices with an interval."""
EARLIER_PREDICTIONS = 100_000
"""The predictions for these days that determine the bins; of more decisions, those with the lowest hashes are used."""
DIGITS = 6
"""Figures are rounded, so that they are the same on all machines."""


def held_out_figures(
    policy: RankingPolicy, log: DecisionLog, *, since: float, until: float, contrast_error: float
) -> HeldOutFigures:
    """Return the figures of a policy on the days from `since` (included) to `until` (excluded), in Unix seconds.

    `log`: of decisions that `NewestPrompts` keeps, with at least one in this period. The policy was fitted to those
    before. It is read in chunks, whose sizes do not change the figures. `contrast_error`: the mean squared error of
    contrasts within the held-out days (`DayAdjustedStatistics.contrast_error`).
    """
    ranker = LearnedPolicy(policy)
    earlier = _earlier(ranker, log.chunks(since - EARLIER_DAYS * DAY_SECONDS, since))
    predicted = _Predicted(earlier.edges)
    for chunk in log.chunks(since, until):
        predicted.add(predict(ranker, chunk), chunk)
    source = f"tips train, held-out days {_date(predicted.first)} to {_date(predicted.last)} (UTC)"
    n, calibration = predicted.n, predicted.calibration

    def metric(name: str, value: float | Interval, n: int = n) -> Metric:
        if isinstance(value, Interval):
            estimate, low, high = _rounded(value)
            return Metric(name=name, value=estimate, low=low, high=high, n=n, source=source)
        return Metric(name=name, value=_round(value), n=n, source=source)

    metrics = [
        metric("contrast_error", contrast_error),
        metric("squared_error", rate(predicted.squared_errors, alpha=ALPHA)),
        metric("calibration_error", sum(each.n / n * abs(each.predicted - each.observed) for each in calibration)),
        metric("logged_reward", rate(predicted.rewards, alpha=ALPHA)),
    ]
    slices: list[Slice] = []
    try:
        evaluated = EvaluatedDecisions(log, RankingTarget(ranker), since=since, before=until)
    except NothingToEvaluate:
        evaluated = None
    if evaluated is not None:
        sums, gain, gains = _gains(evaluated)
        if gain_refusal(gain, sums) is None:
            metrics.append(metric("gain", gain.interval(alpha=ALPHA), gain.decisions))
            metrics.append(metric("effective_sample_size", sums.effective_sample_size, evaluated.n))
            slices = _slices(earlier.tested, gains)
    return HeldOutFigures(decisions=n, metrics=tuple(metrics), calibration=tuple(calibration), slices=tuple(slices))


def predict(ranker: LearnedPolicy, decisions: Sequence[LoggedDecision]) -> Floats:
    """Return the expected reward of the tip that was shown at each decision, shape (n,), in [0, 1]."""
    shown = [decision.candidates[decision.chosen] for decision in decisions]
    rankings = ranker.rank_each(
        [{**decision.signals, **decision.aggregates} for decision in decisions],
        [[candidate_row(candidate.prompt_version, candidate.tip)] for candidate in shown],
    )
    return np.array([float(ranking.scores[0]) for ranking in rankings]).round(DIGITS)


@dataclass(frozen=True, slots=True, eq=False)
class _Earlier:
    """The bins and the slices that the days before determine, so that intervals are valid.

    `edges`: of the bins of the calibration. `tested`: the slices that get an interval.
    """

    edges: Floats
    tested: frozenset[str]


def _earlier(ranker: LearnedPolicy, chunks: Iterable[Sequence[LoggedDecision]]) -> _Earlier:
    sizes: Counter[str] = Counter()
    hashes, predictions, highest = np.empty(0), np.empty(0), 1.0
    for chunk in chunks:
        sizes.update(name for decision in chunk for name in _segments(decision))
        hashed = [(hash_to_unit_interval("calibration", decision.id), decision) for decision in chunk]
        sampled = [decision for value, decision in hashed if value <= highest]
        hashes = np.concatenate((hashes, [value for value, _ in hashed if value <= highest]))
        predictions = np.concatenate((predictions, predict(ranker, sampled)))
        if hashes.size > EARLIER_PREDICTIONS:
            highest = float(np.partition(hashes, EARLIER_PREDICTIONS - 1)[EARLIER_PREDICTIONS - 1])
            hashes, predictions = hashes[hashes <= highest], predictions[hashes <= highest]
    quantiles = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    edges = np.unique(np.quantile(predictions, quantiles).round(DIGITS)) if predictions.size else predictions
    return _Earlier(edges, frozenset(name for name, n in sizes.items() if n >= MIN_SLICE_DECISIONS))


class _Days(defaultdict[int, Sample]):
    """Values in [0, 1] by day: one sample for each."""

    def __init__(self) -> None:
        super().__init__(Sample)

    def add(self, day: int, value: float) -> None:
        self[day] += Sample(1, value, value**2)


@dataclass(slots=True)
class _Bin:
    """One bin of the calibration: the sum of its predictions, and its rewards by day."""

    predicted: float = 0.0
    rewards: _Days = field(default_factory=_Days)


class _Predicted:
    """The predictions for held-out decisions, and their rewards, which are added in the order of time."""

    def __init__(self, edges: Floats) -> None:
        self.n, self.first, self.last = 0, 0.0, 0.0
        self.squared_errors, self.rewards = _Days(), _Days()
        self._edges = edges
        self._bins: dict[int, _Bin] = defaultdict(_Bin)

    def add(self, predictions: Floats, decisions: Sequence[LoggedDecision]) -> None:
        """Add decisions, with their predictions, shape (n,)."""
        indices = np.searchsorted(self._edges, predictions, side="right")
        for decision, prediction, index in zip(decisions, predictions.tolist(), indices.tolist(), strict=True):
            day = decision.day
            self.squared_errors.add(day, (prediction - decision.reward) ** 2)
            self.rewards.add(day, decision.reward)
            self._bins[index].predicted += prediction
            self._bins[index].rewards.add(day, decision.reward)
        if decisions:
            self.first, self.last = self.first if self.n else decisions[0].at, decisions[-1].at
            self.n += len(decisions)

    @property
    def calibration(self) -> list[CalibrationBin]:
        """The bins that have decisions."""
        bins = []
        for _, each in sorted(self._bins.items()):
            n = sum(sample.n for sample in each.rewards.values())
            estimate, low, high = _rounded(rate(each.rewards, alpha=ALPHA / (self._edges.size + 1)))
            bins.append(
                CalibrationBin(predicted=_round(each.predicted / n), observed=estimate, low=low, high=high, n=n)
            )
        return bins


def _gains(evaluated: EvaluatedDecisions) -> tuple[OffPolicySums, GainSequence, dict[str, GainSequence]]:
    """Return the sums of all decisions, and the gain over those that count: over all, and in each segment."""
    sums, gain = OffPolicySums(evaluated.n_users), GainSequence()
    gains: dict[str, GainSequence] = defaultdict(GainSequence)
    for chunk in evaluated.chunks():
        sums.add(chunk.log, chunk.model)
        counted = chunk.drawn_anew
        gain.add(chunk.gain_terms[counted])
        rows: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(counted).tolist():
            for name in _segments(chunk.decisions[row]):
                rows[name].append(row)
        for name, of_segment in rows.items():
            gains[name].add(chunk.gain_terms[of_segment])
    return sums, gain, gains


def _slices(tested: frozenset[str], gains: Mapping[str, GainSequence]) -> list[Slice]:
    """Return the gain in each segment with limits that hold for all of them, the largest `MAX_SLICES` segments."""
    largest = sorted(gains, key=lambda name: (-gains[name].decisions, name))[:MAX_SLICES]
    slices = []
    for name in sorted(largest):
        n = gains[name].decisions
        if name not in tested:
            slices.append(Slice(name=name, n=n, status="unknown"))
            continue
        gain, low, high = _rounded(gains[name].interval(alpha=ALPHA / len(tested)))
        status: SliceStatus = "harmed" if high < 0 else "not harmed" if low > -SLICE_MARGIN else "unknown"
        slices.append(Slice(name=name, n=n, value=gain, low=low, high=high, status=status))
    return slices


def _segments(decision: LoggedDecision) -> tuple[str, ...]:
    """Return the stored segments, among which is whether the user was new; or else those of the signals."""
    return decision.segments or segments(decision.signals)


def _date(at: float) -> date:
    return datetime.fromtimestamp(at, UTC).date()


def _rounded(interval: Interval) -> tuple[float, float, float]:
    return _round(interval.estimate), _round(interval.low), _round(interval.high)


def _round(value: float) -> float:
    return round(float(value), DIGITS) + 0.0
