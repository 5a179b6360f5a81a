"""The aggregates of users, beside SQL on the stored tips with their present rewards."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
from sqlalchemy import case, func, select

from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY
from ml.pipelines.aggregates import CountedTips, snapshot, write_snapshots
from ml.store import tables
from ml.store.exposures import Exposure
from ml.store.reactions import REACTIONS, Reaction
from ml.store.tips import TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.pipelines.offline_tips import Tip, write_tips

_TIPS = tables.tip_scores.c
TODAY = NOW.replace(hour=0, minute=0)
YESTERDAY = int(TODAY.timestamp()) // 86_400 - 1
MICROSECOND = timedelta(microseconds=1)


async def in_sql(store: TipStore, now: datetime, *, seen_only: bool) -> dict[str, Mapping[str, float]]:
    """Return each user's aggregates at the present, from the effective reactions that the store keeps."""
    is_mature = _TIPS.created_at < now - WINDOW
    query = (
        select(
            _TIPS.user_id,
            func.avg(case((is_mature, func.coalesce(_TIPS.reward, 0.0)))),
            func.count(case((_TIPS.created_at >= now - timedelta(days=7), 1))),
        )
        .where(_TIPS.shown, _TIPS.created_at >= now - timedelta(days=30), _TIPS.created_at < now)
        .group_by(_TIPS.user_id)
    )
    if seen_only:
        query = query.where(_TIPS.seen)
    async with store.database.reading() as connection:
        rows = (await connection.execute(query)).all()
    return {
        user_id: ({} if rate is None else {"reward_rate_30d": float(rate)}) | {"tips_7d": float(tips)}
        for user_id, rate, tips in rows
    }


async def stored_tips(store: TipStore) -> list[Tip]:
    """Return all tips of the store, with their reactions and exposures."""

    def at(time: datetime) -> int:
        return (time - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND

    async with store.database.reading() as connection:
        tips = (await connection.execute(select(tables.tip_scores))).mappings().all()
        reactions = (await connection.execute(select(tables.reactions))).mappings().all()
        exposures = (await connection.execute(select(tables.exposures))).mappings().all()
    exposed_at = {row["tip_id"]: at(row["received_at"]) for row in exposures}
    history: dict[UUID, list[tuple[int, str, int]]] = {row["tip_id"]: [] for row in tips}
    for row in reactions:
        history[row["tip_id"]].append((at(row["at"]), row["reaction"], at(row["received_at"])))
    return [
        Tip(
            row["tip_id"].int,
            row["user_id"],
            at(row["created_at"]),
            tuple(history[row["tip_id"]]),
            exposed_at.get(row["tip_id"]),
            shown=row["shown"],
        )
        for row in tips
    ]


async def store_history(store: TipStore, clock: SetClock) -> None:
    """Store tips of some users over 40 days, and reactions and exposures that come late and in any order."""
    rng = np.random.default_rng(3)
    tips = []
    for hour in range(0, 40 * 24, 6):
        clock.now = TODAY - timedelta(days=40) + timedelta(hours=hour)
        if rng.random() < 0.7:
            tip = a_tip(user_id=f"u-{rng.integers(4)}", created_at=clock.now, shown=bool(rng.random() < 0.8))
            tips.append(tip)
            await store.add(tip)
        recent = [tip for tip in tips if clock.now - tip.created_at < timedelta(days=4)]
        if recent and rng.random() < 0.6:
            tip = recent[rng.integers(len(recent))]
            at = clock.now - timedelta(hours=int(rng.integers(48))) if rng.random() < 0.5 else None
            await store.react([Reaction(tip.tip_id, str(rng.choice([*REACTIONS])), at)])
        if recent and rng.random() < 0.6:
            await store.expose([Exposure(recent[rng.integers(len(recent))].tip_id)])


def test_the_aggregates_of_now_are_those_of_the_stored_rewards(sqlite_database: Database, tmp_path: Path) -> None:
    expected = {}

    async def run() -> list[Tip]:
        clock = SetClock()
        async with open_tip_store(sqlite_database.url, clock, reaction_window=WINDOW) as store:
            await store_history(store, clock)
            clock.now = TODAY
            for seen_only in (False, True):
                expected[seen_only] = await in_sql(store, TODAY, seen_only=seen_only)
            return await stored_tips(store)

    write_tips(offline := OfflineStore.open(str(tmp_path)), asyncio.run(run()))
    for seen_only, of_users in expected.items():
        write_snapshots(offline, CountedTips(WINDOW, seen_only), [YESTERDAY])
        assert dict(snapshot(offline, YESTERDAY)) == of_users
        assert len(of_users) == 4


def test_the_aggregates_of_users_are_those_of_their_shown_and_mature_tips(tmp_path: Path) -> None:
    tips: list[Tip] = []

    def show(user: str, reaction: str | None = None, **age: float) -> None:
        created_at = (YESTERDAY + 1) * DAY - timedelta(**age) // MICROSECOND
        reactions = ((created_at + 1, reaction, created_at + 1),) if reaction else ()
        tips.append(Tip(len(tips), user, created_at, reactions))
        tips.append(Tip(len(tips), user, created_at, shown=False))

    show("often", "done", days=2)
    show("often", "saved", days=8)
    show("often", "not_helpful", days=29)
    show("often", days=10)
    show("often", "done", hours=1)
    show("often", "done", days=31)
    show("today", "done", hours=23)
    show("long ago", "done", days=40)
    offline = OfflineStore.open(str(tmp_path))
    counted = CountedTips(WINDOW, seen_only=False)
    for forgotten, expected in (
        ("", {"often": {"reward_rate_30d": 1.5 / 4, "tips_7d": 2}, "today": {"tips_7d": 1}}),
        ("often", {"today": {"tips_7d": 1}}),
    ):
        write_tips(offline, [tip for tip in tips if tip.user_id != forgotten])
        write_snapshots(offline, counted, [YESTERDAY, YESTERDAY - 50])
        assert dict(snapshot(offline, YESTERDAY)) == expected
        assert dict(snapshot(offline, YESTERDAY - 50)) == {}
