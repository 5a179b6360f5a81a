"""The counts of `rollup.py`, kept in the transactions that change what they count: they are never stale."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.experiments.statistics import Sample
from ml.store.database import Database
from ml.store.rollup import ALL_TIPS, EVERYONE, CounterDelta, DayCounts
from ml.store.tables import as_row, assignment_hours, reward_hours

_VARIANT = ("prompt_version", "prompt_digest", "fallback", "shadow")
_WHOLE = ("tips", "input_tokens", "output_tokens", "ms", "simulated", "dependent")
_SUMS = (*_WHOLE, "reward", "reward_squared")
_NOTHING = 1e-6
"""A sum of propensities is below this when it is zero but for rounding."""


class Counts:
    """What is counted, by the hour. All that reads raises StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Made once: SQLAlchemy then knows them again, and need not look at all their parts each time.
        self._add_rewards = _adding_up(database.upsert(reward_hours))
        self._add_assignments = _adding_up(database.upsert(assignment_hours))

    async def days(self, segment: str, hours: range, mature_before: int) -> list[DayCounts]:
        """Return the counts of these hours, day by day; tips of hours below `mature_before` are old enough."""
        table = reward_hours
        day = (table.c.hour // 24).label("day")
        mature = (table.c.hour < mature_before).label("mature")
        keys = (day, *(table.c[name] for name in _VARIANT), table.c.reaction, mature)
        sums = [func.sum(table.c[name]).label(name) for name in _SUMS]
        query = select(*keys, *sums).where(*_within(table, segment, hours)).group_by(*keys)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return [
                DayCounts(**{**row, **{name: int(row[name]) for name in _WHOLE}, "mature": bool(row["mature"])})
                for row in rows
            ]

    async def earned(self, before: int) -> dict[str, Sample]:
        """Return the rewards of each version over all hours below `before`, no reaction being one of 0."""
        table = reward_hours
        tips = func.sum(case((table.c.reaction == ALL_TIPS, table.c.tips), else_=0))
        query = select(table.c.prompt_version, tips, func.sum(table.c.reward), func.sum(table.c.reward_squared))
        query = query.where(table.c.segment == EVERYONE, table.c.hour < before, ~table.c.fallback, ~table.c.shadow)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.group_by(table.c.prompt_version))
            return {version: Sample(int(n), total, squares) for version, n, total, squares in rows}

    async def assignments(self, segment: str, hours: range) -> dict[str, tuple[int, float]]:
        """Return, for each version, how often it was taken and how often it should have been."""
        table = assignment_hours
        query = select(table.c.prompt_version, func.sum(table.c.taken), func.sum(table.c.expected))
        query = query.where(*_within(table, segment, hours)).group_by(table.c.prompt_version)
        async with self._database.reading() as connection:
            return {version: (int(n), float(p)) for version, n, p in await connection.execute(query)}

    async def add(self, connection: AsyncConnection, changes: CounterDelta) -> None:
        """Add changes in the transaction of the rows that they come from."""
        rewards = _rows(changes.rewards)
        assignments = _rows(changes.assignments)
        if rewards:
            await connection.execute(self._add_rewards, rewards)
        if assignments:
            await connection.execute(self._add_assignments, assignments)

    async def remove(self, connection: AsyncConnection, before: int) -> None:
        """Remove the counts of all hours below `before`."""
        for table in (reward_hours, assignment_hours):
            await connection.execute(delete(table).where(table.c.hour < before))

    async def remove_empty(self, connection: AsyncConnection) -> None:
        """Remove the counts of nothing: where somebody was forgotten, they would tell that there was somebody."""
        for table, counted in ((reward_hours, "tips"), (assignment_hours, "expected")):
            await connection.execute(delete(table).where(func.abs(table.c[counted]) < _NOTHING))


def _adding_up(upsert: sqlite.Insert | postgresql.Insert) -> sqlite.Insert | postgresql.Insert:
    """Add to the counts that are there already."""
    sums = {c.name: c + upsert.excluded[c.name] for c in upsert.table.columns if not c.primary_key}
    return upsert.on_conflict_do_update(index_elements=list(upsert.table.primary_key), set_=sums)


def _rows(counts: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Return counts as rows in the order of their keys, so that two writers never wait each for the other."""
    rows = [{**as_row(key), **as_row(count)} for key, count in counts.items()]
    return sorted(rows, key=lambda row: tuple(row.values()))


def _within(table: Table, segment: str, hours: range) -> tuple[Any, Any]:
    return table.c.segment == segment, table.c.hour.between(hours.start, hours.stop - 1)
