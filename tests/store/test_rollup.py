"""What is counted, against a model of it: any tips and reactions, in any order and grouping."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.rewards.report import ReportWindow, RewardReporter
from ml.store.reactions import REACTIONS, EffectiveReaction, Reaction
from ml.store.rollup import CounterDelta, TipDimensions, hour_of, start_of
from ml.store.tips import TipRecord, TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, SetClock, a_tip

WINDOW = timedelta(hours=24)
START = NOW - timedelta(days=3)

minutes = st.integers(0, 3 * 24 * 60)
tips = st.builds(
    lambda version, digest, user, after, **flags: a_tip(
        prompt_version=version,
        prompt_version_asked=version,
        prompt_digest=digest * 64,
        user_id=f"u-{user}",
        created_at=START + timedelta(minutes=after),
        **flags,
    ),
    st.sampled_from(["v1", "v2-mentor"]),
    st.sampled_from("ab"),
    st.integers(0, 2),
    minutes,
    fallback=st.sampled_from([False, False, False, True]),
    shadow=st.sampled_from([False, False, False, True]),
    segments=st.sampled_from([(), ("mood:low",), ("mood:low", "locale:de")]),
    options=st.sampled_from([{"v1": 1.0}, {"v1": 0.25, "v2-mentor": 0.75}]),
    policy=st.sampled_from(["uniform", "sticky", "thompson"]),
    score_policy=st.sampled_from([None, None, "uniform", "unavailable", "linear"]),
    simulated=st.booleans(),
)


@dataclass(frozen=True)
class History:
    """Tips, reactions to them by their numbers in batches as they arrive, and what is removed at the end."""

    tips: Sequence[TipRecord]
    batches: Sequence[Sequence[Reaction]]
    forgotten: str | None
    purged: datetime | None


@st.composite
def histories(draw: st.DrawFn) -> History:
    shown = draw(st.lists(tips, min_size=1, max_size=12))
    reaction = st.builds(
        Reaction,
        st.sampled_from([tip.tip_id for tip in shown]),
        st.sampled_from([*REACTIONS]),
        st.one_of(st.none(), minutes.map(lambda after: START + timedelta(minutes=after // 60 * 60))),
    )
    batches = draw(st.lists(st.lists(reaction, min_size=1, max_size=6), max_size=10))
    again = draw(st.lists(st.sampled_from(batches), max_size=3)) if batches else []
    forgotten = draw(st.sampled_from([None, "u-0", "u-9"]))
    purged = draw(st.one_of(st.none(), minutes.map(lambda after: START + timedelta(minutes=after))))
    return History(shown, [*batches, *again], forgotten, purged)


Numbers = dict[str, Any]


def expected(history: History, segment: str) -> tuple[dict[tuple[str, str], Numbers], tuple[int, int, int]]:
    """The model: what a report on a segment has for each version and digest; which tips it leaves out, or tells of."""
    counts: dict[object, tuple[datetime, str]] = {}
    for one in (reaction for batch in history.batches for reaction in batch):
        before = counts.get(one.tip_id)
        at = one.at or (max(NOW, before[0] + timedelta(microseconds=1)) if before else NOW)
        if before is None or ((at, one.kind) > before and not (one.at is None and one.kind == before[1])):
            counts[one.tip_id] = (at, one.kind)
    kept = [
        tip
        for tip in history.tips
        if tip.user_id != history.forgotten
        and not (history.purged and tip.created_at < start_of(hour_of(history.purged)))
        and (not segment or segment in tip.segments)
    ]
    old = start_of(hour_of(NOW - WINDOW))
    groups: dict[tuple[str, str], list[TipRecord]] = defaultdict(list)
    for tip in kept:
        if not (tip.fallback or tip.shadow):
            groups[tip.prompt_version, tip.prompt_digest].append(tip)
    report = {}
    for key, group in groups.items():
        kinds = Counter(counts[tip.tip_id][1] for tip in group if tip.tip_id in counts)
        counted = sum(tip.tip_id in counts or tip.created_at < old for tip in group)
        reward = sum(REACTIONS[kind] * n for kind, n in kinds.items())
        report[key] = {"tips": len(group), "reacted": kinds.total(), "counted": counted, "kinds": kinds}
        report[key]["dependent"] = sum(tip.score_policy == "linear" or tip.policy == "sticky" for tip in group)
        report[key]["mean"] = reward / counted if counted else 0.0
    left_out = sum(tip.fallback and not tip.shadow for tip in kept), sum(tip.shadow for tip in kept)
    return report, (*left_out, sum(tip.simulated for tip in kept))


async def live(history: History, store: TipStore) -> None:
    """Let it happen: tips together, batches one after the other, then the removals."""
    await asyncio.gather(*(store.add(tip) for tip in history.tips))
    for batch in history.batches:
        await store.react(batch)
    if history.forgotten:
        await store.forget(history.forgotten)
    if history.purged:
        await store.purge(history.purged)


async def check_reports(history: History, store: TipStore) -> None:
    for segment in ("", "mood:low", "locale:de"):
        report = await RewardReporter(store, reaction_window=WINDOW, versions=()).report(
            ReportWindow(segment=segment), NOW
        )
        found = {
            (one.prompt_version, one.prompt_digest): {
                "tips": one.tips,
                "reacted": one.reacted,
                "counted": one.counted,
                "dependent": one.dependent,
                "kinds": Counter({kind: n for kind, n in one.reactions.items() if n}),
                "mean": pytest.approx(one.reward.estimate),
            }
            for one in report.variants
        }
        variants, left_out = expected(history, segment)
        assert (found, (report.fallback, report.shadow, report.simulated)) == (variants, left_out)


def check_counts(database: Database) -> None:
    """The counts are those that the rows make when they are counted anew."""
    changes = CounterDelta()
    for row in database.rows("SELECT * FROM tip_scores"):
        facts = TipDimensions(
            created_at=_time(row["created_at"]),
            segments=tuple(json.loads(row["segments"])),
            policy=row["policy"],
            score_policy=row["score_policy"],
            prompt_version_asked=row["prompt_version_asked"],
            options=json.loads(row["options"]),
            fallback=bool(row["fallback"]),
            shadow=bool(row["shadow"]),
            simulated=bool(row["simulated"]),
            **{name: row[name] for name in ("prompt_version", "prompt_digest", "input_tokens", "output_tokens", "ms")},
        )
        changes.tip(facts)
        if row["reaction"]:
            changes.reaction(facts, EffectiveReaction(_time(row["reacted_at"]), row["reaction"], row["reward"]))
    for table, counts, counted in (
        ("reward_hours", changes.rewards, "tips"),
        ("assignment_hours", changes.assignments, "expected"),
    ):
        rows = [{name: row[name] for name in sorted(row)} for row in database.rows(f"SELECT * FROM {table}")]
        anew = [_fields(key) | _fields(count) for key, count in counts.items()]
        assert _sorted(row for row in rows if row[counted] > 1e-6) == _sorted(anew)


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _sorted(rows: Any) -> list[dict[str, Any]]:
    def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: round(row[name], 6) if isinstance(row[name], float) else row[name] for name in sorted(row)}

    return sorted((rounded(row) for row in rows), key=lambda row: [str(value) for value in row.values()])


def test_candidates_that_were_not_shown_were_drawn_all_the_same(database: Database) -> None:
    async def run() -> bool:
        async with open_tip_store(database.url, SetClock()) as store:
            # Drawn evenly; what ranks them shows nothing but the second version.
            for number in range(300):
                drawn = ("v1", "v2-mentor") if number % 2 else ("v2-mentor", "v1")
                await store.add(
                    *(
                        a_tip(prompt_version=version, prompt_version_asked=version, shadow=version == "v1")
                        for version in drawn
                    )
                )
            report = await RewardReporter(store, reaction_window=WINDOW, versions=()).report(ReportWindow(), NOW)
            assert [(one.label, one.tips) for one in report.variants] == [("v2-mentor", 300)]
            assert report.sample_ratio.taken == {"v1": 300, "v2-mentor": 300}
            return report.sample_ratio.alarm

    assert not asyncio.run(run())
    check_counts(database)


TABLES = ("reactions", "tip_scores", "reward_hours", "assignment_hours")


def check_histories(database: Database, examples: int) -> None:
    with asyncio.Runner() as runner:
        opened = open_tip_store(database.url, SetClock())
        store = runner.run(opened.__aenter__())

        @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
        @given(histories())
        def check(history: History) -> None:
            for table in TABLES:
                runner.run(_clear(store, table))
            runner.run(live(history, store))
            runner.run(check_reports(history, store))
            counted.append(history)

        counted: list[History] = []
        check()
        assert counted
        runner.run(opened.__aexit__(None, None, None))
    check_counts(database)


async def _clear(store: TipStore, table: str) -> None:
    async with store.database.engine.begin() as connection:
        await connection.exec_driver_sql(f"DELETE FROM {table}")


def test_any_history_gives_the_report_of_the_model_on_sqlite(sqlite_database: Database) -> None:
    check_histories(sqlite_database, 60)


def test_any_history_gives_the_report_of_the_model_on_postgresql(postgresql_database: Database) -> None:
    check_histories(postgresql_database, 25)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories())
def test_the_counts_are_those_that_the_rows_make(sqlite_database: Database, history: History) -> None:
    async def run() -> None:
        async with open_tip_store(sqlite_database.url, SetClock()) as store:
            for table in TABLES:
                await _clear(store, table)
            await live(history, store)

    asyncio.run(run())
    check_counts(sqlite_database)
