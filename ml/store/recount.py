"""The recount, which rebuilds all counters from the rows, and the check at start-up that it is not needed."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping, Table, bindparam, delete, func, select, text, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.platform.settings import ConfigurationError
from ml.store import tables
from ml.store.counts import COUNTER_TABLES, Counts
from ml.store.database import Database, run_once
from ml.store.day_revisions import DayRevisions
from ml.store.failures import GenerationFailure
from ml.store.hours import day_of, hour_of
from ml.store.reactions import effective_in_window
from ml.store.rollup import EVERYONE, CounterDelta, window_seconds

_PAGE = 1_000

_UNCOUNTED = 0
"""The window of hours that a release without windows has counted."""

_WINDOWS = union(
    *(select(table.c.window_seconds).where(table.c.segment == EVERYONE).distinct() for table in COUNTER_TABLES)
)
"""Every row is counted for everyone, too, and these are few counters."""

_UPDATE = (
    update(tables.tip_scores)
    .where(tables.tip_scores.c.tip_id == bindparam("of_tip"))
    .values(seen=bindparam("new_seen"), reward_in_window=bindparam("new_reward"))
)


@dataclass(frozen=True, slots=True)
class Recount:
    """The numbers of tips and failures that were counted, and of purged hours whose draws could not be kept."""

    tips: int
    failures: int
    dropped_hours: int


async def prepare(database: Database, window: timedelta) -> None:
    """Prepare the schema, and count the hours that an earlier release has counted without a window.

    `window`: the reaction window. Raises ConfigurationError when the schema of PostgreSQL is not the newest one, and
    when hours were counted with another window.
    """
    await database.prepare()
    async with database.reading() as connection:
        counted = {*(await connection.execute(_WINDOWS)).scalars()}
    seconds = window_seconds(window)
    if _UNCOUNTED in counted:
        await recount(database, window)
    elif other := counted - {seconds}:
        hours = " and ".join(f"{value / 3600:g}" for value in sorted(other))
        raise ConfigurationError(
            f"REACTION_WINDOW_HOURS: is {seconds / 3600:g}, but the stored tips were counted with {hours}; "
            "set it back, or stop all recommenders and run `tips recount`."
        )


def prepare_database(url: str, reaction_window: timedelta) -> None:
    """Prepare the database at start-up; SQLite is migrated. Raises ConfigurationError."""
    run_once(url, lambda database: prepare(database, reaction_window))


def recount_database(url: str, window: timedelta, show: Callable[[int], None]) -> Recount:
    """Recount the database at `url`, which has the newest schema; see `recount`. Raises ConfigurationError."""

    async def prepare_and_recount(database: Database) -> Recount:
        await database.prepare()
        return await recount(database, window, show)

    return run_once(url, prepare_and_recount)


async def recount(database: Database, window: timedelta, show: Callable[[int], None] = lambda _: None) -> Recount:
    """Rebuild `seen`, `reward_in_window` and all counters from the rows, in one transaction without other writers.

    `show`: is called with the number of tips that have been counted. The draws of purged hours are kept if they were
    counted with the same window. Raises StorageUnavailable.
    """
    counts, seconds = Counts(database), window_seconds(window)
    days: set[int] = set()
    async with database.writing() as connection:
        if not database.is_sqlite:  # locked by BEGIN IMMEDIATE
            # In the order in which the writer locks their rows.
            names = ("tip_scores", "reactions", "exposures", "generation_failures", "distributions")
            all_names = ", ".join((*names, *(table.name for table in COUNTER_TABLES)))
            await connection.execute(text(f"LOCK TABLE {all_names} IN EXCLUSIVE MODE"))
        dropped_hours = await _remove_counts(connection, seconds)
        tips = failures = 0
        async for rows in _pages(connection, tables.tip_scores):
            delta = CounterDelta(seconds)
            days |= await _count_tips(connection, rows, window, delta)
            await counts.add(connection, delta)
            tips += len(rows)
            show(tips)
        async for rows in _pages(connection, tables.generation_failures):
            delta = CounterDelta(seconds)
            for row in rows:
                delta.add_failure(GenerationFailure.of(row))
            await counts.add(connection, delta)
            failures += len(rows)
        await DayRevisions(database).replace(connection, days)
    return Recount(tips, failures, dropped_hours)


async def _remove_counts(connection: AsyncConnection, seconds: int) -> int:
    """Remove all counters except the draws of purged hours with this window; return the number of hours without it."""
    oldest = [
        (await connection.execute(select(func.min(table.c.created_at)))).scalar()
        for table in (tables.tip_scores, tables.generation_failures)
    ]
    first_hour = min((hour_of(at) for at in oldest if at), default=None)
    await connection.execute(delete(tables.reward_hours))
    dropped_hours = 0
    for draws in (tables.draw_hours, tables.ranking_hours):
        is_purged = draws.c.segment == EVERYONE
        if first_hour is not None:
            is_purged &= draws.c.hour < first_hour
        has_window = draws.c.window_seconds == seconds
        dropped = select(func.count(draws.c.hour.distinct())).where(is_purged, ~has_window)
        dropped_hours = max(dropped_hours, (await connection.execute(dropped)).scalar_one())
        await connection.execute(delete(draws).where(~(is_purged & has_window)))
    return dropped_hours


async def _pages(connection: AsyncConnection, table: Table) -> AsyncIterator[Sequence[RowMapping]]:
    """Yield all rows in the order of their ids. Unlike with a cursor, rows may be updated between two pages."""
    page = select(table).order_by(table.c.tip_id).limit(_PAGE)
    query = page
    while rows := (await connection.execute(query)).mappings().all():
        yield rows
        query = page.where(table.c.tip_id > rows[-1]["tip_id"])


async def _count_tips(
    connection: AsyncConnection, rows: Sequence[RowMapping], window: timedelta, delta: CounterDelta
) -> set[int]:
    """Count tips, which are all between the first and the last one, and correct their rows.

    Returns the days of the tips whose rows were wrong.
    """
    first, last = rows[0]["tip_id"], rows[-1]["tip_id"]
    window_ends: dict[UUID, datetime] = {row["tip_id"]: row["created_at"] + window for row in rows}

    async def rows_of_tips(table: Table) -> Sequence[RowMapping]:
        query = select(table).where(table.c.tip_id.between(first, last))
        return (await connection.execute(query)).mappings().all()

    exposures = await rows_of_tips(tables.exposures)
    seen = {row["tip_id"] for row in exposures if row["received_at"] <= window_ends[row["tip_id"]]}
    effective = effective_in_window(await rows_of_tips(tables.reactions), window_ends)
    updates, days = [], set()
    for row in rows:
        tip_id = row["tip_id"]
        state = {"seen": tip_id in seen, "reward_in_window": effective[tip_id].reward if tip_id in effective else None}
        delta.add_row({**row, **state})
        if any(row[name] != value for name, value in state.items()):
            updates.append({"of_tip": tip_id, "new_seen": state["seen"], "new_reward": state["reward_in_window"]})
            days.add(day_of(row["created_at"]))
    if updates:
        await connection.execute(_UPDATE, updates)
    return days
