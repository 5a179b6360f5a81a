"""Tips and reactions that were answered with success survive `kill -9` at any time."""

import asyncio
import itertools
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
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection, HTTPException
from json import dumps, loads
from multiprocessing.connection import Connection
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ml.recommender.app import create_app
from ml.recommender.settings import RecommenderSettings
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip
from tests.fake_serving import TIP_RESPONSE, FakeServing
from tests.server import running
from tests.store.rebuilt_counts import check_counts

KINDS = ("helpful", "done", "saved", "dismissed", "not_helpful")


async def store(database: Database, tips: list[TipRecord]) -> None:
    async with open_tip_store(database.url, SetClock(), reaction_window=WINDOW) as opened:
        await asyncio.gather(*(opened.add(tip) for tip in tips))


def serve(fields: dict[str, Any], listening: socket.socket, clock: SetClock) -> None:
    app = create_app(RecommenderSettings(**fields), clock=clock)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    server.run(sockets=[listening])


def fork_recommenders(fields: dict[str, Any], listening: socket.socket, commands: Connection) -> None:
    """Fork a recommender for each delay received; kill it that many seconds after the message that it answers.

    The clock of each is a minute later than that of the one before, so that the leases of the killed one have ended.
    """
    clock = SetClock()
    while True:
        delay = commands.recv()
        if delay is None:
            return
        clock.go(minutes=1)
        child = os.fork()
        if not child:
            serve(fields, listening, clock)
            os._exit(1)
        commands.send(child)
        commands.recv()
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        commands.send("killed")


@contextmanager
def forking_process(fields: dict[str, Any], listening: socket.socket) -> Iterator[Connection]:
    """Run `fork_recommenders` in a new process, which has no threads and imports the recommender once."""
    context = multiprocessing.get_context("spawn")
    commands, other_end = context.Pipe()
    process = context.Process(target=fork_recommenders, args=(fields, listening, other_end))
    process.start()
    try:
        yield commands
        commands.send(None)
        process.join(timeout=10)
    finally:
        process.kill()
        process.join()


def react_until_killed(
    port: int, tip_ids: list[str], seed: int, answered: list[tuple[str, str, int]], began: threading.Event
) -> None:
    """Post reactions until there is no answer; add those that were answered with success to `answered`."""
    rng = random.Random(seed)
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as http:
        while True:
            tip_id, kind, age = rng.choice(tip_ids), rng.choice(KINDS), rng.randrange(10**6)
            at = f"2026-01-30T00:{age // 60 % 60:02}:{age % 60:02}.{age:06}Z"
            body = dumps({"tip_id": tip_id, "reaction": kind, "at": at})
            try:
                http.request("POST", "/reactions", body, {"content-type": "application/json"})
                status = http.getresponse().status
            except (OSError, HTTPException):
                if began.is_set():
                    return
                http.close()  # the recommender has not started yet
                continue
            if status == 200:
                answered.append((tip_id.replace("-", ""), kind, age))
                began.set()


def ask_until_killed(port: int, answered: list[str], began: threading.Event) -> None:
    """Request tips until there is no answer; add the ids of those that were answered to `answered`."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as http:
        while True:
            try:
                http.request("POST", "/tips", dumps({"user_id": "u-1"}), {"content-type": "application/json"})
                answer = http.getresponse()
                body = answer.read()
            except (OSError, HTTPException):
                if began.is_set():
                    return
                http.close()  # the recommender has not started yet
                continue
            if answer.status == 200:
                answered.append(loads(body)["tip_id"].replace("-", ""))
                began.set()


def retry_until_killed(
    port: int, keys: Sequence[str], answers: dict[str, set[bytes]], problems: list[int], began: threading.Event
) -> None:
    """Request a tip with each key, over and over, until there is no answer; add the bodies of answers to `answers`."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as http:
        for key in itertools.cycle(keys):
            headers = {"content-type": "application/json", "idempotency-key": key}
            try:
                http.request("POST", "/tips", dumps({"user_id": key}), headers)
                answer = http.getresponse()
                body = answer.read()
            except (OSError, HTTPException):
                if began.is_set():
                    return
                http.close()  # the recommender has not started yet
                continue
            if answer.status == 200:
                answers[key].add(body)
                began.set()
            elif answer.status != 409:
                problems.append(answer.status)


