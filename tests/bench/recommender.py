"""How many reactions a second are stored durably, and how fast the rewards of a million tips are told.

    python -m tests.bench.recommender [--seconds 8] [--rounds 5] [--tips 1000000] [--postgres URL]

Everything runs here, over the loopback, one process with one worker for each server, each with a database of its own
that is made for it and removed in the end: in a temporary folder, or on the server at `--postgres`, with a role that
may create databases.

Reactions: 32 callers, each of which sends its next reaction when the last one is answered (closed loop), on connections
that stay open. What is measured:

- tips: `POST /reactions` as deployed, with keys, validation, logs (to a file), metrics and counts;
- the naive form (naive_recommender.py): a FastAPI handler with the same tables and one session and commit for each
  request, with as many connections as SQLAlchemy makes by default, and with one, so that no writer waits for another;
- nothing stored: a server that answers at once, as fast as the load can be made.

Every reaction is to another one of 50,000 stored tips of two days, in a random order, until all have been reacted to;
then they come again with another kind of reaction. Only answers with status 200 count, and in the end each of them must
be in the database, or the run fails. The CPU time is what the server's process spent (not PostgreSQL's), from Linux's
/proc. The servers take turns for several rounds, each turn after a warm-up that does not count; what is printed is the
median of the rounds.

Rewards: `GET /rewards` over `--tips` stored tips of 90 days, with three versions, four segments each and reactions to a
third, one request after the other; beside it, the naive form: one GROUP BY over the rows. What the answers count must
be what SQL counts over the rows, or the run fails.
"""

import asyncio
import itertools
import json
import os
import random
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import asyncpg  # type: ignore[import-untyped]
import typer
import uvloop
from sqlalchemy.engine import URL, make_url

from ml.store.reactions import REACTIONS
from tests.bench.figures import machine, median, p50_and_p99, turns
from tests.bench.past_tips import Past, fill, tip_id
from tests.bench.server import KEY, BenchmarkFailed, Running, Server, get, run, started, until_it_works, uvicorn

CALLERS = 32
WARM_UP = 1.0
"""Seconds."""

TIPS_REACTED_TO = 50_000
DAYS_REACTED_TO = 2
ASKED = 20
"""How often each question about rewards is asked."""

SEGMENT = "mood:low"
FLOOR = "nothing stored"
NAIVE = "the naive form"

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Cost:
    """Reactions stored in a second; the latency and the CPU time of one, in ms; answers that were not 200."""

    rate: float
    p50: float
    p99: float
    cpu: float
    failed: float


@dataclass
class Contender:
    """A server, its database if it has one, and the reactions it is sent."""

    running: Running
    url: str | None
    reactions: Iterator[bytes] = field(default_factory=lambda: reactions(TIPS_REACTED_TO))
    stored: int = 0
    before: int = 0
    costs: list[Cost] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What was asked of a server about rewards, and how long it took, in ms."""

    name: str
    question: str
    median: float
    longest: float


@dataclass(frozen=True)
class Question:
    """What is asked of `GET /rewards`, and which rows that is about, in SQL."""

    name: str
    query: Mapping[str, str]
    where: str


def tips(name: str, url: str) -> Server:
    ours = {"DATABASE_URL": url, "SERVING_URL": "http://127.0.0.1:9", "API_KEYS": KEY}  # no tip is asked for
    return Server(f"{name}: **tips**", uvicorn("ml.recommender.main:app"), "/health/ready", environment=ours)


def naive(name: str, url: str, connections: int | None = None) -> Server:
    command = uvicorn("tests.bench.naive_recommender:app", "--factory", "--no-access-log", "--log-level", "warning")
    few = {"CONNECTIONS": str(connections)} if connections else {}
    how = f"{NAIVE}, {connections} connection" if connections else NAIVE
    return Server(f"{name}: {how}", command, "/openapi.json", environment={"DATABASE_URL": url} | few)


def floor() -> Server:
    command = uvicorn("tests.bench.naive_recommender:nothing", "--no-access-log", "--lifespan", "off")
    return Server(FLOOR, command, "/")


def reactions(number_of_tips: int) -> Iterator[bytes]:
    """Return bodies without end: each tip once in a random order, then each with another reaction, and so on."""
    order = random.Random(1).sample(range(number_of_tips), number_of_tips)
    for kind in itertools.cycle(REACTIONS):
        for number in order:
            yield json.dumps({"tip_id": str(tip_id(number)), "reaction": kind}).encode()


@asynccontextmanager
async def database(server: str | None, directory: Path) -> AsyncIterator[str]:
    """Make an empty database until the context ends, in the directory or on the PostgreSQL server; yield its URL."""
    name = f"tips_bench_{secrets.token_hex(4)}"
    if server is None:
        yield f"sqlite+aiosqlite:///{directory / name}.db"
        return
    url = make_url(server)
    await execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def execute(url: URL, statement: str) -> None:
    connection = await asyncpg.connect(dsn(url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def rows(url: str, query: str) -> list[Any]:
    """Ask the database directly."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(make_url(url).database or "")) as file:
            return file.execute(query).fetchall()
    connection = await asyncpg.connect(dsn(make_url(url)))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def answering(client: aiohttp.ClientSession, server: Server, directory: Path) -> AsyncIterator[Running]:
    """Run a server until the context ends; yield it when it answers."""
    with started(server, directory) as running:
        await until_it_works(running, partial(get, client, running, server.path))
        yield running


