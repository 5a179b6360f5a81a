"""What was answered with success survives `kill -9` at any moment."""

import asyncio
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from json import dumps, loads
from multiprocessing.connection import Connection
from typing import Any

import pytest
import uvicorn

from ml.recommender.app import create_app
from ml.recommender.settings import RecommenderSettings
from ml.store.tips import TipRecord, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, SetClock, a_tip
from tests.fake_serving import FakeServing
from tests.store.rebuilt_counts import check_counts

KINDS = ("helpful", "done", "saved", "dismissed", "not_helpful")


async def store(database: Database, tips: list[TipRecord]) -> None:
    async with open_tip_store(database.url, SetClock()) as opened:
        await asyncio.gather(*(opened.add(tip) for tip in tips))


def serve(given: dict[str, Any], listening: socket.socket) -> None:
    settings = RecommenderSettings(**given)
    server = uvicorn.Server(uvicorn.Config(create_app(settings, clock=SetClock()), log_config=None, access_log=False))
    server.run(sockets=[listening])


def warm_parent(given: dict[str, Any], listening: socket.socket, orders: Connection) -> None:
    """Fork a recommender for each order, and kill it so many seconds after it is told that it answers."""
    while True:
        delay = orders.recv()
        if delay is None:
            return
        child = os.fork()
        if not child:
            serve(given, listening)
            os._exit(1)
        orders.send(child)
        orders.recv()
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        orders.send("killed")


@contextmanager
def parent(given: dict[str, Any], listening: socket.socket) -> Iterator[Connection]:
    # A fresh process without threads or event loops, which imports once.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=warm_parent, args=(given, listening, theirs))
    process.start()
    try:
        yield ours
        ours.send(None)
        process.join(timeout=10)
    finally:
        process.kill()
        process.join()


def react_until_killed(
    port: int, tip_ids: list[str], seed: int, answered: list[tuple[str, str, int]], began: threading.Event
) -> None:
    """Post reactions until there is no answer; keep what was answered with success."""
    chance = random.Random(seed)
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as http:
        while True:
            tip_id, kind, age = chance.choice(tip_ids), chance.choice(KINDS), chance.randrange(10**6)
            at = f"2026-01-30T00:{age // 60 % 60:02}:{age % 60:02}.{age:06}Z"
            body = dumps({"tip_id": tip_id, "reaction": kind, "at": at})
            try:
                http.request("POST", "/reactions", body, {"content-type": "application/json"})
                status = http.getresponse().status
            except (OSError, HTTPException):
                return
            if status == 200:
                answered.append((tip_id.replace("-", ""), kind, age))
                began.set()


def ask_until_killed(port: int, answered: list[str], began: threading.Event) -> None:
    """Ask for tips until there is no answer; keep the ids of those that were answered."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as http:
        while True:
            try:
                http.request("POST", "/tips", dumps({"user_id": "u-1"}), {"content-type": "application/json"})
                answer = http.getresponse()
                body = answer.read()
            except (OSError, HTTPException):
                return
            if answer.status == 200:
                answered.append(loads(body)["tip_id"].replace("-", ""))
                began.set()


def kill(orders: Connection, delay: float, began: threading.Event, calls: Sequence[Callable[[], None]]) -> None:
    """Have a recommender begun, call it from threads, and have it killed so many seconds after its first answer."""
    orders.send(delay)
    assert orders.poll(30)
    orders.recv()
    clients = [threading.Thread(target=call) for call in calls]
    for client in clients:
        client.start()
    assert began.wait(20)
    orders.send("it answers")
    assert orders.poll(30)
    orders.recv()
    for client in clients:
        client.join(10)
        assert not client.is_alive()


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 150), ("postgresql", 20)], indirect=["database"])
def test_every_reaction_that_was_answered_is_there_after_kill_9(database: Database, kills: int) -> None:
    tips = [a_tip(created_at=NOW) for _ in range(10)]
    asyncio.run(store(database, tips))
    tip_ids = [str(tip.tip_id) for tip in tips]
    chance = random.Random(11)
    answered: list[tuple[str, str, int]] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        given = {"database_url": database.url, "serving_url": "http://127.0.0.1:1"}
        with parent(given, listening) as orders:
            for number in range(kills):
                seeds = [4 * number + client for client in range(4)]
                began = threading.Event()
                kill(
                    orders,
                    chance.random() * 0.03,
                    began,
                    [partial(react_until_killed, port, tip_ids, seed, answered, began) for seed in seeds],
                )
    rows = database.rows("SELECT tip_id, reaction, at FROM reactions")
    stored = {(str(row["tip_id"]).replace("-", ""), row["reaction"], str(row["at"])[19:26]) for row in rows}
    assert len(answered) > kills
    lost = [one for one in answered if (one[0], one[1], f".{one[2]:06}"[:7]) not in stored and one[2]]
    assert not lost
    check_counts(database)


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 20), ("postgresql", 8)], indirect=["database"])
def test_every_decision_is_whole_after_kill_9_and_every_tip_that_was_answered_is_there(
    database: Database, fake_serving: FakeServing, kills: int
) -> None:
    chance = random.Random(12)
    answered: list[str] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        given = {
            "database_url": database.url,
            "serving_url": fake_serving.url,
            "tip_prompt_version": "v1,v2-mentor",
            "tip_candidates": 3,
        }
        with parent(given, listening) as orders:
            for _ in range(kills):
                began = threading.Event()
                kill(orders, chance.random() * 0.05, began, [partial(ask_until_killed, port, answered, began)] * 4)
    decisions = defaultdict(list)
    for row in database.rows("SELECT tip_id, decision_id, shadow FROM tip_scores"):
        decisions[row["decision_id"]].append(row)
    assert {len(rows) for rows in decisions.values()} == {3}
    shown = [[str(row["tip_id"]).replace("-", "") for row in rows if not row["shadow"]] for rows in decisions.values()]
    assert {len(ids) for ids in shown} == {1}
    assert len(answered) >= kills
    assert {*answered} <= {one for ids in shown for one in ids}
    check_counts(database)
