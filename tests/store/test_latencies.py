"""The time that tips take to write, as it is read from the stored tips."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from ml.store.latencies import Latencies
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip

START = NOW - timedelta(hours=30)


def test_percentiles_and_slow_tips_are_those_of_the_stored_tips(database: Database) -> None:
    async def run() -> None:
        clock = SetClock(START)
        async with open_tip_store(database.url, clock, reaction_window=WINDOW) as store:
            latencies = Latencies(store.database)
            tips = [a_tip(created_at=START + timedelta(hours=hour), ms=1_000 + hour) for hour in range(30)]
            other: dict[str, Any] = {"created_at": START, "prompt_version": "v2-mentor", "ms": 5_000}
            tips.append(a_tip(**other, prompt_version_asked="v2-mentor"))
            ignored = [a_tip(**other, fallback=True), a_tip(**other, shown=False)]
            await store.add(*tips, *ignored)

            assert await latencies.percentile("v1", START, NOW, min_tips=30) == 1_028
            assert await latencies.percentile("v1", START, NOW, min_tips=31) is None
            assert await latencies.percentile("v1", START, START + timedelta(hours=10), min_tips=1) == 1_009
            assert await latencies.first("v1", START, 20) == (1_018, START + timedelta(hours=19))
            assert await latencies.first("v1", START, 31) is None

            # The hours that have ended are kept in memory from one look to the next.
            for hours, expected in ((0, 2), (7, 9), (30, 31), (30, 31)):
                counts = await latencies.counts(1_020, START, START + timedelta(hours=hours))
                assert sum(each.tips for each in counts) == expected
            found: Counter[tuple[str, bool]] = Counter()
            for each in counts:
                assert each.options == {"v1": 0.5, "v2-mentor": 0.5}
                found[each.prompt_version, each.slow] += each.tips
            assert found == {("v1", False): 21, ("v1", True): 9, ("v2-mentor", True): 1}
            assert {each.day for each in counts} == {tip.created_at.toordinal() - 719_163 for tip in tips}

    asyncio.run(run())
