"""The decision log of an offline store: complete decisions, with their rewards and the aggregates of their users."""

import asyncio
import math
import random
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.experiments.decisions import DAY_SECONDS, InMemoryDecisionLog, LoggedCandidate, LoggedDecision
from ml.features.offline_store import OfflineStore
from ml.pipelines.decision_rows import sampled_rows
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.store.exposures import Exposure
from ml.store.reactions import Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import DIGEST, NOW, WINDOW, SetClock, a_tip
from tests.experiments.test_decisions import decisions_of
from tests.offline import exported, logged_decisions, rows_of, write_decisions, write_tips
from tests.pipelines.logs import log_of, ranked_log_of, with_digests

DAY = timedelta(days=1)
LATER = NOW + DAY


def a_decision(*probabilities: float, shown: int = 0, **fields: Any) -> list[TipRecord]:
    """Return the records of a decision among ranked candidates; `shown`: the index of the chosen one."""
    tips = [
        a_tip(prompt_version=f"v{number}", prompt_version_asked=f"v{number}", tip=f"Tip {number}.", **fields)
        for number in range(1, len(probabilities) + 1)
    ]
    ids = [str(tip.tip_id) for tip in tips]
    ranking: dict[str, Any] = {
        "decision_id": tips[0].tip_id,
        "score_policy": "linear",
        "score_policy_version": "0123456789ab",
        "candidates": ids,
        "aggregates": {"tips_7d": 3.0},
    }
    ranking |= {name: value for name, value in fields.items() if name in ranking}
    return [
        replace(tip, score=0.4, score_probability=probability, shown=index == shown, **ranking)
        for index, (tip, probability) in enumerate(zip(tips, probabilities, strict=True))
    ]


def read_decisions(
    database: Database,
    *decisions: list[TipRecord],
    reactions: Mapping[uuid.UUID, str] | None = None,
    since: datetime | None = None,
    before: datetime = LATER,
    seen_only: bool = False,
) -> list[LoggedDecision]:
    """Store decisions, given by their records, and reactions; then return the logged decisions of the period."""

    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            for records in decisions:
                await store.add(*records)
            await store.react([Reaction(tip_id, kind) for tip_id, kind in (reactions or {}).items()])

    asyncio.run(run())
    with TemporaryDirectory() as folder:
        return logged_decisions(exported(database.url, Path(folder)), since=since, before=before, seen_only=seen_only)


