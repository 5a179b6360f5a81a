"""The time that tips take to write: the 95th percentile of a version, and how many tips are slower than a limit."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, Text, cast, func, select

from ml.store.database import Database
from ml.store.hours import hour_of, start_of
from ml.store.tables import tip_scores

_SETTLED = timedelta(minutes=10)
"""A tip is stored at most this long after its `created_at`, so the hours before do not change any more."""

_MAX_CACHED = 16

_TIPS = tip_scores.c
_IS_WRITTEN = _TIPS.shown & ~_TIPS.fallback
"""Tips of fallback models are unusable, whatever time they took."""


@dataclass(frozen=True, slots=True)
class LatencyCounts:
    """Tips of one day (since 1970) for which one version was drawn under one distribution; `slow`: above the limit."""

    day: int
    options: Mapping[str, float]
    prompt_version: str
    slow: bool
    tips: int


class Latencies:
    """Reads the column `ms` of the shown tips that no fallback model wrote. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settled: dict[tuple[int, int], tuple[int, list[LatencyCounts]]] = {}

    async def percentile(self, version: str, since: datetime, before: datetime, *, min_tips: int) -> int | None:
        """Return the 95th percentile of the tips of a version in a period, in ms; None below `min_tips`."""
        written = _of_version(version, since).where(_TIPS.created_at < before)
        async with self._database.reading() as connection:
            n: int = (await connection.execute(select(func.count()).select_from(written.subquery()))).scalar_one()
            if n < min_tips:
                return None
            ranked = written.order_by(_TIPS.ms).offset(_rank(n)).limit(1)
            return int((await connection.execute(ranked)).one().ms)

    async def first(self, version: str, since: datetime, tips: int) -> tuple[int, datetime] | None:
        """Return the 95th percentile of the first `tips` tips of a version since a time; None if there are fewer.

        In ms, with the time of the last one of them.
        """
        query = _of_version(version, since).order_by(_TIPS.created_at, _TIPS.tip_id).limit(tips)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        if len(rows) < tips:
            return None
        return sorted(row.ms for row in rows)[_rank(tips)], rows[-1].created_at

    async def counts(self, limit_ms: int, since: datetime, now: datetime) -> list[LatencyCounts]:
        """Return the counts of the tips after `since`; the hours that have ended are read once, and kept in memory."""
        key = limit_ms, hour_of(since)
        settled = max(hour_of(now - _SETTLED), hour_of(since))
        read_until, found = self._settled.get(key, (hour_of(since), []))
        if read_until < settled:
            found = [*found, *await self._count(limit_ms, max(since, start_of(read_until)), start_of(settled))]
            if len(self._settled) >= _MAX_CACHED:
                self._settled.clear()
            self._settled[key] = settled, found
        return [*found, *await self._count(limit_ms, max(since, start_of(settled)), now + _SETTLED)]

    async def _count(self, limit_ms: int, since: datetime, before: datetime) -> list[LatencyCounts]:
        options, is_slow = cast(_TIPS.options, Text).label("options"), (_TIPS.ms > limit_ms).label("slow")
        query = select(options, _TIPS.prompt_version_asked, is_slow, func.count().label("tips"))
        query = query.where(_IS_WRITTEN, _TIPS.prompt_version_asked.is_not(None))
        query = query.group_by(options, _TIPS.prompt_version_asked, is_slow)
        found = []
        async with self._database.reading() as connection:
            # One day at a time, since the dialects have no expression for the day in common.
            for day in range(hour_of(since) // 24, hour_of(before) // 24 + 1):
                start, end = max(since, start_of(24 * day)), min(before, start_of(24 * day + 24))
                rows = await connection.execute(query.where(_TIPS.created_at >= start, _TIPS.created_at < end))
                found += [
                    LatencyCounts(day, json.loads(row.options), row.prompt_version_asked, bool(row.slow), row.tips)
                    for row in rows
                ]
        return found


def _of_version(version: str, since: datetime) -> Select[int, datetime]:
    query = select(_TIPS.ms, _TIPS.created_at)
    return query.where(_IS_WRITTEN, _TIPS.prompt_version == version, _TIPS.created_at >= since)


def _rank(n: int) -> int:
    """Return the index of the 95th percentile among `n` sorted values."""
    return math.ceil(0.95 * n) - 1
