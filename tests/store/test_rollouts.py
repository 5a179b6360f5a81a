"""The log of rollouts: events are appended one after the other, whoever writes, and are never half-written."""

import asyncio
import multiprocessing
import os
import random
import signal
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from ml.experiments.rollout_state import fold
from ml.platform.errors import RolloutConflict
from ml.store.database import Database as OpenDatabase
from ml.store.rollouts import RolloutLog, time_of
from tests.databases import Database
from tests.example_tips import NOW
from tests.store.rollout_rows import a_move


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[RolloutLog]:
    store = OpenDatabase(database.url)
    try:
        yield RolloutLog(store)
    finally:
        await store.close()


def test_events_are_returned_as_they_were_appended_and_fold_to_the_state(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as log:
            assert await log.events() == []
            appended = [
                await log.append(a_move("initial", "v1", actor="environment"), expected=0),
                await log.append(a_move("start", evidence={"gates": [{"name": "card", "passed": True}]}), expected=1),
                await log.append(a_move("promote", rollout=2, share=0.25, gated=True, segment="locale:de"), expected=2),
                await log.append(a_move("pause", rollout=2, share=0.25, segment="locale:de", paused=True), expected=3),
            ]
            assert [event.id for event in appended] == [1, 2, 3, 4]
            assert [event.rollout for event in appended] == [1, 2, 2, 2]
            assert await log.events() == appended
            assert await log.events(after=2) == appended[2:]
            assert time_of(appended[0]) == NOW
            state = fold(await log.events())
            assert state.prompt.shares(["locale:de"]) == {"v1": 0.75, "v2-mentor": 0.25}
            assert state.prompt.shares() == {"v1": 1.0}

    asyncio.run(run())
    assert database.count("webhook_outbox") == 0


def test_an_author_who_does_not_know_the_last_event_is_told_so_and_appends_nothing(database: Database) -> None:
    async def run() -> None:
        async with opened(database) as log:
            await log.append(a_move("initial", "v1"), expected=0)
            for expected in (0, 2, -1):
                with pytest.raises(RolloutConflict):
                    await log.append(a_move("start"), expected=expected, notify=True)
            assert len(await log.events()) == 1

    asyncio.run(run())
    assert database.count("webhook_outbox") == 0


def test_of_many_concurrent_authors_exactly_one_wins_each_event(database: Database) -> None:
    writers, rounds = 8, 6

    async def write(name: str, barrier: asyncio.Barrier) -> list[int]:
        """Try to append after each event, once, as a replica of its own; return the ids of the events that it won."""
        won = []
        async with opened(database) as log:
            for expected in range(rounds):
                await barrier.wait()
                try:
                    event = await log.append(a_move("start", actor=name), expected=expected, notify=True)
                except RolloutConflict:
                    continue
                won.append(event.id)
        return won

    async def run() -> list[list[int]]:
        barrier = asyncio.Barrier(writers)
        return await asyncio.gather(*(write(f"operator-{number}", barrier) for number in range(writers)))

    won = asyncio.run(run())
    assert sorted(event_id for ids in won for event_id in ids) == [1, 2, 3, 4, 5, 6]
    rows = database.rows("SELECT id, actor FROM rollout_events ORDER BY id")
    winners = {event_id: f"operator-{number}" for number, ids in enumerate(won) for event_id in ids}
    assert {row["id"]: row["actor"] for row in rows} == winners
    orders = database.rows("SELECT event_id FROM webhook_outbox ORDER BY event_id")
    assert [row["event_id"] for row in orders] == [1, 2, 3, 4, 5, 6]


JOURNEY = ("start", "promote", "ramp", "rollback")
"""The actions of one rollout, over and over."""


async def append_until_killed(url: str, acknowledgements: int) -> None:
    """Append the events of one rollout after the other; write the id of each appended one to a file descriptor."""
    log = RolloutLog(OpenDatabase(url))
    events = await log.events()
    while True:
        last = events[-1] if events else None
        action = JOURNEY[len(events) % len(JOURNEY)]
        rollout = last.rollout if last and action != "start" else None
        move = a_move(action, f"v{len(events) // len(JOURNEY)}", rollout=rollout, share=0.1)  # type: ignore[arg-type]
        events.append(await log.append(move, expected=len(events), notify=True))
        os.write(acknowledgements, struct.pack("i", events[-1].id))


def fork_authors(url: str, commands: Connection) -> None:
    """For each delay received, fork a process that appends events, kill it that many seconds after its first event.

    The answer is the id of the last event that it has acknowledged.
    """
    OpenDatabase(url)  # imports the driver, so that no child has to
    while (delay := commands.recv()) is not None:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            asyncio.run(append_until_killed(url, writing))
            os._exit(1)
        os.close(writing)
        acknowledged = os.read(reading, 4)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(reading, 65_536):
            acknowledged += rest
        os.close(reading)
        commands.send(struct.unpack("i", acknowledged[-4:])[0])


@contextmanager
def authors(url: str) -> Iterator[Connection]:
    """Run `fork_authors` in a new process, which has no threads and imports the store once."""
    context = multiprocessing.get_context("spawn")
    commands, other_end = context.Pipe()
    process = context.Process(target=fork_authors, args=(url, other_end))
    process.start()
    try:
        yield commands
        commands.send(None)
        process.join(timeout=10)
    finally:
        process.kill()
        process.join()


def check_log(database: Database, known: list[dict[str, Any]], acknowledged: int) -> list[dict[str, Any]]:
    """Assert that the log is whole; return its rows. `known`: those before. `acknowledged`: the last known id."""
    rows = database.rows("SELECT id, rollout, action, version FROM rollout_events ORDER BY id")
    assert rows[: len(known)] == known
    assert [row["id"] for row in rows] == [*range(1, len(rows) + 1)]
    assert len(rows) - acknowledged in (0, 1)
    for row in rows[len(known) :]:
        number = row["id"] - 1
        assert row["action"] == JOURNEY[number % len(JOURNEY)]
        assert row["rollout"] == 1 + number - number % len(JOURNEY)
    orders = database.rows("SELECT event_id FROM webhook_outbox ORDER BY event_id")
    assert [row["event_id"] for row in orders] == [row["id"] for row in rows]
    return rows


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 40), ("postgresql", 8)], indirect=["database"])
def test_the_log_is_whole_after_kill_9_at_any_time(database: Database, kills: int) -> None:
    rng = random.Random(5)
    rows: list[dict[str, Any]] = []
    with authors(database.url) as commands:
        for _ in range(kills):
            commands.send(rng.random() * 0.01)
            assert commands.poll(60)
            rows = check_log(database, rows, commands.recv())

    async def run() -> None:
        async with opened(database) as log:
            events = await log.events()
            state = fold(events)
            assert state.event == len(events) == len(rows)
            assert len(state.prompt.positions) == (len(events) % len(JOURNEY) != 0)  # none after a rollback

    asyncio.run(run())
