"""Training of a ranking policy from the decision log, on the days that predict the newest ones best."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import add

import numpy as np

from ml.experiments.decisions import LoggedDecision, with_newest_prompts
from ml.experiments.linear import DayAdjustedStatistics, fit
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.pipelines.held_out import dataset_digest, day_of, held_out_figures
from ml.registry.artifacts import HeldOutFigures, PolicyCard, RankingPolicy, WindowError
from ml.registry.cards import Training

CHUNK_DECISIONS = 4_096
"""Decisions whose columns are in memory at a time."""
WINDOWS = (28, 14, 7)
"""The windows, in days, that are compared with all days; a shorter one adapts faster when preferences change."""
HELD_OUT_DAYS = 3
"""The newest days, whose rewards are predicted from the days before to choose the window."""
MIN_DEVIATIONS = 2.0
"""A shorter window is chosen if its error is lower than that of all days by this number of standard deviations."""


def train(decisions: Sequence[LoggedDecision], *, name: str = "tips") -> bytes:
    """Return a policy that is trained on the tips that were shown, as the content of its file.

    Decisions with an earlier digest of a prompt version are left out (`with_newest_prompts`). The same decisions, in
    any order, give the same bytes. Raises ValueError without decisions, and (pydantic's) for a name that a policy
    cannot have.
    """
    decisions = with_newest_prompts(decisions)
    if not decisions:
        raise ValueError("there are no decisions to learn from")
    versions = shown_versions(decisions)
    days: dict[int, list[LoggedDecision]] = defaultdict(list)
    for decision in decisions:
        days[day_of(decision)].append(decision)
    # Days before every window are summed at once, since the statistics of a day take megabytes. There are two sets of
    # held-out days: the policy that is measured on the newest ones also chooses its window on the three before.
    first_day, first_of_windows = min(days), max(days) - 2 * HELD_OUT_DAYS - max(WINDOWS) + 1
    statistics: dict[int, DayAdjustedStatistics] = {}
    for day, of_day in sorted(days.items()):
        key = day if day >= first_of_windows else first_day
        adjusted = DayAdjustedStatistics.of_day(sum_statistics(of_day, versions))
        statistics[key] = statistics[key] + adjusted if key in statistics else adjusted
    policy = fit_policy(statistics, name=name, versions=versions, trained_until=decisions[-1].at)
    card = policy.card.model_copy(
        update={
            "training": _training(policy.card, decisions),
            "held_out": _held_out_figures(statistics, decisions, name=name, versions=versions),
        }
    )
    return RankingPolicy(card, policy.model).to_bytes()


def _training(card: PolicyCard, decisions: Sequence[LoggedDecision]) -> Training:
    return Training(
        since=datetime.fromtimestamp(decisions[0].at, UTC),
        until=datetime.fromtimestamp(decisions[-1].at, UTC),
        decisions=len(decisions),
        learned_from=card.learned_from,
        dataset_sha256=dataset_digest(decisions),
        window_days=card.window_days,
    )


def _held_out_figures(
    days: Mapping[int, DayAdjustedStatistics],
    decisions: Sequence[LoggedDecision],
    *,
    name: str,
    versions: Sequence[str],
) -> HeldOutFigures | None:
    """Return the figures of the policy of the days before the `HELD_OUT_DAYS` newest ones; None without such days."""
    since = max(days) - HELD_OUT_DAYS + 1
    earlier = [decision for decision in decisions if day_of(decision) < since]
    if not earlier:
        return None
    statistics = {day: of_day for day, of_day in days.items() if day < since}
    policy = fit_policy(statistics, name=name, versions=versions, trained_until=earlier[-1].at)
    contrast_error = _sum_since(days, since).contrast_error(policy.model)
    return held_out_figures(policy, earlier, decisions[len(earlier) :], contrast_error=contrast_error)


def shown_versions(decisions: Sequence[LoggedDecision]) -> list[str]:
    """Return the prompt versions of the tips that were shown, sorted."""
    return sorted({decision.candidates[decision.chosen].prompt_version for decision in decisions})


def sum_statistics(decisions: Sequence[LoggedDecision], versions: Sequence[str]) -> RegressionStatistics:
    """Return the regression statistics of the tips that were shown, with columns for these prompt versions.

    Statistics of parts, such as days, add up to those of the whole, to the last bit, in any order.
    """
    encoder = candidate_encoder(versions)
    statistics = RegressionStatistics.empty(CONTEXT_ENCODER.columns, encoder.columns)
    for start in range(0, len(decisions), CHUNK_DECISIONS):
        chunk = decisions[start : start + CHUNK_DECISIONS]
        shown = [decision.candidates[decision.chosen] for decision in chunk]
        statistics += RegressionStatistics.from_rows(
            CONTEXT_ENCODER.columns,
            encoder.columns,
            CONTEXT_ENCODER.encode_rows([{**decision.signals, **decision.aggregates} for decision in chunk]),
            encoder.encode_rows([candidate_row(candidate.prompt_version, candidate.tip) for candidate in shown]),
            np.array([decision.reward for decision in chunk]),
        )
    return statistics


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
