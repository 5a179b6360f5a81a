"""The counters and reports, compared with a model: any tips and reactions, in any order and grouping."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.rewards.report import ReportWindow, RewardReporter
from ml.store.hours import hour_of, start_of
from ml.store.reactions import REACTIONS, Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.store.rebuilt_counts import check_counts

START = NOW - timedelta(days=3)

minutes = st.integers(0, 3 * 24 * 60)
tips = st.builds(
    lambda version, digest, user, minute, **fields: a_tip(
        prompt_version=version,
        prompt_version_asked=version,
        prompt_digest=digest * 64,
        user_id=f"u-{user}",
        created_at=START + timedelta(minutes=minute),
        **fields,
    ),
    st.sampled_from(["v1", "v2-mentor"]),
    st.sampled_from("ab"),
    st.integers(0, 2),
    minutes,
    fallback=st.sampled_from([False, False, False, True]),
    shown=st.sampled_from([True, True, True, False]),
    segments=st.sampled_from([(), ("mood:low",), ("mood:low", "locale:de")]),
    options=st.sampled_from([{"v1": 1.0}, {"v1": 0.25, "v2-mentor": 0.75}]),
    policy=st.sampled_from(["uniform", "sticky", "thompson", "rollout", "holdout"]),
    policy_options=st.sampled_from([None, {"uniform": 1.0}, {"uniform": 0.9, "abc": 0.1}]),
    policy_asked=st.sampled_from(["uniform", "abc"]),
    score_policy=st.sampled_from([None, None, "uniform", "unavailable", "linear"]),
    simulated=st.booleans(),
)


@dataclass(frozen=True)
class History:
    """Tips, batches of reactions in the order of arrival, the user to forget, and the time before which to purge."""

    tips: Sequence[TipRecord]
    batches: Sequence[Sequence[Reaction]]
    forgotten: str | None
    purged: datetime | None


@st.composite
def histories(draw: st.DrawFn) -> History:
    stored = draw(st.lists(tips, min_size=1, max_size=12))
    reaction = st.builds(
        Reaction,
        st.sampled_from([tip.tip_id for tip in stored]),
        st.sampled_from([*REACTIONS]),
        st.one_of(st.none(), minutes.map(lambda minute: START + timedelta(minutes=minute // 60 * 60))),
    )
    batches = draw(st.lists(st.lists(reaction, min_size=1, max_size=6), max_size=10))
    repeated = draw(st.lists(st.sampled_from(batches), max_size=3)) if batches else []
    forgotten = draw(st.sampled_from([None, "u-0", "u-9"]))
    purged = draw(st.one_of(st.none(), minutes.map(lambda minute: START + timedelta(minutes=minute))))
    return History(stored, [*batches, *repeated], forgotten, purged)


Figures = dict[str, Any]


def expected_report(history: History, segment: str) -> tuple[dict[tuple[str, str], Figures], tuple[int, int, int]]:
    """Return the figures of each version and digest in the report on a segment, by a model that keeps all rows.

    And the numbers of fallback tips, of tips that were not shown, and of simulated tips.
    """
    effective: dict[object, tuple[datetime, str]] = {}
    for reaction in (reaction for batch in history.batches for reaction in batch):
        before = effective.get(reaction.tip_id)
        at = reaction.at or (max(NOW, before[0] + timedelta(microseconds=1)) if before else NOW)
        is_repeated = before is not None and reaction.at is None and reaction.kind == before[1]
        if before is None or ((at, reaction.kind) > before and not is_repeated):
            effective[reaction.tip_id] = (at, reaction.kind)
    kept = [
        tip
        for tip in history.tips
        if tip.user_id != history.forgotten
        and not (history.purged and tip.created_at < start_of(hour_of(history.purged)))
        and (not segment or segment in tip.segments)
    ]
    mature_before = start_of(hour_of(NOW - WINDOW))
    groups: dict[tuple[str, str], list[TipRecord]] = defaultdict(list)
    for tip in kept:
        if tip.shown and not tip.fallback:
            groups[tip.prompt_version, tip.prompt_digest].append(tip)
    report = {}
    for key, group in groups.items():
        independent = [
            tip
            for tip in group
            if tip.policy == "rollout" or (tip.score_policy != "linear" and tip.policy not in ("sticky", "holdout"))
        ]
        kinds = Counter(effective[tip.tip_id][1] for tip in group if tip.tip_id in effective)
        counted = [tip for tip in independent if tip.created_at < mature_before]
        reward = sum(REACTIONS[effective[tip.tip_id][1]] for tip in counted if tip.tip_id in effective)
        report[key] = {"tips": len(group), "reacted": kinds.total(), "counted": len(counted), "kinds": kinds}
        report[key]["dependent"] = len(group) - len(independent)
        report[key]["young"] = len(independent) - len(counted)
        report[key]["mean"] = reward / len(counted) if counted else None
    fallback, not_shown = sum(tip.fallback and tip.shown for tip in kept), sum(not tip.shown for tip in kept)
    return report, (fallback, not_shown, sum(tip.simulated for tip in kept))


async def replay(history: History, store: TipStore) -> None:
    """Store all tips concurrently, then the batches one by one, then delete."""
    await asyncio.gather(*(store.add(tip) for tip in history.tips))
    for batch in history.batches:
        await store.react(batch)
    if history.forgotten:
        await store.forget(history.forgotten)
    if history.purged:
        await store.purge(history.purged)


async def check_reports(history: History, store: TipStore) -> None:
    for segment in ("", "mood:low", "locale:de"):
        report = await RewardReporter(store, versions=(), exposure_reported=False).report(
            ReportWindow(segment=segment), NOW
        )
        figures = {
            (variant.prompt_version, variant.prompt_digest): {
                "tips": variant.tips,
                "reacted": variant.reacted,
                "counted": variant.counted,
                "dependent": variant.dependent,
                "young": variant.young,
                "kinds": Counter({kind: n for kind, n in variant.reactions.items() if n}),
                "mean": variant.reward and pytest.approx(variant.reward.estimate),
            }
            for variant in report.variants
        }
        numbers = (report.fallback, report.not_shown, report.simulated)
        assert (figures, numbers) == expected_report(history, segment)


def test_candidates_that_were_not_shown_count_as_draws(database: Database) -> None:
    async def run() -> bool:
        async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as store:
            # Both versions are drawn equally often; only the second one is shown.
            for number in range(300):
                drawn = ("v1", "v2-mentor") if number % 2 else ("v2-mentor", "v1")
                await store.add(
                    *(
                        a_tip(prompt_version=version, prompt_version_asked=version, shown=version != "v1")
                        for version in drawn
                    )
                )
            report = await RewardReporter(store, versions=(), exposure_reported=False).report(ReportWindow(), NOW)
            assert [(variant.label, variant.tips) for variant in report.variants] == [("v2-mentor", 300)]
            drawn_test, written_test = report.funnel.tests
            assert drawn_test.observed == written_test.observed == {"v1": 300, "v2-mentor": 300}
            return drawn_test.alarm or written_test.alarm

    assert not asyncio.run(run())
    check_counts(database)


TABLES = (
    *("exposures", "reactions", "tip_scores", "generation_failures"),
    *("reward_hours", "draw_hours", "ranking_hours"),
)


def check_histories(database: Database, max_examples: int) -> None:
    with asyncio.Runner() as runner:
        opened = open_tip_store(database.url, SetClock(), reaction_window=WINDOW)
        store = runner.run(opened.__aenter__())

        @settings(
            max_examples=max_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
        )
        @given(histories())
        def check(history: History) -> None:
            for table in TABLES:
                runner.run(_clear(store, table))
            runner.run(replay(history, store))
            runner.run(check_reports(history, store))
            checked.append(history)

        checked: list[History] = []
        check()
        assert checked
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
def test_the_counts_equal_the_counts_rebuilt_from_the_rows(sqlite_database: Database, history: History) -> None:
    async def run() -> None:
        async with open_tip_store(sqlite_database.url, SetClock(), reaction_window=WINDOW) as store:
            for table in TABLES:
                await _clear(store, table)
            await replay(history, store)

    asyncio.run(run())
    check_counts(sqlite_database)
