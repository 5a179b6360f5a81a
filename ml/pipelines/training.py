"""Training of a ranking policy from the decision log, on the days that predict the newest ones best.

The log is read as a stream: what is in memory are the statistics of the days that windows are compared on, and the sum
of those before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, reduce
from operator import add

from ml.experiments.decisions import DAY_SECONDS, DecisionLog, SelectedDecisions
from ml.experiments.linear import DayAdjustedStatistics, fit
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.pipelines.day_statistics import StatisticsOfDays, dataset_digest, statistics_of_days
from ml.pipelines.held_out import held_out_figures
from ml.registry.artifacts import HeldOutFigures, PolicyCard, RankingPolicy, WindowError
from ml.registry.cards import Training

WINDOWS = (28, 14, 7)
"""The windows, in days, that are compared with all days; a shorter one adapts faster when preferences change."""
HELD_OUT_DAYS = 3
"""The newest days, whose rewards are predicted from the days before to choose the window."""
MIN_DEVIATIONS = 2.0
"""A shorter window is chosen if its error is lower than that of all days by this number of standard deviations."""
SEPARATE_DAYS = 2 * HELD_OUT_DAYS + max(WINDOWS)
"""The newest days whose statistics are kept apart. There are two sets of held-out days: the policy that is measured on
the newest ones also chooses its window on the three before."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """The decisions that a policy is trained with, as sums.

    `log`: the decisions. `days`: the statistics of the newest `SEPARATE_DAYS` days by day since 1970, with the sum of
    all days before as those of the first day. `last_times`: the time of the last decision of each day. `versions`: the
    prompt versions of the tips that were shown, sorted. `first`: the time of the first decision. `decisions`: their
    number. `left_out`: the number of those with an earlier digest of a prompt version. `sha256`: the digest of the
    decisions (`dataset_digest`). `share`: of all decisions of the period that are in the log.
    """

    log: SelectedDecisions
    days: Mapping[int, DayAdjustedStatistics]
    last_times: Mapping[int, float]
    versions: tuple[str, ...]
    first: float
    decisions: int
    left_out: int
    sha256: str
    share: float = 1.0

    @property
    def last(self) -> float:
        """The time of the last decision."""
        return max(self.last_times.values())


def train(log: DecisionLog, *, name: str = "tips", since: float = -math.inf, before: float = math.inf) -> bytes:
    """Return a policy that is trained on the tips of a period that were shown, as the content of its file.

    Decisions with an earlier digest of a prompt version are left out (`NewestPrompts`). The same decisions give the
    same bytes, whatever the chunks of the log. Raises ValueError without decisions, and (pydantic's) for a name that a
    policy cannot have.
    """
    return train_with(training_data(log, since=since, before=before), name=name)


def training_data(
    log: DecisionLog,
    *,
    since: float = -math.inf,
    before: float = math.inf,
    days_of: StatisticsOfDays | None = None,
    share: float = 1.0,
) -> TrainingData:
    """Return the decisions from `since` (included) to `before` (excluded) as sums, for `train_with`.

    Both in Unix seconds. `days_of`: yields the statistics of the days of this log; by default they are computed.
    `share`: of all decisions that are in this log.
    """
    days_of = days_of or partial(statistics_of_days, log)
    selected = SelectedDecisions.of_period(log, since, before)
    days: dict[int, DayAdjustedStatistics] = {}
    last_times: dict[int, float] = {}
    versions: tuple[str, ...] = ()
    digests: list[str] = []
    first, decisions, left_out = math.inf, 0, 0
    for of_day in days_of(selected.newest, since, before):
        left_out += of_day.left_out
        if not of_day.statistics.n:
            continue
        versions = tuple(sorted({*versions, *of_day.versions}))
        first, last_times[of_day.day] = min(first, of_day.first), of_day.last
        decisions += of_day.statistics.n
        digests.append(of_day.sha256)
        days[of_day.day] = DayAdjustedStatistics.of_day(of_day.statistics)
        _sum_days_before(days, of_day.day - SEPARATE_DAYS + 1, versions)
    columns = CONTEXT_ENCODER.columns, candidate_encoder(versions).columns
    return TrainingData(
        selected,
        {day: statistics.with_columns(*columns) for day, statistics in days.items()},
        last_times,
        versions,
        first,
        decisions,
        left_out,
        dataset_digest(digests),
        share,
    )


def _sum_days_before(days: dict[int, DayAdjustedStatistics], separate_since: int, versions: Sequence[str]) -> None:
    """Add the days before `separate_since` to the first day, in their order, so that the sum is always the same."""
    first, *others = days  # in the order of days
    columns = CONTEXT_ENCODER.columns, candidate_encoder(versions).columns
    for day in others:
        if day >= separate_since:
            return
        days[first] = days[first].with_columns(*columns) + days.pop(day).with_columns(*columns)


def train_with(data: TrainingData, *, name: str = "tips") -> bytes:
    """Return the policy that is trained with these decisions; see `train`."""
    if not data.decisions:
        raise ValueError("there are no decisions to learn from")
    policy = fit_policy(data.days, name=name, versions=data.versions, trained_until=data.last)
    card = policy.card.model_copy(
        update={"training": _training(policy.card, data), "held_out": _held_out_figures(data, name=name)}
    )
    return RankingPolicy(card, policy.model).to_bytes()


def _training(card: PolicyCard, data: TrainingData) -> Training:
    return Training(
        since=datetime.fromtimestamp(data.first, UTC),
        until=datetime.fromtimestamp(data.last, UTC),
        decisions=data.decisions,
        learned_from=card.learned_from,
        dataset_sha256=data.sha256,
        window_days=card.window_days,
        share=data.share,
    )


def _held_out_figures(data: TrainingData, *, name: str) -> HeldOutFigures | None:
    """Return the figures of the policy of the days before the `HELD_OUT_DAYS` newest ones; None without such days."""
    since = max(data.days) - HELD_OUT_DAYS + 1
    earlier = {day: of_day for day, of_day in data.days.items() if day < since}
    if not earlier:
        return None
    trained_until = max(last for day, last in data.last_times.items() if day < since)
    policy = fit_policy(earlier, name=name, versions=data.versions, trained_until=trained_until)
    contrast_error = _sum_since(data.days, since).contrast_error(policy.model)
    return held_out_figures(
        policy, data.log, since=since * DAY_SECONDS, until=data.log.before, contrast_error=contrast_error
    )


def fit_policy(
    days: Mapping[int, DayAdjustedStatistics], *, name: str, versions: Sequence[str], trained_until: float
) -> RankingPolicy:
    """Return the policy that is fitted to the statistics of the days of a window, at least one decision in all.

    `days`: by day since 1970. `versions`: the prompt versions among the columns. `trained_until`: the time of the last
    decision, in Unix seconds. Raises ValueError (pydantic's) for a name that a policy cannot have.
    """
    errors = window_errors(days)
    better = [each for each in errors if each.error + MIN_DEVIATIONS * each.deviation < errors[0].error]
    window = min(better, key=lambda each: each.error).days if better else None
    statistics = _sum_since(days, max(days) - window + 1 if window else min(days))
    card = PolicyCard(
        name=name,
        context=statistics.total.context,
        candidate=statistics.total.candidate,
        versions=tuple(versions),
        learned_from=statistics.total.n,
        trained_until=trained_until,
        window_days=window,
        window_errors=tuple(errors),
    )
    return RankingPolicy(card, fit(statistics))


def window_errors(days: Mapping[int, DayAdjustedStatistics]) -> list[WindowError]:
    """Return the error of each window on the `HELD_OUT_DAYS` newest days, when fitted to the days before.

    The longest window, all days, comes first. Empty if there are not more days than the shortest window needs. Errors
    are mean squared errors of contrasts within days, rounded, so that they are the same on all machines.
    """
    held_out_since = max(days) - HELD_OUT_DAYS + 1
    earlier = {day: statistics for day, statistics in days.items() if day < held_out_since}
    if not earlier or held_out_since - min(days) <= min(WINDOWS):
        return []
    held_out = _sum_since(days, held_out_since)
    of_all_days = fit(_sum_since(earlier, min(days)))
    errors = []
    for window in (None, *WINDOWS):
        since = held_out_since - window if window else min(days)
        if since < min(days) or not any(day >= since for day in earlier):
            continue
        model = fit(_sum_since(earlier, since)) if window else of_all_days
        error, deviation = held_out.contrast_error(model), held_out.error_deviation(model, of_all_days)
        errors.append(WindowError(days=window, error=round(error, 6), deviation=round(deviation, 6)))
    return errors


def _sum_since(days: Mapping[int, DayAdjustedStatistics], since: int) -> DayAdjustedStatistics:
    """Return the sum over the days from `since` on, in their order, so that it is always the same."""
    return reduce(add, (statistics for day, statistics in sorted(days.items()) if day >= since))