def test_a_single_candidate_is_logged_as_a_decision_among_prompt_versions(database: Database) -> None:
    tip = a_tip(options={"v1": 0.25, "v2-mentor": 0.75}, prompt_version="v2-mentor", prompt_version_asked="v2-mentor")
    (decision,) = read_decisions(database, [tip], reactions={tip.tip_id: "saved"})
    assert decision == LoggedDecision(
        id=str(tip.tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={},
        candidates=(LoggedCandidate("v1", 0.25), LoggedCandidate("v2-mentor", 0.75, prompt_digest=DIGEST)),
        chosen=1,
        reward=0.5,
        reward_in_window=0.5,
        ranked=False,
        segments=("mood:low", "visits:new"),
    )


def test_with_serving_s_default_the_version_in_the_response_is_the_chosen_one(database: Database) -> None:
    tip = a_tip(prompt_version="v7", prompt_version_asked=None, options={"v7": 1.0})
    (decision,) = read_decisions(database, [tip])
    only_candidate = LoggedCandidate("v7", 1.0, prompt_digest=DIGEST)
    assert (decision.candidates, decision.chosen, decision.reward) == ((only_candidate,), 0, 0)


def test_the_chosen_candidate_is_the_version_that_was_drawn(database: Database) -> None:
    (decision,) = read_decisions(database, [a_tip(prompt_version="v1.1", prompt_version_asked="v2-mentor")])
    # The digest of another version says nothing about the drawn one.
    assert decision.candidates[decision.chosen] == LoggedCandidate("v2-mentor", 0.5)


def test_ranked_candidates_are_logged_with_their_tips_in_order(database: Database) -> None:
    rows = a_decision(0.1, 0.7, 0.2, shown=1)
    other = a_decision(0.5, 0.5, created_at=NOW + timedelta(seconds=1))
    decision, second = read_decisions(database, rows, other, reactions={rows[1].tip_id: "done"})
    assert decision == LoggedDecision(
        id=str(rows[0].tip_id),
        user_id="u-1",
        at=NOW.timestamp(),
        signals={"mood": "low"},
        aggregates={"tips_7d": 3.0},
        candidates=(
            LoggedCandidate("v1", 0.1, "Tip 1.", DIGEST),
            LoggedCandidate("v2", 0.7, "Tip 2.", DIGEST),
            LoggedCandidate("v3", 0.2, "Tip 3.", DIGEST),
        ),
        chosen=1,
        reward=1.0,
        reward_in_window=1.0,
        ranked=True,
        segments=("mood:low", "visits:new"),
    )
    assert (second.id, second.chosen, second.reward, len(second.candidates)) == (str(other[0].tip_id), 0, 0, 2)


def test_candidates_without_a_ranking_are_logged_as_a_decision_among_prompt_versions(database: Database) -> None:
    rows = a_decision(1.0, 0.0, score_policy="unavailable", aggregates=None)
    (decision,) = read_decisions(database, rows)
    candidates = LoggedCandidate("v1", 0.5, prompt_digest=DIGEST), LoggedCandidate("v2-mentor", 0.5)
    assert decision.candidates == candidates
    assert (decision.id, decision.chosen, decision.ranked) == (str(rows[0].tip_id), 0, False)
    both = read_decisions(database, a_decision(0.5, 0.5, score_policy="uniform"))
    (ranked,) = [decision for decision in both if decision.ranked]
    assert [candidate.probability for candidate in ranked.candidates] == [0.5, 0.5]


def test_decisions_that_nothing_can_be_learned_from_are_left_out(database: Database) -> None:
    kept = a_tip()
    incomplete = a_decision(0.5, 0.5)[:1]
    left_out = [[a_tip(fallback=True)], [a_tip(policy="playground")], [a_tip(shown=False)], incomplete]
    assert [decision.id for decision in read_decisions(database, [kept], *left_out)] == [str(kept.tip_id)]


def test_the_decisions_of_a_period_are_in_the_order_of_time(database: Database) -> None:
    # Several decisions at the same instant, in three days.
    hours = [0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 30, 31, 60]
    decisions = [
        a_decision(0.5, 0.5, shown=1, created_at=NOW + timedelta(hours=hour))
        if index % 2
        else [a_tip(created_at=NOW + timedelta(hours=hour))]
        for index, hour in enumerate(hours)
    ]
    logged = read_decisions(database, *reversed(decisions), before=NOW + timedelta(days=9))
    assert {decision.id for decision in logged} == {str(records[0].tip_id) for records in decisions}
    assert [(each.at, each.id) for each in logged] == sorted((each.at, each.id) for each in logged)
    some = read_decisions(database, since=NOW + timedelta(hours=1), before=NOW + timedelta(hours=3))
    assert len(some) == 8
    assert {decision.at for decision in some} == {(NOW + timedelta(hours=hour)).timestamp() for hour in (1, 2)}


def test_only_tips_that_were_seen_count_if_exposures_are_reported(database: Database) -> None:
    seen, unseen = a_tip(), a_tip()

    async def run() -> None:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            await store.add(seen, unseen)
            await store.expose([Exposure(seen.tip_id)])

    asyncio.run(run())
    assert [decision.id for decision in read_decisions(database, seen_only=True)] == [str(seen.tip_id)]


def test_a_late_reaction_changes_the_reward_but_not_the_one_in_the_window(database: Database) -> None:
    tip, clock = a_tip(), SetClock()

    async def run() -> None:
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            await store.add(tip)
            await store.react([Reaction(tip.tip_id, "saved")])
            clock.go(days=2)
            await store.react([Reaction(tip.tip_id, "done")])

    asyncio.run(run())
    (decision,) = read_decisions(database)
    assert (decision.reward, decision.reward_in_window) == (1.0, 0.5)


# Reading from Parquet


LOG = [
    *with_digests(log_of(150), "a"),
    *with_digests(ranked_log_of(150, seed=2), "b"),
    *with_digests(log_of(40, start=DAY_SECONDS, seed=3), "c"),
]
LOG.sort(key=lambda decision: (decision.at, decision.id))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> OfflineStore:
    store = OfflineStore.open(str(tmp_path_factory.mktemp("offline")))
    write_decisions(store, LOG)
    return store


@pytest.mark.parametrize("rows", [1, 7, 4_096])
def test_chunks_of_any_size_have_the_same_decisions(store: OfflineStore, rows: int) -> None:
    log = OfflineDecisionLog(store, seen_only=True, chunk_rows=rows)
    assert [decision for chunk in log.chunks() for decision in chunk] == LOG
    period = LOG[20].at, LOG[-20].at
    assert [decision for chunk in log.chunks(*period) for decision in chunk] == [
        decision for decision in LOG if period[0] <= decision.at < period[1]
    ]


@pytest.mark.parametrize("rows", [1, 7, 4_096])
def test_the_newest_prompts_are_found_without_reading_decisions(store: OfflineStore, rows: int) -> None:
    log, expected = OfflineDecisionLog(store, seen_only=False, chunk_rows=rows), InMemoryDecisionLog(LOG)
    assert log.newest_prompts().digests.keys() == {"v1", "v2", "v3"}
    for period in ((-math.inf, math.inf), (LOG[30].at, LOG[-50].at), (LOG[200].at, math.inf), (1e12, math.inf)):
        assert log.newest_prompts(*period) == expected.newest_prompts(*period)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=decisions_of(max_digests=3), rows=st.integers(1, 5))
