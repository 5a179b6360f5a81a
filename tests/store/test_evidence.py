"""Dated figures about rollouts: the newest ones of each day and name are kept."""

import asyncio
from datetime import timedelta

from ml.store.database import Database as OpenDatabase
from ml.store.evidence import EvidenceLog, EvidenceRow
from ml.store.hours import hour_of
from tests.databases import Database
from tests.example_tips import NOW


def test_figures_replace_those_of_the_same_day_name_and_rollout_only(database: Database) -> None:
    later, tomorrow = NOW + timedelta(hours=2), NOW + timedelta(hours=3)
    day = hour_of(NOW) // 24
    assert hour_of(later) // 24 == day
    assert hour_of(tomorrow) // 24 == day + 1

    async def run() -> None:
        store = OpenDatabase(database.url)
        log = EvidenceLog(store)
        await log.record(2, NOW, {})
        assert await log.history(2) == []
        await log.record(2, NOW, {"reward": {"low": -0.1, "tips": 3}, "unusable": {"high": None}})
        await log.record(2, later, {"reward": {"low": -0.05, "tips": 9}})
        await log.record(2, tomorrow, {"reward": {"low": 0.01, "tips": 90}})
        await log.record(5, NOW, {"reward": {"low": 0.5}})
        assert await log.history(2) == [
            EvidenceRow(2, "reward", day, later, {"low": -0.05, "tips": 9}),
            EvidenceRow(2, "unusable", day, NOW, {"high": None}),
            EvidenceRow(2, "reward", day + 1, tomorrow, {"low": 0.01, "tips": 90}),
        ]
        assert await log.history(5) == [EvidenceRow(5, "reward", day, NOW, {"low": 0.5})]
        await store.close()

    asyncio.run(run())
