"""Exposures, failed generations and late reactions: what is stored, and how it is counted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.experiments.statistics import Sample
from ml.platform.errors import RequestInProgress
from ml.platform.idempotency_key import IdempotencyKey
from ml.platform.settings import ConfigurationError
from ml.store.exposures import Exposure
from ml.store.hours import hour_of
from ml.store.idempotency import KeyClaim
from ml.store.reactions import REACTIONS, Reaction, UnknownTipsError
from ml.store.recount import recount
from ml.store.tip_records import TipRecord
from ml.store.tips import Reservation, TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_failure, a_tip
from tests.store.rebuilt_counts import check_counts

ALL_HOURS = range(2**31 - 1)
LATE = WINDOW + timedelta(seconds=1)


@asynccontextmanager
async def opened(
    database: Database, clock: SetClock | None = None, window: timedelta = WINDOW
) -> AsyncIterator[TipStore]:
    async with open_tip_store(database.url, clock or SetClock(), reaction_window=window) as store:
        yield store


async def draws(store: TipStore, segment: str = "") -> dict[tuple[str, str, bool], tuple[int, float]]:
    """Return the numbers of tips and their rewards by version, outcome and whether they were seen."""
    counts = await store.counts.draws(segment, ALL_HOURS, hour_of(NOW))
    return {(count.prompt_version, count.outcome, count.seen): (count.tips, count.reward) for count in counts}


def test_the_first_exposure_within_the_window_makes_a_tip_seen(database: Database) -> None:
    async def run() -> None:
        clock = SetClock()
        async with opened(database, clock) as store:
            first, second = a_tip(), a_tip()
            await store.add(first, second)
            await store.react([Reaction(first.tip_id, "saved")])
            at = NOW + timedelta(minutes=1)
            results = await store.expose([Exposure(first.tip_id, at), Exposure(first.tip_id)])
            assert [(result.outcome, result.at) for result in results] == [("recorded", at), ("repeated", at)]
            clock.now = NOW + LATE
            results = await store.expose([Exposure(second.tip_id), Exposure(first.tip_id)])
            assert [(result.outcome, result.at) for result in results] == [("late", clock.now), ("repeated", at)]
            assert [result.outcome for result in await store.expose([Exposure(second.tip_id)])] == ["repeated"]
            expected = {("v1", "comparable", True): (1, 0.5), ("v1", "comparable", False): (1, 0)}
            assert await draws(store) == expected == await draws(store, "mood:low")
            assert await store.counts.first_exposure_hour() == hour_of(NOW)
            seen = await store.counts.daily_rewards(2**31 - 1, seen_only=True)
            assert [*seen.values()] == [{("v1", first.prompt_digest): Sample(1, 0.5, 0.25)}]

    asyncio.run(run())
    check_counts(database)


def test_exposures_of_unknown_tips_are_refused_and_none_is_stored(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            await store.add(tip := a_tip())
            with pytest.raises(UnknownTipsError) as raised:
                await store.expose([Exposure(tip.tip_id), Exposure(uuid4())])
            assert raised.value.indexes == (1,)

    asyncio.run(run())
    assert database.count("exposures") == 0


def test_a_late_reaction_changes_the_reward_but_not_the_draws(database: Database) -> None:
    async def run() -> None:
        clock = SetClock()
        async with opened(database, clock) as store:
            tip, other = a_tip(), a_tip(user_id="u-2")
            await store.add(tip, other)
            await store.react([Reaction(tip.tip_id, "saved")])
            clock.now = NOW + LATE
            await store.react([Reaction(tip.tip_id, "done"), Reaction(other.tip_id, "done")])
            assert await draws(store) == {("v1", "comparable", False): (2, 0.5)}
            (day,) = (await store.counts.daily_rewards(2**31 - 1, seen_only=False)).values()
            assert day == {("v1", tip.prompt_digest): Sample(2, 2, 2)}

    asyncio.run(run())
    rows = database.rows("SELECT user_id, reward, reward_in_window FROM tip_scores")
    rewards = {row["user_id"]: (row["reward"], row["reward_in_window"]) for row in rows}
    assert rewards == {"u-1": (1, 0.5), "u-2": (1, None)}
    check_counts(database)


def test_when_the_clock_goes_back_only_reactions_received_in_the_window_count(database: Database) -> None:
    async def run() -> None:
        clock = SetClock(NOW + LATE)
        async with opened(database, clock) as store:
            await store.add(tip := a_tip())
            await store.react([Reaction(tip.tip_id, "done")])
            clock.now = NOW + timedelta(hours=1)
            await store.react([Reaction(tip.tip_id, "saved", NOW)])
            assert await draws(store) == {("v1", "comparable", False): (1, 0.5)}

    asyncio.run(run())
    check_counts(database)


def test_a_failure_counts_as_a_draw_until_a_retry_writes_the_tip(database: Database) -> None:
    key = IdempotencyKey("k" * 64, "b" * 64)

    async def run() -> None:
        async with opened(database) as store:
            failure, other = a_failure(), a_failure(prompt_version_asked=None, options={}, user_id="u-2")
            for _ in range(2):
                await store.add_failures([failure, other])
            assert await draws(store) == {("v2-mentor", "failed", False): (1, 0), ("", "failed", False): (1, 0)}
            async with store.reserve(key, "u-1", [], timedelta(seconds=9)) as reserved:
                assert isinstance(reserved, Reservation)
                await store.add(a_tip(tip_id=failure.tip_id, prompt_version_asked="v2-mentor"), claim=reserved.claim)
            with pytest.raises(RequestInProgress):  # another attempt has answered the request
                await store.add_failures([a_failure()], KeyClaim(key, "u-1"))
            await store.add_failures([failure])
            assert await draws(store) == {("v2-mentor", "comparable", False): (1, 0), ("", "failed", False): (1, 0)}

    asyncio.run(run())
    assert database.count("generation_failures") == 1
    check_counts(database)


def test_forget_and_purge_remove_exposures_and_failures_but_purge_keeps_the_draws_of_everyone(
    database: Database,
) -> None:
    async def run() -> None:
        async with opened(database) as store:
            for user in ("u-1", "u-2"):
                tip = a_tip(user_id=user)
                await store.add(tip, failures=[a_failure(user_id=user)])
                await store.expose([Exposure(tip.tip_id)])
            assert await store.forget("u-1") == 1
            assert await draws(store) == {("v1", "comparable", True): (1, 0), ("v2-mentor", "failed", False): (1, 0)}
            await asyncio.to_thread(check_counts, database)
            assert await store.purge(NOW + timedelta(hours=1)) == 1
            assert await draws(store, "mood:low") == {}
            kept = {("v1", "comparable", True): (1, 0), ("v2-mentor", "failed", False): (1, 0)}
            assert await draws(store) == kept
            assert (await recount(store.database, WINDOW)).dropped_hours == 0
            assert await draws(store) == kept
            assert (await recount(store.database, 2 * WINDOW)).dropped_hours == 1
            assert await draws(store) == {}

    asyncio.run(run())
    for table in ("tip_scores", "exposures", "generation_failures", "reward_hours", "draw_hours"):
        assert database.count(table) == 0


def test_another_window_is_refused_until_the_recount(database: Database) -> None:
    async def fill() -> None:
        clock = SetClock()
        async with opened(database, clock) as store:
            tips = [a_tip(tip_id=UUID(int=number)) for number in range(3)]
            await store.add(*tips, failures=[a_failure()])
            clock.go(hours=2)
            await store.expose([Exposure(tips[0].tip_id)])
            await store.react([Reaction(tips[1].tip_id, "saved")])

    async def start(window: timedelta) -> None:
        async with opened(database, window=window) as store:
            await recount(store.database, timedelta(hours=1))

    asyncio.run(fill())
    with pytest.raises(ConfigurationError, match=r"REACTION_WINDOW_HOURS: is 1, but .* with 24; .*`tips recount`"):
        asyncio.run(start(timedelta(hours=1)))
    asyncio.run(start(WINDOW))
    check_counts(database, timedelta(hours=1))
    assert database.rows("SELECT 1 FROM tip_scores WHERE seen OR reward_in_window IS NOT NULL") == []
    with pytest.raises(ConfigurationError, match="is 24, but the stored tips were counted with 1;"):
        asyncio.run(start(WINDOW))


def test_the_draws_of_users_are_grouped_by_distribution_version_and_exposure(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as store:
            seen = a_tip(user_id="u-2")
            await store.add(
                *(a_tip(user_id=user, segments=("mood:low", "locale:de")) for user in ("u-1", "u-1", "u-2")),
                *(a_tip(**fields) for fields in ({"fallback": True}, {"shown": False}, {"policy": "sticky"})),
                a_tip(score_policy="linear"),
                seen,
            )
            await store.expose([Exposure(seen.tip_id)])
            await store.react([Reaction(seen.tip_id, "saved")])
            next_hour = hour_of(NOW) + 1
            found = [draw async for draw in store.user_draws("", ALL_HOURS, next_hour)]
            groups = {(draw.user, draw.seen): draw.rewards for draw in found}
            assert groups == {(0, False): Sample(2), (1, False): Sample(1), (1, True): Sample(1, 0.5, 0.25)}
            assert {(draw.prompt_version, *draw.options.items()) for draw in found} == {
                ("v1", ("v1", 0.5), ("v2-mentor", 0.5))
            }
            german = [draw.rewards.n async for draw in store.user_draws("locale:de", ALL_HOURS, next_hour)]
            assert german == [2, 1]
            assert [draw async for draw in store.user_draws("locale:DE", ALL_HOURS, next_hour)] == []
            assert [draw async for draw in store.user_draws("", ALL_HOURS, next_hour - 1)] == []

    asyncio.run(run())


events = st.tuples(
    st.sampled_from(["react", "expose", "fail", "write"]),
    st.integers(0, 3),
    st.sampled_from([*REACTIONS]),
    st.integers(0, 48),
    st.one_of(st.none(), st.integers(0, 48)),
)


async def replay(store: TipStore, clock: SetClock, history: list[Any], forgotten: str | None) -> None:
    """Store four tips, and then what happens to them at any time, with a clock that goes forward and back."""
    tips: list[TipRecord] = [
        a_tip(user_id=f"u-{number % 2}", policy_asked="abc", policy_options={"uniform": 0.75, "abc": 0.25})
        for number in range(4)
    ]
    await store.add(*tips)
    kinds: Counter[str] = Counter()
    for kind, number, reaction, hour, at in history:
        clock.now = NOW + timedelta(hours=hour)
        time, tip_id = None if at is None else NOW + timedelta(hours=at), tips[number].tip_id
        kinds[kind] += 1
        if kind == "react":
            await store.react([Reaction(tip_id, reaction, time)])
        elif kind == "expose":
            await store.expose([Exposure(tip_id, time)])
        elif kind == "fail":
            await store.add_failures([a_failure(tip_id=UUID(int=number), user_id=f"u-{number % 2}")])
        else:
            await store.add(a_tip(user_id=f"u-{number % 2}"), failures=[a_failure()])
    if forgotten:
        await store.forget(forgotten)


def check_histories(database: Database, max_examples: int) -> None:
    @settings(max_examples=max_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(st.lists(events, max_size=12), st.sampled_from([None, "u-1"]), st.sampled_from([1, 24, 30]))
    def check(history: list[Any], forgotten: str | None, hours: int) -> None:
        counters = ("reward_hours", "draw_hours", "ranking_hours")
        for table in ("exposures", "reactions", "tip_scores", "generation_failures", *counters):
            database.rows(f"DELETE FROM {table}")

        async def run() -> None:
            clock = SetClock()
            async with opened(database, clock) as store:
                await replay(store, clock, history, forgotten)

        async def count_again() -> None:
            async with opened(database) as store:
                await recount(store.database, timedelta(hours=hours))

        asyncio.run(run())
        check_counts(database)
        asyncio.run(count_again())
        check_counts(database, timedelta(hours=hours))

    check()


def test_any_history_is_counted_as_its_rows_say_before_and_after_a_recount_on_sqlite(
    sqlite_database: Database,
) -> None:
    check_histories(sqlite_database, 40)


def test_any_history_is_counted_as_its_rows_say_before_and_after_a_recount_on_postgresql(
    postgresql_database: Database,
) -> None:
    check_histories(postgresql_database, 12)