async def load(client: aiohttp.ClientSession, contender: Contender, seconds: float) -> Cost:
    """Have all callers send reactions for so many seconds."""
    running = contender.running
    address = running.address + "/reactions"
    latencies: list[float] = []
    failed = 0
    start = time.perf_counter()
    before = running.cpu_seconds

    async def call() -> None:
        nonlocal failed
        while (sent := time.perf_counter()) < start + seconds:
            async with client.post(address, data=next(contender.reactions), headers=_JSON) as response:
                await response.read()
            if response.status == 200:
                latencies.append((time.perf_counter() - sent) * 1000)
            else:
                failed += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call())
    elapsed = time.perf_counter() - start
    cpu = (running.cpu_seconds - before) / (len(latencies) + failed) * 1000
    contender.stored += len(latencies)
    return Cost(len(latencies) / elapsed, *p50_and_p99(latencies), cpu, failed)


async def reaction_rows(url: str) -> int:
    ((number,),) = await rows(url, "SELECT count(*) FROM reactions")
    return int(number)


async def check_stored(contender: Contender) -> None:
    """Raise BenchmarkFailed unless there is a row for each answer with 200."""
    if contender.url is not None:
        found = await reaction_rows(contender.url) - contender.before
        if found < contender.stored:
            raise BenchmarkFailed(f"{contender.running.server.name}: {contender.stored} answers, but {found} rows.")