def test_the_newest_prompts_are_those_of_the_decisions_in_memory(
    tmp_path: Path, log: list[LoggedDecision], rows: int
) -> None:
    """Among decisions at the same instant too, where the ids tell which digest is the newest."""
    store = OfflineStore.open(str(tmp_path))
    write_decisions(store, log)
    read = OfflineDecisionLog(store, seen_only=False, chunk_rows=rows)
    decisions = [decision for chunk in read.chunks() for decision in chunk]
    assert len(decisions) == len(log)
    assert read.newest_prompts() == InMemoryDecisionLog(decisions).newest_prompts()


def test_aggregates_that_were_not_logged_are_those_of_the_table(tmp_path: Path) -> None:
    store = OfflineStore.open(str(tmp_path))
    log = [replace(each, aggregates={"tips_7d": 2.0} if index == 5 else {}) for index, each in enumerate(log_of(20))]
    write_decisions(store, log)
    aggregates = [
        {"tip_id": each.id, "created_at": datetime.fromtimestamp(each.at, UTC), "reward_rate_30d": rate, "tips_7d": 1}
        for each, rate in zip(log, [0.5, None] * 10, strict=True)
        if each is not log[7]
    ]
    types = [("tip_id", pa.string()), ("created_at", pa.timestamp("us", "UTC"))]
    schema = pa.schema([*types, ("reward_rate_30d", pa.float64()), ("tips_7d", pa.int64())])
    store.replace("aggregates", 0, "first", schema, [pa.RecordBatch.from_pylist(aggregates, schema)])
    store.commit()
    for rows in (1, 3, 4_096):
        decisions = OfflineDecisionLog(store, seen_only=False, chunk_rows=rows).decisions_of_day(0)
        found = [decision.aggregates for chunk in decisions for decision in chunk]
        expected: list[dict[str, float]] = [{"reward_rate_30d": 0.5, "tips_7d": 1.0}, {"tips_7d": 1.0}] * 10
        expected[5], expected[7] = {"tips_7d": 2.0}, {}
        assert found == expected


