"""Drift of features between days, and the equality of what `/score` used with what the log gives."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.features.definitions import AGGREGATES, SIGNALS
from ml.features.offline_store import OfflineStore, date_of_day
from ml.pipelines import drift
from ml.pipelines.drift import MAX_UNSEEN, drift_figures, equality, feature_drifts
from ml.pipelines.export import export
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.registry.artifacts import RankingPolicy
from tests.databases import Database
from tests.offline import write_decisions
from tests.pipelines.logs import DAY, decision, ranked_log_of
from tests.pipelines.nights import COUNTED, LAST_DAY, PER_DAY, fill
from tests.policies import policy

DECISIONS = 800


def decisions(seed: int, n: int = DECISIONS, *, stress: float = 5.0, **fields: Any) -> list[LoggedDecision]:
    """Return decisions with random signals. `stress`: its mean. `fields`: of all of them."""
    rng = np.random.default_rng(seed)
    return [
        decision(
            id=f"d-{seed}-{number}",
            signals={
                "mood": ("great", "low")[int(rng.integers(2))],
                "stress": int(np.clip(rng.normal(stress, 2), 1, 10)),
                "sleep_hours": float(rng.normal(7, 1)),
                **fields.get("signals", {}),
            },
            aggregates={"reward_rate_30d": float(rng.random())} if rng.random() < 0.7 else {},
            chosen=int(rng.integers(2)),
            **{name: value for name, value in fields.items() if name != "signals"},
        )
        for number in range(n)
    ]


def test_without_a_change_the_stability_index_is_about_what_is_expected() -> None:
    drifts = [feature_drifts(decisions(seed), decisions(seed + 100)) for seed in range(8)]
    assert drifts[0].keys() == {*SIGNALS, *AGGREGATES, "prompt_version"}
    for name in ("mood", "stress", "sleep_hours", "reward_rate_30d", "prompt_version"):
        mean = np.mean([each[name].psi for each in drifts])
        expected = drifts[0][name].expected
        assert 0.4 < mean / expected < 1.8, name
        assert max(each[name].psi for each in drifts) < 0.1, name
    assert drifts[0]["steps_today"].psi == 0  # missing everywhere


def test_the_stability_index_is_that_of_the_shares_of_each_bin() -> None:
    today = decisions(1, 90, signals={"mood": "low"}) + decisions(2, 10, signals={"mood": "great"})
    before = decisions(3, 50, signals={"mood": "low"}) + decisions(4, 50, signals={"mood": "great"})
    p, q = np.array([90.5, 10.5]) / 101, np.array([50.5, 50.5]) / 101
    mood = feature_drifts(today, before)["mood"]
    assert mood.psi == round(float(((p - q) * np.log(p / q)).sum()), 6)
    assert mood.expected == round(1 / 100 + 1 / 100, 6)


def test_a_shift_of_a_number_is_large_and_of_this_feature_only() -> None:
    drifts = feature_drifts(decisions(1, stress=8.0), decisions(2))
    assert drifts["stress"].psi > 0.25
    assert all(each.psi < 0.1 for name, each in drifts.items() if name != "stress")


def test_a_value_that_is_missing_on_the_day_is_a_change() -> None:
    before = decisions(1)
    today = [replace(each, signals={"mood": each.signals["mood"]}) for each in decisions(2)]
    drifts = feature_drifts(today, before)
    assert drifts["sleep_hours"].psi > 1
    assert drifts["sleep_hours"].unseen == 0


def test_values_that_the_days_before_did_not_have_are_named() -> None:
    before = decisions(1)
    today = [
        replace(each, signals={**each.signals, "mood": "awful"} if number % 4 == 0 else each.signals)
        for number, each in enumerate(decisions(2))
    ]
    mood = feature_drifts(today, before)["mood"]
    assert (mood.unseen, mood.unseen_values) == (0.25, ("awful",))
    many = [
        replace(each, candidates=(LoggedCandidate(f"v{number}", 1.0),), chosen=0) for number, each in enumerate(today)
    ]
    versions = feature_drifts(many, before)["prompt_version"]
    assert versions.unseen > 0.99
    assert len(versions.unseen_values) == MAX_UNSEEN


def test_the_words_of_users_are_not_in_the_figures() -> None:
    secret = {"goal": "Leave my husband."}
    drifts = feature_drifts(decisions(1, 50, signals=secret), decisions(2, 50))
    assert "husband" not in str(drifts)
    assert drifts["goal"].psi > 1


def test_a_day_without_decisions_or_without_days_before_has_no_features() -> None:
    assert feature_drifts([], decisions(1, 10)) == feature_drifts(decisions(1, 10), []) == {}


# The figures of a day


def a_log(folder: Path, *parts: Sequence[LoggedDecision]) -> OfflineDecisionLog:
    """Return a log with each part on a day of its own, from day 0 on."""
    store = OfflineStore.open(str(folder))
    write_decisions(
        store, (replace(each, at=day * DAY + each.at % DAY) for day, part in enumerate(parts) for each in part)
    )
    return OfflineDecisionLog(store, seen_only=False)


def ranking_policy() -> RankingPolicy:
    return RankingPolicy.from_bytes(policy())


def test_prompt_versions_that_the_policy_does_not_know_are_counted(tmp_path: Path) -> None:
    known = ranked_log_of(60, seed=1)
    new = [
        replace(each, candidates=tuple(replace(one, prompt_version="v9") for one in each.candidates))
        for each in ranked_log_of(20, seed=2)
    ]
    figures = drift_figures(a_log(tmp_path, known, new), ranking_policy(), 1, COUNTED)
    assert (figures["decisions"], figures["reference_decisions"]) == (20, 60)
    assert figures["unknown_version_share"] == 1.0
    assert figures["features"]["prompt_version"]["unseen_values"] == ("v9",)


def test_the_effective_share_falls_when_the_policy_leaves_the_log(tmp_path: Path) -> None:
    """Among equal candidates the policy is that of the log; where a rare tip is the better one, it is not."""
    tips = ("Take ten slow breaths at the open window.", "Dim the lights now and leave your phone in another room.")
    versions = ("v2-mentor", "v1")

    def ranked(probabilities: Sequence[float], seed: int) -> list[LoggedDecision]:
        rng = np.random.default_rng(seed)
        candidates = tuple(
            LoggedCandidate(version, probability, tip)
            for version, probability, tip in zip(versions, probabilities, tips, strict=True)
        )
        return [
            decision(
                id=f"r-{seed}-{number}",
                signals={"mood": "low", "stress": 5},
                candidates=candidates,
                chosen=int(rng.random() >= probabilities[0]),
                ranked=True,
                at=float(number),
            )
            for number in range(400)
        ]

    log = a_log(tmp_path, ranked((0.9, 0.1), 1), ranked((0.1, 0.9), 2))
    figures = drift_figures(log, ranking_policy(), 1, COUNTED)
    assert 0 < figures["effective_share"] < 0.3
    assert 0.7 < figures["reference_effective_share"] <= 1


def test_a_day_without_tips_has_figures_that_say_so(tmp_path: Path) -> None:
    figures = drift_figures(a_log(tmp_path, ranked_log_of(10)), ranking_policy(), 5, COUNTED)
    assert figures["day"] == str(date_of_day(5))
    assert (figures["decisions"], figures["reference_decisions"]) == (0, 10)
    assert (figures["features"], figures["equality"]) == ({}, {"checked": 0, "different": 0})
    assert figures["unknown_version_share"] is figures["effective_share"] is None


def test_large_days_are_sampled_always_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = a_log(tmp_path, ranked_log_of(100, seed=1), ranked_log_of(100, seed=2))
    whole = drift_figures(log, ranking_policy(), 1, COUNTED)
    monkeypatch.setattr(drift, "SAMPLE", 80)
    sampled = drift_figures(log, ranking_policy(), 1, COUNTED)
    rows = {day: file.rows for day, (file, _) in log.days().items()}
    assert whole["decisions"] == 100
    assert 15 < sampled["decisions"] < 100 * 80 / rows[1] + 25
    other_chunks = OfflineDecisionLog(OfflineStore.open(str(tmp_path)), seen_only=False, chunk_rows=7)
    assert drift_figures(other_chunks, ranking_policy(), 1, COUNTED) == sampled


# Train/serve equality


@pytest.fixture(scope="module")
def filled(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose last day used the aggregates as of its start."""
    file = tmp_path_factory.mktemp("filled") / "tips.db"
    shutil.copy(sqlite_template, file)
    fill(Database(f"sqlite+aiosqlite:///{file}"), LAST_DAY, days=5)
    return file