def start_and_kill(
    commands: Connection, delay: float, began: threading.Event, calls: Sequence[Callable[[], None]]
) -> None:
    """Start a recommender, call it from threads, and kill it `delay` seconds after its first answer."""
    commands.send(delay)
    assert commands.poll(60)
    commands.recv()
    clients = [threading.Thread(target=call) for call in calls]
    for client in clients:
        client.start()
    assert began.wait(60)
    commands.send("it answers")
    assert commands.poll(60)
    commands.recv()
    for client in clients:
        client.join(60)
        assert not client.is_alive()


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 60), ("postgresql", 20)], indirect=["database"])
def test_every_answered_reaction_is_stored_after_kill_9(database: Database, kills: int) -> None:
    tips = [a_tip(created_at=NOW) for _ in range(10)]
    asyncio.run(store(database, tips))
    tip_ids = [str(tip.tip_id) for tip in tips]
    rng = random.Random(11)
    answered: list[tuple[str, str, int]] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        fields = {"database_url": database.url, "serving_url": "http://127.0.0.1:1"}
        with forking_process(fields, listening) as commands:
            for number in range(kills):
                seeds = [4 * number + client for client in range(4)]
                began = threading.Event()
                start_and_kill(
                    commands,
                    rng.random() * 0.03,
                    began,
                    [partial(react_until_killed, port, tip_ids, seed, answered, began) for seed in seeds],
                )
    rows = database.rows("SELECT tip_id, reaction, at FROM reactions")
    stored = {(str(row["tip_id"]).replace("-", ""), row["reaction"], str(row["at"])[19:26]) for row in rows}
    assert len(answered) > kills
    lost = [(tip_id, kind, age) for tip_id, kind, age in answered if (tip_id, kind, f".{age:06}") not in stored and age]
    assert not lost
    check_counts(database)


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 20), ("postgresql", 8)], indirect=["database"])
def test_every_decision_is_complete_and_every_answered_tip_is_stored_after_kill_9(
    database: Database, fake_serving: FakeServing, kills: int
) -> None:
    rng = random.Random(12)
    answered: list[str] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        fields = {
            "database_url": database.url,
            "serving_url": fake_serving.url,
            "tip_prompt_version": "v1,v2-mentor",
            "tip_candidates": 3,
        }
        with forking_process(fields, listening) as commands:
            for _ in range(kills):
                began = threading.Event()
                calls = [partial(ask_until_killed, port, answered, began)] * 4
                start_and_kill(commands, rng.random() * 0.05, began, calls)
    decisions = defaultdict(list)
    for row in database.rows("SELECT tip_id, decision_id, shown FROM tip_scores"):
        decisions[row["decision_id"]].append(row)
    assert {len(rows) for rows in decisions.values()} == {3}
    shown = [[str(row["tip_id"]).replace("-", "") for row in rows if row["shown"]] for rows in decisions.values()]
    assert {len(ids) for ids in shown} == {1}
    assert len(answered) >= kills
    assert {*answered} <= {tip_id for ids in shown for tip_id in ids}
    check_counts(database)


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 10), ("postgresql", 5)], indirect=["database"])
def test_every_key_has_one_decision_and_one_answer_after_kill_9(
    database: Database, fake_serving: FakeServing, kills: int
) -> None:
    rng = random.Random(13)
    answers: dict[str, set[bytes]] = defaultdict(set)
    problems: list[int] = []

    async def generate(request: Request) -> Response:
        version = (await request.json())["prompt_version"]
        await asyncio.sleep(0.02)
        return JSONResponse(TIP_RESPONSE | {"prompt_version": version})

    fake_serving.generate = generate
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        fields: dict[str, Any] = {
            "database_url": database.url,
            "serving_url": fake_serving.url,
            "tip_prompt_version": "v1,v2-mentor",
        }
        with forking_process(fields, listening) as commands:
            for number in range(kills):
                began = threading.Event()
                # Each key is sent by two clients, before the kill and after it.
                keys = [f"key-{k}" for k in range(4 * number, 4 * number + 8)]
                calls = [
                    partial(retry_until_killed, port, keys[client:] + keys[:client], answers, problems, began)
                    for client in (0, 2, 4, 6)
                ]
                start_and_kill(commands, rng.random() * 0.1, began, calls)
    assert problems == []
    assert len(answers) > kills
    # A recommender that is not killed takes over all requests that had no answer.
    app = create_app(RecommenderSettings(**fields), clock=SetClock(NOW + timedelta(hours=1)))
    with running(app) as url:
        for key in [f"key-{number}" for number in range(4 * kills + 4)]:
            answer = httpx.post(f"{url}/tips", json={"user_id": key}, headers={"Idempotency-Key": key})
            assert answer.status_code == 200
            answers[key].add(answer.content)
    assert len(answers) == 4 * kills + 4
    assert {len(bodies) for bodies in answers.values()} == {1}
    rows = database.rows("SELECT tip_id, user_id FROM tip_scores")
    stored = {row["user_id"]: str(row["tip_id"]).replace("-", "") for row in rows}
    assert len(stored) == len(rows) == len(answers)
    for key, (body,) in answers.items():
        assert loads(body)["tip_id"].replace("-", "") == stored[key]
    check_counts(database)
