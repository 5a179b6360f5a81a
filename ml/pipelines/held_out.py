"""Figures of a policy on held-out days: errors, gain over the log, calibration, and the gain in each slice.

The policy was fitted to the days before. All intervals are confidence sequences: each family of them (the calibration,
the slices) misses with a probability of at most `ALPHA` at any number of decisions. They are about these decisions.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ml.experiments.arrays import Floats
from ml.experiments.confidence_sequence import rate
from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.regression_statistics import interaction_features
from ml.experiments.statistics import Interval, Sample
from ml.features.definitions import segments
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.pipelines.evaluation import EvaluationData, NothingToEvaluate, evaluation_data
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
CHUNK_DECISIONS = 1_024
"""Decisions whose features are in memory at a time."""
DIGITS = 6
"""Figures are rounded, so that they are the same on all machines."""
_DAY = 86_400.0


def day_of(decision: LoggedDecision) -> int:
    """Return the day of a decision, in days since 1970 (UTC)."""
    return int(decision.at // _DAY)


def dataset_digest(decisions: Sequence[LoggedDecision]) -> str:
    """Return the SHA-256 (hex) of decisions, the same for any order.

    Each decision is written as JSON in ASCII (all fields of `LoggedDecision`, keys sorted, no spaces) and hashed; the
    digest is that of the sorted hashes (hex), one after the other.
    """
    hashes = sorted(hashlib.sha256(_canonical_json(decision)).hexdigest() for decision in decisions)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _canonical_json(decision: LoggedDecision) -> bytes:
    def as_dict(value: LoggedDecision | LoggedCandidate | Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return dict(value)
        return {field.name: getattr(value, field.name) for field in fields(value)}

    return json.dumps(decision, default=as_dict, separators=(",", ":"), sort_keys=True).encode()


def held_out_figures(
    policy: RankingPolicy,
    earlier: Sequence[LoggedDecision],
    held_out: Sequence[LoggedDecision],
    *,
    contrast_error: float,
) -> HeldOutFigures:
    """Return the figures of a policy that was fitted to `earlier`, on the decisions of later days.

    Both have at least one decision, in the order of time. `contrast_error`: the mean squared error of contrasts within
    the held-out days (`DayAdjustedStatistics.contrast_error`).
    """
    first, last = (datetime.fromtimestamp(held_out[index].at, UTC).date() for index in (0, -1))
    source = f"tips train, held-out days {first} to {last} (UTC)"
    n = len(held_out)
    predicted, rewards = predict(policy, held_out), np.array([decision.reward for decision in held_out])
    calibration = _calibration(predict(policy, earlier), predicted, rewards, held_out)

    def metric(name: str, value: float | Interval, n: int = n) -> Metric:
        if isinstance(value, Interval):
            estimate, low, high = _rounded(value)
            return Metric(name=name, value=estimate, low=low, high=high, n=n, source=source)
        return Metric(name=name, value=_round(value), n=n, source=source)

    metrics = [
        metric("contrast_error", contrast_error),
        metric("squared_error", rate(_by_day((predicted - rewards) ** 2, held_out), alpha=ALPHA)),
        metric("calibration_error", sum(each.n / n * abs(each.predicted - each.observed) for each in calibration)),
        metric("logged_reward", rate(_by_day(rewards, held_out), alpha=ALPHA)),
    ]
    slices: list[Slice] = []
    try:
        data = evaluation_data(held_out, RankingTarget(LearnedPolicy(policy)))
    except NothingToEvaluate:
        data = None
    if data is not None and data.gain_refusal is None:
        n_counted = int(data.drawn_anew.sum())
        metrics.append(metric("gain", data.gain(alpha=ALPHA), n_counted))
        metrics.append(metric("effective_sample_size", data.log.effective_sample_size, len(data.decisions)))
        slices = _slices(earlier, data)
    return HeldOutFigures(decisions=n, metrics=tuple(metrics), calibration=tuple(calibration), slices=tuple(slices))


def predict(policy: RankingPolicy, decisions: Sequence[LoggedDecision]) -> Floats:
    """Return the expected reward of the tip that was shown at each decision, shape (n,), in [0, 1]."""
    encoder, predicted = candidate_encoder(policy.card.versions), []
    for start in range(0, len(decisions), CHUNK_DECISIONS):
        chunk = decisions[start : start + CHUNK_DECISIONS]
        shown = [decision.candidates[decision.chosen] for decision in chunk]
        features = interaction_features(
            CONTEXT_ENCODER.encode_rows([{**decision.signals, **decision.aggregates} for decision in chunk]),
            encoder.encode_rows([candidate_row(candidate.prompt_version, candidate.tip) for candidate in shown]),
        )
        predicted.append(features @ policy.model.weights.ravel())
    return np.clip(np.concatenate(predicted), 0.0, 1.0).round(DIGITS)


def _by_day(values: Floats, decisions: Sequence[LoggedDecision]) -> dict[int, Sample]:
    """Return the values, in [0, 1], as one sample for each day."""
    days: dict[int, Sample] = defaultdict(Sample)
    for value, decision in zip(values.tolist(), decisions, strict=True):
        days[day_of(decision)] += Sample(1, value, value**2)
    return days


def _calibration(
    earlier: Floats, predicted: Floats, rewards: Floats, held_out: Sequence[LoggedDecision]
) -> list[CalibrationBin]:
    """Return the bins that have decisions. Their edges are known before the held-out days, so intervals are valid."""
    edges = np.unique(np.quantile(earlier, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS).round(DIGITS))
    indices = np.searchsorted(edges, predicted, side="right")
    bins = []
    for index in np.unique(indices).tolist():
        rows = indices == index
        decisions = [held_out[row] for row in np.flatnonzero(rows).tolist()]
        observed = rate(_by_day(rewards[rows], decisions), alpha=ALPHA / (edges.size + 1))
        estimate, low, high = _rounded(observed)
        mean = _round(predicted[rows].mean())
        bins.append(CalibrationBin(predicted=mean, observed=estimate, low=low, high=high, n=len(decisions)))
    return bins


def _slices(earlier: Sequence[LoggedDecision], data: EvaluationData) -> list[Slice]:
    """Return the gain in each segment with limits that hold for all of them, the largest `MAX_SLICES` segments.

    Which segments get an interval is known before the held-out days.
    """
    sizes = Counter(name for decision in earlier for name in _segments(decision))
    tested = {name for name, n in sizes.items() if n >= MIN_SLICE_DECISIONS}
    rows: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(data.drawn_anew).tolist():
        for name in _segments(data.decisions[row]):
            rows[name].append(row)
    largest = sorted(rows, key=lambda name: (-len(rows[name]), name))[:MAX_SLICES]
    slices = []
    for name in sorted(largest):
        n = len(rows[name])
        if name not in tested:
            slices.append(Slice(name=name, n=n, status="unknown"))
            continue
        is_in_slice = np.zeros(len(data.decisions), np.bool_)
        is_in_slice[rows[name]] = True
        gain, low, high = _rounded(data.gain(is_in_slice, alpha=ALPHA / len(tested)))
        status: SliceStatus = "harmed" if high < 0 else "not harmed" if low > -SLICE_MARGIN else "unknown"
        slices.append(Slice(name=name, n=n, value=gain, low=low, high=high, status=status))
    return slices


def _segments(decision: LoggedDecision) -> tuple[str, ...]:
    """Return the stored segments, among which is whether the user was new; or else those of the signals."""
    return decision.segments or segments(decision.signals)


def _rounded(interval: Interval) -> tuple[float, float, float]:
    return _round(interval.estimate), _round(interval.low), _round(interval.high)


def _round(value: float) -> float:
    return round(float(value), DIGITS) + 0.0