def differences(filled: Path, folder: Path, sql: str) -> dict[str, int]:
    """Change the database by SQL, and compare the last day."""
    database = Database(f"sqlite+aiosqlite:///{folder}/tips.db")
    shutil.copy(filled, database.file)
    database.rows(sql)
    offline = OfflineStore.open(f"{folder}/offline")
    export(database.url, offline)
    return equality(OfflineDecisionLog(offline, seen_only=False), LAST_DAY, COUNTED)


OF_LAST_DAY = "shown AND created_at >= '2026-01-30'"


def test_aggregates_of_the_log_are_those_that_score_used(filled: Path, tmp_path: Path) -> None:
    assert differences(filled, tmp_path, "SELECT 1") == {"checked": PER_DAY, "different": 0}


@pytest.mark.parametrize(
    "change",
    [
        """aggregates = json_set(aggregates, '$.tips_7d', json_extract(aggregates, '$.tips_7d') + 1)""",
        """aggregates = json_set(aggregates, '$.reward_rate_30d', 0.1234)""",
        """aggregates = json_remove(aggregates, '$.tips_7d')""",
        # As of a day on which they were in the future.
        """aggregates_at = '2026-01-28 00:00:00.000000'""",
    ],
)
def test_aggregates_that_differ_from_those_of_the_log_are_counted(filled: Path, tmp_path: Path, change: str) -> None:
    one = f"(SELECT tip_id FROM tip_scores WHERE {OF_LAST_DAY} AND json_extract(aggregates, '$.tips_7d') > 3 LIMIT 1)"
    found = differences(filled, tmp_path, f"UPDATE tip_scores SET {change} WHERE tip_id = {one}")
    assert found == {"checked": PER_DAY, "different": 1}


def test_only_the_first_tips_of_a_day_are_checked(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "CHECKED", 7)
    assert differences(filled, tmp_path, "SELECT 1") == {"checked": 7, "different": 0}
