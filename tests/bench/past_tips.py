"""Past tips with their reactions and counts, inserted into an empty store at the speed of its database.

The rows are the same in every database: they are drawn day by day, each day with its own random generator. The counts
are computed by `ml.store.rollup`.
"""

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Table
from sqlalchemy.engine import Dialect, make_url

from ml.store import tables
from ml.store.database import migrate_database
from ml.store.reactions import REACTIONS
from ml.store.rollup import CounterDelta, window_seconds

VERSIONS = {"v1": "a" * 64, "v2-mentor": "b" * 64, "v3-coach": "c" * 64}
"""The digest of each prompt version."""

MOODS = ("great", "good", "okay", "low", "awful")
ACTIVITIES = ("working", "sitting", "walking", "exercising", "commuting", "eating", "relaxing", "in_bed")
LANGUAGES = ("en", "de", "es", "fr", "it")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

REACTION_WINDOW = timedelta(hours=24)

_USERS = 100_000

Rows = Sequence[Sequence[Any]]
Insert = Callable[[Table, Rows], Awaitable[None]]


@dataclass(frozen=True)
class Past:
    """`tips` tips, evenly spread over `days` days up to `last`; a share `reacted` of them has a reaction."""

    tips: int
    last: date
    reacted: float
    days: int = 90

    def numbers_by_day(self) -> Iterator[tuple[date, range]]:
        """Yield each day with the numbers of its tips."""
        for index in range(self.days):
            day = self.last - timedelta(days=self.days - 1 - index)
            yield day, range(self.tips * index // self.days, self.tips * (index + 1) // self.days)


def tip_id(number: int) -> UUID:
    """Return the id of a tip; as in a real store, the ids are in the order of time."""
    return UUID(int=(0x7 << 76) | (0x2 << 62) | (number << 80))


async def fill(url: str, past: Past) -> None:
    """Create the tables in an empty database and insert the tips."""
    migrate_database(url)
    rows_of_day = partial(_rows_of_day, reacted=past.reacted, dialect=make_url(url).get_dialect()())
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor() as processes:
        days = deque(
            loop.run_in_executor(processes, rows_of_day, day, numbers) for day, numbers in past.numbers_by_day()
        )
        async with _inserting(url) as insert:
            while days:
                for name, rows in (await days.popleft()).items():
                    await insert(tables.metadata.tables[name], rows)


def _rows_of_day(day: date, numbers: range, reacted: float, dialect: Dialect) -> Mapping[str, Rows]:
    """Return the rows of one day by table, encoded for the database driver."""
    tips = list(_tips(day, numbers, reacted))
    delta = CounterDelta(window_seconds(REACTION_WINDOW))
    for tip in tips:
        delta.add_row(tip)
    rows: dict[Table, list[dict[str, Any]]] = {
        tables.tip_scores: tips,
        tables.reactions: [
            {**tip, "at": tip["reacted_at"], "received_at": tip["reacted_at"]} for tip in tips if tip["reaction"]
        ],
        tables.day_revisions: [{"day": (day - date(1970, 1, 1)).days, "revision": UUID(int=day.toordinal())}],
        tables.reward_hours: [key._asdict() | asdict(count) for key, count in delta.rewards.items()],
        tables.draw_hours: [key._asdict() | asdict(count) for key, count in delta.draws.items()],
    }
    return {table.name: _encode_rows(table, table_rows, dialect) for table, table_rows in rows.items()}


def _encode_rows(table: Table, rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> Rows:
    columns = [(c.name, c.type.dialect_impl(dialect).bind_processor(dialect)) for c in table.columns]
    return [tuple(encode(row[name]) if encode else row[name] for name, encode in columns) for row in rows]


def _tips(day: date, numbers: range, reacted: float) -> Iterator[dict[str, Any]]:
    rng = random.Random(day.toordinal())
    options = dict.fromkeys(VERSIONS, 1 / len(VERSIONS))
    start = datetime.combine(day, time(), UTC)
    for index, number in enumerate(numbers):
        created_at = start + timedelta(days=1) * (index / len(numbers))
        version = rng.choice(tuple(VERSIONS))
        categories = {
            "mood": rng.choice(MOODS),
            "activity": rng.choice(ACTIVITIES),
            "weekday": WEEKDAYS[day.weekday()],
            "locale": rng.choice(LANGUAGES),
        }
        reaction = rng.choice(tuple(REACTIONS)) if rng.random() < reacted else None
        yield {
            "tip_id": tip_id(number),
            "user_id": f"u-{rng.randrange(_USERS)}",
            "created_at": created_at,
            "policy": "uniform",
            "policy_version": "1",
            "options": options,
            "probability": 1 / len(VERSIONS),
            "prompt_version_asked": version,
            "generation_id": f"g-{number}",
            "prompt_version": version,
            "prompt_digest": VERSIONS[version],
            "model": "openai/tiny",
            "fallback": False,
            "signals": {"goal": "sleep better", "sleep_hours": 5.5, **categories},
            "segments": tuple(f"{name}:{value}" for name, value in categories.items()),
            "tip": "Dim the lights now and leave your phone to charge in another room.",
            "input_tokens": rng.randint(200, 400),
            "output_tokens": rng.randint(10, 40),
            "ms": rng.randint(300, 3000),
            "shown": True,
            "simulated": False,
            "reaction": reaction,
            "reward": REACTIONS[reaction] if reaction else None,
            "seen": False,
            "reward_in_window": REACTIONS[reaction] if reaction else None,
            "reacted_at": created_at + timedelta(seconds=rng.randint(1, 3600)) if reaction else None,
            "decision_id": tip_id(number),
            "score": None,
            "score_probability": None,
            "score_policy": None,
            "score_policy_version": None,
            "candidates": None,
            "aggregates": None,
            "aggregates_at": None,
            "prompt_event": None,
            "policy_asked": None,
            "policy_options": None,
            "policy_event": None,
        }


@asynccontextmanager
async def _inserting(url: str) -> AsyncIterator[Insert]:
    """Yield a function that inserts rows, in one transaction; then run the maintenance that a used database has had."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(make_url(url).database or "")) as file:

            async def insert(table: Table, rows: Rows) -> None:
                file.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})", rows)

            with file:
                yield insert
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        connection = await asyncpg.connect(make_url(url).set(drivername="postgresql").render_as_string(False))

        async def copy(table: Table, rows: Rows) -> None:
            await connection.copy_records_to_table(table.name, records=rows, columns=table.columns.keys())

        try:
            async with connection.transaction():
                yield copy
            await connection.execute("VACUUM ANALYZE")  # as PostgreSQL's autovacuum does after a minute
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