def test_a_log_that_is_too_large_is_halved_until_it_is_not(store: OfflineStore) -> None:
    log = OfflineDecisionLog(store, seen_only=False)
    rows = sum(file.rows for file, _ in log.days().values())
    shares = {n: log.bounded(n).share for n in (rows, rows - 1, rows // 2 - 1)}
    assert [*shares.values()] == [1.0, 0.5, 0.25]
    everything = {decision.id for chunk in log.chunks() for decision in chunk}
    half, quarter = ({each.id for chunk in log.sample(s).chunks() for each in chunk} for s in (0.5, 0.25))
    assert quarter < half < everything


def test_logged_aggregates_count_even_if_the_user_had_none(tmp_path: Path) -> None:
    """`aggregates_at` says that the ranking asked for them."""
    store = OfflineStore.open(str(tmp_path))
    (first, second) = log_of(2)
    logged = [{**row, "aggregates": {}, "aggregates_at": row["created_at"]} for row in rows_of(first)]
    write_tips(store, [*logged, *rows_of(second)])
    schema = pa.schema([("tip_id", pa.string()), ("created_at", pa.timestamp("us", "UTC")), ("tips_7d", pa.int64())])
    rows = [
        {"tip_id": each.id, "created_at": datetime.fromtimestamp(each.at, UTC), "tips_7d": 3}
        for each in (first, second)
    ]
    store.replace("aggregates", 0, "first", schema, [pa.RecordBatch.from_pylist(rows, schema)])
    store.commit()
    assert [decision.aggregates for decision in logged_decisions(store)] == [{}, {"tips_7d": 3.0}]


# Samples


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_sample_has_about_its_share_of_whole_decisions(store: OfflineStore, share: float) -> None:
    whole = {decision.id: decision for decision in LOG}
    log = OfflineDecisionLog(store, seen_only=True)
    sampled = [decision for chunk in log.sample(share).chunks() for decision in chunk]
    assert abs(len(sampled) - share * len(LOG)) < 4 * math.sqrt(share * (1 - share) * len(LOG))
    assert sampled == [each for each in LOG if each.id in {decision.id for decision in sampled}]
    assert all(decision == whole[decision.id] for decision in sampled)  # with all its candidates
    assert {decision.ranked for decision in sampled} == {False, True}


def test_a_sample_is_the_same_in_chunks_of_any_size_and_part_of_a_larger_one(store: OfflineStore) -> None:
    def sampled(share: float, rows: int) -> list[str]:
        log = OfflineDecisionLog(store, seen_only=True, chunk_rows=rows).sample(share)
        return [decision.id for chunk in log.chunks() for decision in chunk]

    assert sampled(0.3, 1) == sampled(0.3, 7) == sampled(0.3, 4_096)
    assert {*sampled(0.3, 7)} < {*sampled(0.6, 7)} < {*sampled(1.0, 7)} == {decision.id for decision in LOG}


def test_a_sample_of_random_ids_has_its_share() -> None:
    ids = [str(uuid.UUID(int=random.Random(number).getrandbits(128))) for number in range(5_000)]
    # Ids of tips that were written one after the other differ in few letters.
    similar = [f"{ids[0][:-5]}{number:05x}" for number in range(5_000)]
    for tip_ids in (ids, similar):
        block = pa.record_batch({"tip_id": tip_ids, "decision_id": pa.nulls(len(tip_ids), pa.string())})
        for share in (0.01, 0.25, 0.99):
            n = sampled_rows(block, share).num_rows
            assert abs(n - share * len(tip_ids)) < 5 * math.sqrt(share * (1 - share) * len(tip_ids))
