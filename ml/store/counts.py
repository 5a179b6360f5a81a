"""The stored counters of `rollup.py`, changed in the transactions of the rows that they count."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.experiments.statistics import Sample
from ml.store.database import Database
from ml.store.day_counts import DayCounts, DrawCounts, RankingCounts
from ml.store.rollup import ALL_TIPS, EVERYONE, CounterDelta
from ml.store.tables import as_row, distributions, draw_hours, ranking_hours, reward_hours

_VARIANT_COLUMNS = ("prompt_version", "prompt_digest", "fallback", "shown", "dependent", "seen")
_INTEGER_SUMS = ("tips", "input_tokens", "output_tokens", "ms", "simulated")
_SUMS = (*_INTEGER_SUMS, "reward", "reward_squared")
_DRAW_COLUMNS = ("distribution", "prompt_version", "prompt_digest", "outcome", "seen")

_RANKING_COLUMNS = ("distribution", "policy_version", "outcome", "seen")

COUNTER_TABLES = (reward_hours, draw_hours, ranking_hours)


class Counts:
    """The hourly counters. Every method that reads raises StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Built once, so that SQLAlchemy's statement cache finds them by identity.
        self._add_rewards = _add_to_existing(database.upsert(reward_hours))
        self._add_draws = _add_to_existing(database.upsert(draw_hours))
        self._add_rankings = _add_to_existing(database.upsert(ranking_hours))
        self._add_distributions = database.upsert(distributions).on_conflict_do_nothing()
        self._known_distributions: set[str] = set()

    async def days(self, segment: str, hours: range, mature_before: int) -> list[DayCounts]:
        """Return the counts of these hours by day; tips of hours below `mature_before` are mature."""
        table = reward_hours
        day, mature = _day_and_maturity(table, mature_before)
        keys = (day, *(table.c[name] for name in _VARIANT_COLUMNS), table.c.reaction, mature)
        sums = [func.sum(table.c[name]).label(name) for name in _SUMS]
        query = select(*keys, *sums).where(_within(table, segment, hours)).group_by(*keys).having(_some_tips(table))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings()
            return [
                DayCounts(**{**row, **{name: int(row[name]) for name in _INTEGER_SUMS}, "mature": bool(row["mature"])})
                for row in rows
            ]

    async def draws(self, segment: str, hours: range, mature_before: int) -> list[DrawCounts]:
        """Return the draws of these hours by day; tips of hours below `mature_before` are mature."""
        rows = await self._draws(draw_hours, _DRAW_COLUMNS, segment, hours, mature_before)
        return [DrawCounts(**row) for row in rows]

    async def rankings(self, segment: str, hours: range, mature_before: int) -> list[RankingCounts]:
        """Return the draws of ranking policies in these hours by day, as `draws` does."""
        rows = await self._draws(ranking_hours, _RANKING_COLUMNS, segment, hours, mature_before)
        return [RankingCounts(**row) for row in rows]

    async def segments(self, hours: range) -> list[str]:
        """Return the segments with draws in these hours, sorted, without the one of everyone."""
        table = draw_hours
        within = table.c.hour.between(hours.start, hours.stop - 1), table.c.segment != EVERYONE, table.c.tips > 0
        query = select(table.c.segment).distinct().where(*within).order_by(table.c.segment)
        async with self._database.reading() as connection:
            return [*(await connection.execute(query)).scalars()]

    async def _draws(
        self, table: Table, columns: Sequence[str], segment: str, hours: range, mature_before: int
    ) -> list[dict[str, Any]]:
        """Return the sums of draws by day, maturity and these columns, with `options` instead of `distribution`."""
        day, mature = _day_and_maturity(table, mature_before)
        keys = (day, *(table.c[name] for name in columns), mature)
        sums = [func.sum(table.c[name]).label(name) for name in ("tips", "reward", "reward_squared")]
        within = _within(table, segment, hours)
        query = select(*keys, *sums).where(within).group_by(*keys).having(_some_tips(table))
        ids = select(table.c.distribution).where(within)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
            found = await connection.execute(select(distributions).where(distributions.c.id.in_(ids)))
            options: dict[str, Mapping[str, float]] = {row.id: row.options for row in found}
        return [
            {name: value for name, value in row.items() if name != "distribution"}
            | {"options": options[row["distribution"]], "mature": bool(row["mature"]), "tips": int(row["tips"])}
            for row in rows
        ]

    async def daily_rewards(self, before: int, *, seen_only: bool) -> dict[int, dict[tuple[str, str], Sample]]:
        """Return the present rewards of each (prompt version, prompt digest) by day, of all hours below `before`.

        Counts shown tips that were not written by a fallback model, or, with `seen_only`, those of them that were seen;
        no reaction counts as a reward of 0.
        """
        table = reward_hours
        variant = ((table.c.hour // 24).label("day"), table.c.prompt_version, table.c.prompt_digest)
        tips = func.sum(case((table.c.reaction == ALL_TIPS, table.c.tips), else_=0))
        query = select(*variant, tips, func.sum(table.c.reward), func.sum(table.c.reward_squared))
        query = query.where(table.c.segment == EVERYONE, table.c.hour < before, ~table.c.fallback, table.c.shown)
        if seen_only:
            query = query.where(table.c.seen)
        days: dict[int, dict[tuple[str, str], Sample]] = defaultdict(dict)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.group_by(*variant).having(_some_tips(table)))
            for day, prompt_version, prompt_digest, n, total, squares in rows:
                days[day][prompt_version, prompt_digest] = Sample(int(n), total, squares)
        return dict(days)

    async def first_exposure_hour(self) -> int | None:
        """Return the hour of the earliest tip that was seen; None without one."""
        table = draw_hours
        query = select(func.min(table.c.hour)).where(table.c.segment == EVERYONE, table.c.seen, table.c.tips > 0)
        async with self._database.reading() as connection:
            hour: int | None = (await connection.execute(query)).scalar()
            return hour

    async def add(self, connection: AsyncConnection, delta: CounterDelta) -> None:
        """Add the change of the counters, in the transaction of the rows that caused it.

        When the transaction has been committed, `remember` saves the next one the insertion of its distributions.
        """
        unknown = delta.distributions.keys() - self._known_distributions
        if unknown:
            rows = [{"id": key, "options": dict(delta.distributions[key])} for key in sorted(unknown)]
            await connection.execute(self._add_distributions, rows)
        statements = (
            (self._add_rewards, delta.rewards),
            (self._add_draws, delta.draws),
            (self._add_rankings, delta.rankings),
        )
        for statement, counts in statements:
            if changes := _rows(counts):
                await connection.execute(statement, changes)

    def remember(self, delta: CounterDelta) -> None:
        """Remember that the distributions of a committed delta are stored."""
        if not delta.distributions.keys() <= self._known_distributions:
            if len(self._known_distributions) > _MAX_KNOWN_DISTRIBUTIONS:
                self._known_distributions.clear()
            self._known_distributions.update(delta.distributions)

    async def remove(self, connection: AsyncConnection, before: int) -> None:
        """Remove the counts of all hours below `before`, except the draws of everyone.

        A verdict rests on the draws since the first hour that its versions have in common; if that hour moved, it would
        not hold at every look.
        """
        await connection.execute(delete(reward_hours).where(reward_hours.c.hour < before))
        for table in (draw_hours, ranking_hours):
            await connection.execute(delete(table).where(table.c.hour < before, table.c.segment != EVERYONE))

    async def remove_empty(self, connection: AsyncConnection) -> None:
        """Remove counters that are zero: after a user was forgotten, they would show that the user existed."""
        for table in COUNTER_TABLES:
            await connection.execute(delete(table).where(table.c.tips == 0))


_MAX_KNOWN_DISTRIBUTIONS = 10_000


def _add_to_existing(upsert: sqlite.Insert | postgresql.Insert) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that adds to the counters that exist already."""
    sums = {c.name: c + upsert.excluded[c.name] for c in upsert.table.columns if not c.primary_key}
    return upsert.on_conflict_do_update(index_elements=list(upsert.table.primary_key), set_=sums)


def _rows(counts: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Return counters as rows in the order of their keys, so that two writers cannot deadlock."""
    return [{**key._asdict(), **as_row(counts[key])} for key in sorted(counts)]


def _within(table: Table, segment: str, hours: range) -> ColumnElement[bool]:
    return and_(table.c.segment == segment, table.c.hour.between(hours.start, hours.stop - 1))


def _day_and_maturity(table: Table, mature_before: int) -> Iterable[ColumnElement[Any]]:
    return (table.c.hour // 24).label("day"), (table.c.hour < mature_before).label("mature")


def _some_tips(table: Table) -> ColumnElement[bool]:
    """Leave out the counters of tips that were all seen later, so that they are counted elsewhere now."""
    return func.sum(table.c.tips) != 0