async def measure_reactions(
    client: aiohttp.ClientSession, databases: Mapping[str, str | None], past: Past, seconds: float, rounds: int
) -> dict[str, Cost]:
    """Measure all contenders in turns, for each kind of database; return each one's median cost."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [Contender(await stack.enter_async_context(answering(client, floor(), directory)), None)]
        for name, at in databases.items():
            for server in (tips, naive, partial(naive, connections=1)):
                url = await stack.enter_async_context(database(at, directory))
                await fill(url, past)
                running = await stack.enter_async_context(answering(client, server(name, url), directory))
                contenders.append(Contender(running, url, before=await reaction_rows(url)))
        for _, contender in turns({contender.running.server.name: contender for contender in contenders}, rounds):
            await load(client, contender, WARM_UP)
            contender.costs.append(await load(client, contender, seconds))
        for contender in contenders:
            await check_stored(contender)
        return {contender.running.server.name: median(contender.costs) for contender in contenders}


def questions(past: Past) -> list[Question]:
    first, last = past.last - timedelta(days=29), past.last - timedelta(days=10)
    return [
        Question("the whole period", {}, "1 = 1"),
        Question("one segment", {"segment": SEGMENT}, f"CAST(segments AS text) LIKE '%\"{SEGMENT}\"%'"),
        Question(
            "20 days",
            {"from": first.isoformat(), "to": last.isoformat()},
            f"created_at >= '{first}' AND created_at < '{last + timedelta(days=1)}'",
        ),
    ]


async def measure_rewards(
    client: aiohttp.ClientSession, databases: Mapping[str, str | None], past: Past
) -> list[Answer]:
    """Ask ours and the naive form, for each kind of database."""
    found = []
    for name, at in databases.items():
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = await stack.enter_async_context(database(at, directory))
            typer.echo(f"{name}: {past.tips:,} tips", err=True)
            await fill(url, past)
            async with answering(client, tips(name, url), directory) as running:
                for question in questions(past):
                    found.append(await ask(client, running, question))
                    await check_answer(client, running, question, url)
            async with answering(client, naive(name, url), directory) as running:
                found += [await ask(client, running, one) for one in questions(past) if "segment" not in one.query]
    return found


async def ask(client: aiohttp.ClientSession, running: Running, question: Question) -> Answer:
    """Ask one question many times."""
    times = []
    for _ in range(1 + ASKED):
        start = time.perf_counter()
        await rewards(client, running, question)
        times.append((time.perf_counter() - start) * 1000)
    _, *counted = times
    return Answer(running.server.name, question.name, statistics.median(counted), max(counted))


async def rewards(client: aiohttp.ClientSession, running: Running, question: Question) -> dict[str, Any]:
    async with client.get(running.address + "/rewards", params=question.query) as response:
        if response.status != 200:
            raise BenchmarkFailed(f"{running.server.name}: {response.status} {(await response.text())[:300]}")
        answer: dict[str, Any] = await response.json()
        return answer


async def check_answer(client: aiohttp.ClientSession, running: Running, question: Question, url: str) -> None:
    """Raise BenchmarkFailed unless the answer counts what SQL counts over the rows."""
    answer = await rewards(client, running, question)
    told = sorted(
        (one["prompt_version"], kind, number)
        for one in answer["variants"]
        for kind, number in ({"": one["tips"] - one["reacted"]} | one["reactions"]).items()
    )
    query = "SELECT prompt_version, coalesce(reaction, ''), count(*) FROM tip_scores WHERE {} GROUP BY 1, 2"
    counted = sorted(await rows(url, query.format(question.where)))
    if told != counted:
        raise BenchmarkFailed(f"{running.server.name}, {question.name}: told {told}, but there are {counted}.")
    total = sum(number for _, _, number in counted)
    typer.echo(f"{running.server.name}, {question.name}: right about {total:,} tips", err=True)


def reaction_table(costs: Mapping[str, Cost]) -> str:
    """Return the costs as a table in Markdown."""
    lines = [
        "| server | reactions a second | ratio | p50 ms | p99 ms | CPU ms a request | not 200 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        reference = costs.get(f"{name.partition(':')[0]}: {NAIVE}")
        ratio = f"{cost.rate / reference.rate:.1f}" if reference else ""
        figures = f"{cost.rate:,.0f} | {ratio} | {cost.p50:.1f} | {cost.p99:.1f} | {cost.cpu:.2f} | {cost.failed:g}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def rewards_table(answers: Sequence[Answer]) -> str:
    lines = ["| server | rewards of | median ms | longest ms |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.question} | {one.median:.0f} | {one.longest:.0f} |" for one in answers]
    return "\n".join(lines)


def flush_time(directory: Path) -> float:
    """Return how long the disk takes to say that a write is durable, in ms: what no commit can be faster than."""
    times = []
    with (directory / "flushed").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


async def benchmark(seconds: float, rounds: int, number: int, postgres: str | None) -> tuple[str, str]:
    """Measure both; return the two tables."""
    databases = {"SQLite": None} | ({"PostgreSQL": postgres} if postgres else {})
    today = datetime.now(UTC).date()
    headers = {"Authorization": f"Bearer {KEY}"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout
    ) as client:
        costs = await measure_reactions(
            client, databases, Past(TIPS_REACTED_TO, today, reacted=0, days=DAYS_REACTED_TO), seconds, rounds
        )
        answers = await measure_rewards(client, databases, Past(number, today, reacted=1 / 3))
    return reaction_table(costs), rewards_table(answers)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long each server is measured in each round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each server has its turn.")] = 5,
    tips: Annotated[int, typer.Option(min=10_000, help="How many tips the rewards are told of.")] = 1_000_000,
    postgres: Annotated[str | None, typer.Option(help="postgresql+asyncpg://USER:PASSWORD@HOST/NAME")] = None,
) -> None:
    """Measure how fast reactions are stored, and rewards told."""
    of_reactions, of_rewards = run(benchmark(seconds, rounds, tips, postgres), loop=uvloop.new_event_loop)
    with tempfile.TemporaryDirectory() as directory:
        disk = f"The disk takes {flush_time(Path(directory)):.2f} ms to make a write durable."
    versions = machine("fastapi", "uvicorn", "uvloop", "httptools")
    typer.echo(f"{CALLERS} callers, {seconds:g} s a round, median of {rounds}. {versions} {disk}\n\n{of_reactions}\n")
    typer.echo(f"GET /rewards over {tips:,} tips, each question {ASKED} times:\n\n{of_rewards}")
    if postgres is None:
        typer.echo("\nPostgreSQL was not measured, see --postgres.")


if __name__ == "__main__":
    typer.run(main)
