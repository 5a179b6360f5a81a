"""The stored counters of `rollup.py`, changed in the transactions of the rows that they count."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.experiments.statistics import Sample
from ml.store.database import Database
from ml.store.rollup import ALL_TIPS, EVERYONE, CounterDelta, DayCounts
from ml.store.tables import as_row, assignment_hours, reward_hours

_VARIANT_COLUMNS = ("prompt_version", "prompt_digest", "fallback", "shown", "dependent")
_INTEGER_SUMS = ("tips", "input_tokens", "output_tokens", "ms", "simulated")
_SUMS = (*_INTEGER_SUMS, "reward", "reward_squared")
_ROUNDING = 1e-6
"""A sum of propensities below this is zero."""


class Counts:
    """The hourly counters. Every method that reads raises StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Built once, so that SQLAlchemy's statement cache finds them by identity.
        self._add_rewards = _add_to_existing(database.upsert(reward_hours))
        self._add_assignments = _add_to_existing(database.upsert(assignment_hours))

    async def days(self, segment: str, hours: range, mature_before: int) -> list[DayCounts]:
        """Return the counts of these hours by day; tips of hours below `mature_before` are mature."""
        table = reward_hours
        day = (table.c.hour // 24).label("day")
        mature = (table.c.hour < mature_before).label("mature")
        keys = (day, *(table.c[name] for name in _VARIANT_COLUMNS), table.c.reaction, mature)
        sums = [func.sum(table.c[name]).label(name) for name in _SUMS]
        query = select(*keys, *sums).where(*_within(table, segment, hours)).group_by(*keys)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return [
                DayCounts(**{**row, **{name: int(row[name]) for name in _INTEGER_SUMS}, "mature": bool(row["mature"])})
                for row in rows
            ]

    async def rewards(self, before: int) -> dict[tuple[str, str], Sample]:
        """Return the rewards of each (prompt version, prompt digest) over all hours below `before`.

        Counts shown tips that were not written by a fallback model; no reaction counts as a reward of 0.
        """
        table = reward_hours
        variant = (table.c.prompt_version, table.c.prompt_digest)
        tips = func.sum(case((table.c.reaction == ALL_TIPS, table.c.tips), else_=0))
        query = select(*variant, tips, func.sum(table.c.reward), func.sum(table.c.reward_squared))
        query = query.where(table.c.segment == EVERYONE, table.c.hour < before, ~table.c.fallback, table.c.shown)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.group_by(*variant))
            return {
                (prompt_version, prompt_digest): Sample(int(n), total, squares)
                for prompt_version, prompt_digest, n, total, squares in rows
            }

    async def assignments(self, segment: str, hours: range) -> dict[str, tuple[int, float]]:
        """Return, for each prompt version, the number of draws and the expected number."""
        table = assignment_hours
        query = select(table.c.prompt_version, func.sum(table.c.taken), func.sum(table.c.expected))
        query = query.where(*_within(table, segment, hours)).group_by(table.c.prompt_version)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return {prompt_version: (int(drawn), float(expected)) for prompt_version, drawn, expected in rows}

    async def add(self, connection: AsyncConnection, delta: CounterDelta) -> None:
        """Add the change of the counters, in the transaction of the rows that caused it."""
        rewards = _rows(delta.rewards)
        assignments = _rows(delta.assignments)
        if rewards:
            await connection.execute(self._add_rewards, rewards)
        if assignments:
            await connection.execute(self._add_assignments, assignments)

    async def remove(self, connection: AsyncConnection, before: int) -> None:
        """Remove the counts of all hours below `before`."""
        for table in (reward_hours, assignment_hours):
            await connection.execute(delete(table).where(table.c.hour < before))

    async def remove_empty(self, connection: AsyncConnection) -> None:
        """Remove counters that are zero: after a user was forgotten, they would show that the user existed."""
        for table, counted in ((reward_hours, "tips"), (assignment_hours, "expected")):
            await connection.execute(delete(table).where(func.abs(table.c[counted]) < _ROUNDING))


def _add_to_existing(upsert: sqlite.Insert | postgresql.Insert) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that adds to the counters that exist already."""
    sums = {c.name: c + upsert.excluded[c.name] for c in upsert.table.columns if not c.primary_key}
    return upsert.on_conflict_do_update(index_elements=list(upsert.table.primary_key), set_=sums)


def _rows(counts: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Return counters as rows in the order of their keys, so that two writers cannot deadlock."""
    rows = [{**as_row(key), **as_row(count)} for key, count in counts.items()]
    return sorted(rows, key=lambda row: tuple(row.values()))


def _within(table: Table, segment: str, hours: range) -> tuple[Any, Any]:
    return table.c.segment == segment, table.c.hour.between(hours.start, hours.stop - 1)
