"""The statistics of days, and the digest of the decisions that a policy has learned from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.experiments.decisions import (
    DAY_SECONDS,
    InMemoryDecisionLog,
    LoggedCandidate,
    LoggedDecision,
    NewestPrompts,
)
from ml.experiments.linear import DayAdjustedStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.pipelines import day_statistics
from ml.pipelines.day_statistics import DayStatistics, statistics_of_days, sum_statistics
from ml.pipelines.training import training_data
from tests.pipelines.logs import log_of, ranked_log_of, with_digests

LOG = [*with_digests(log_of(300), "a"), *ranked_log_of(300, seed=2)]
NONE_LEFT_OUT = NewestPrompts({})


def of_days(
    decisions: Sequence[LoggedDecision], newest: NewestPrompts = NONE_LEFT_OUT, chunk_size: int = 4_096
) -> list[DayStatistics]:
    return [*statistics_of_days(InMemoryDecisionLog(decisions, chunk_size), newest, 0.0, 1e12)]


def values(of_day: DayStatistics) -> tuple[Any, ...]:
    """Return all fields of the statistics of a day as values that can be compared."""
    others = [getattr(of_day, field.name) for field in fields(of_day) if field.name != "statistics"]
    sums = of_day.statistics
    return (*others, sums.context, sums.candidate, sums.n, sums.yy, sums.xx.tobytes(), sums.xy.tobytes())


def digest(decisions: Sequence[LoggedDecision]) -> str:
    return training_data(InMemoryDecisionLog(decisions)).sha256


@pytest.mark.parametrize("chunk_size", [1, 7, 4_096])
def test_chunks_of_any_size_give_the_same_statistics(monkeypatch: pytest.MonkeyPatch, chunk_size: int) -> None:
    expected = [values(each) for each in of_days(LOG)]
    assert [each[0] for each in expected] == [0, 1, 2]
    assert [values(each) for each in of_days(LOG, chunk_size=chunk_size)] == expected
    monkeypatch.setattr(day_statistics, "CHUNK_DECISIONS", 50)
    assert [values(each) for each in of_days(LOG, chunk_size=chunk_size)] == expected


def test_a_day_has_the_statistics_of_its_decisions_and_the_versions_that_were_shown_on_it() -> None:
    shares = {"v3": 0.5, "v9": 0.5}
    rates = {mood: {"v3": 0.4, "v9": 0.2} for mood in ("great", "low")}
    other_day = log_of(100, start=5 * DAY_SECONDS, shares=shares, rates=rates)
    *_, last = of_days([*LOG, *other_day])
    assert (last.day, last.versions, last.first, last.last) == (5, ("v3", "v9"), other_day[0].at, other_day[-1].at)
    expected = sum_statistics(other_day, ["v3", "v9"])
    assert (last.statistics.n, last.statistics.yy) == (100, expected.yy)
    np.testing.assert_array_equal(last.statistics.xx, expected.xx)


def test_adjusted_statistics_get_further_columns_without_a_rounding() -> None:
    """A version that is shown for the first time changes no number of earlier days."""
    columns = CONTEXT_ENCODER.columns, candidate_encoder(["v0", "v1", "v2", "v3", "v9"]).columns
    for each in of_days(LOG):
        adjusted = DayAdjustedStatistics.of_day(each.statistics).with_columns(*columns)
        expected = DayAdjustedStatistics.of_day(each.statistics.with_columns(*columns))
        assert (adjusted.xx.tobytes(), adjusted.xy.tobytes()) == (expected.xx.tobytes(), expected.xy.tobytes())
        assert adjusted.total.xx.tobytes() == expected.total.xx.tobytes()


def test_decisions_with_an_earlier_digest_are_counted_only() -> None:
    later = with_digests(log_of(50, start=2 * DAY_SECONDS, seed=4), "b")
    log = [*with_digests(log_of(300), "a"), *later]
    newest = InMemoryDecisionLog(log).newest_prompts()
    kept = [*newest.kept(log)]
    days = of_days(log, newest)
    assert sum(each.statistics.n for each in days) == len(kept) < 50
    assert sum(each.left_out for each in days) == len(log) - len(kept)
    assert digest(log) == digest(kept)


# The digest of the decisions


@settings(max_examples=20, deadline=None)
@given(st.permutations([*log_of(20), *ranked_log_of(20)]), st.integers(1, 50))
def test_the_digest_does_not_depend_on_order_and_chunks(shuffled: list[LoggedDecision], chunk_size: int) -> None:
    data = training_data(InMemoryDecisionLog(shuffled, chunk_size))
    assert data.sha256 == digest([*log_of(20), *ranked_log_of(20)])


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"user_id": "other"},
        {"at": 1.5},
        {"signals": {"mood": "awful"}},
        {"aggregates": {"tips_7d": 1.0}},
        {"chosen": 1},
        {"reward": 0.25},
        {"reward_in_window": 0.25},
        {"ranked": True},
        {"per_user": True},
        {"segments": ("visits:new",)},
        {"candidates": (LoggedCandidate("v1", 0.4), LoggedCandidate("v2", 0.6))},
    ],
)
def test_the_digest_depends_on_every_field_of_a_decision(change: dict[str, Any]) -> None:
    first, *others = log_of(3)
    changed = replace(replace(first, chosen=0), **change)
    assert digest([changed, *others]) != digest([replace(first, chosen=0), *others])


def test_the_digest_is_the_one_that_the_documentation_describes() -> None:
    log = ranked_log_of(200)
    days = []
    for day in (0, 1):
        decisions = [
            [
                *(each.id, each.user_id, each.at, each.signals, each.aggregates),
                [[one.prompt_version, one.probability, one.tip, one.prompt_digest] for one in each.candidates],
                *(each.chosen, each.reward, each.reward_in_window, each.ranked, each.per_user, each.segments),
            ]
            for each in log
            if each.day == day
        ]
        array = json.dumps(decisions, sort_keys=True, separators=(",", ":"))
        days.append(hashlib.sha256(array.encode("ascii")).hexdigest())
    assert digest(log) == hashlib.sha256("".join(days).encode("ascii")).hexdigest()
