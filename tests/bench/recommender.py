"""The rate at which reactions are stored durably, and the time of a report on the rewards of a million tips.

    python -m tests.bench.recommender [--seconds 8] [--rounds 5] [--tips 1000000] [--postgres URL]

Everything runs on this machine, over the loopback interface, with one process and one worker for each server. Each
server has its own database, which is created for it and removed at the end: in a temporary directory, or on the server
at `--postgres`, whose role must be allowed to create databases.

Reactions: 32 callers on persistent connections, each of which sends its next reaction when the last one is answered
(closed loop). These servers are measured:

- tips: `POST /reactions` as in production, with keys, validation, logs (to a file), metrics and counts;
- the naive form (naive_recommender.py): a FastAPI handler with the same tables and one session and commit for each
  request, with SQLAlchemy's default number of connections, and with one connection, so that writers do not block each
  other;
- nothing stored: a server that answers immediately, which measures the load generator.

The reactions refer to 50,000 stored tips of two days in a random order; when each tip has a reaction, the next
reactions are of another value. Only answers with status 200 count, and at the end each of them must be in the database,
or the run fails. The CPU time is that of the server's process (without PostgreSQL), from Linux's /proc. The servers are
measured in alternation for several rounds, each time after a warm-up that is not measured; the printed figures are the
medians of the rounds.

Rewards: `GET /rewards` over `--tips` stored tips of 90 days, with three versions, four segments each and reactions to a
third of the tips, one request after the other; for comparison, the naive form: one GROUP BY over the rows. The counts
in the answers must be those that SQL computes from the rows, or the run fails.
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
from tests.bench.figures import alternate, machine, median, p50_and_p99
from tests.bench.past_tips import Past, fill, tip_id
from tests.bench.server import (
    KEY,
    BenchmarkFailed,
    Running,
    Server,
    get,
    run,
    service,
    start_server,
    uvicorn,
    wait_until_working,
)

CALLERS = 32
WARM_UP = 1.0
"""Seconds."""

TIPS_REACTED_TO = 50_000
DAYS_REACTED_TO = 2
REPETITIONS = 20
"""The number of measured requests for each report."""

SEGMENT = "mood:low"
FLOOR = "nothing stored"
NAIVE = "the naive form"

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Cost:
    """Reactions stored per second; the latency and the CPU time of one, in ms; the number of answers other than 200."""

    rate: float
    p50: float
    p99: float
    cpu: float
    failed: float


@dataclass
class Contender:
    """A server, its database if it has one, and the reactions that it receives.

    `stored`: answers with 200. `before`: reactions in the database before the benchmark.
    """

    running: Running
    url: str | None
    reactions: Iterator[bytes] = field(default_factory=lambda: reactions(TIPS_REACTED_TO))
    stored: int = 0
    before: int = 0
    costs: list[Cost] = field(default_factory=list)


@dataclass(frozen=True)
class ReportTime:
    """The time of a report on rewards, in ms."""

    server: str
    report: str
    median: float
    maximum: float


@dataclass(frozen=True)
class Report:
    """A query of `GET /rewards`, and the SQL condition of the tips that it covers."""

    name: str
    query: Mapping[str, str]
    where: str


def tips(name: str, url: str) -> Server:
    environment = {"DATABASE_URL": url, "SERVING_URL": "http://127.0.0.1:9", "API_KEYS": KEY}  # no tip is requested
    return Server(f"{name}: **tips**", service("ml.recommender.main:app"), "/health/ready", environment=environment)


def naive(name: str, url: str, connections: int | None = None) -> Server:
    command = uvicorn("tests.bench.naive_recommender:app", "--factory", "--no-access-log", "--log-level", "warning")
    pool = {"CONNECTIONS": str(connections)} if connections else {}
    label = f"{NAIVE}, {connections} connection" if connections else NAIVE
    return Server(f"{name}: {label}", command, "/openapi.json", environment={"DATABASE_URL": url} | pool)


def floor() -> Server:
    command = uvicorn("tests.bench.naive_recommender:store_nothing", "--no-access-log", "--lifespan", "off")
    return Server(FLOOR, command, "/")


def reactions(number_of_tips: int) -> Iterator[bytes]:
    """Yield request bodies endlessly: each tip once in a random order, then each with another reaction, and so on."""
    order = random.Random(1).sample(range(number_of_tips), number_of_tips)
    for reaction in itertools.cycle(REACTIONS):
        for number in order:
            yield json.dumps({"tip_id": str(tip_id(number)), "reaction": reaction}).encode()


@asynccontextmanager
async def database(server: str | None, directory: Path) -> AsyncIterator[str]:
    """Create an empty database in the directory or on the PostgreSQL server; yield its URL; remove it at the end."""
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
    """Return the result of a query, without a server in between."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(make_url(url).database or "")) as file:
            return file.execute(query).fetchall()
    connection = await asyncpg.connect(dsn(make_url(url)))
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def start_and_wait(client: aiohttp.ClientSession, server: Server, directory: Path) -> AsyncIterator[Running]:
    """Start a server, yield it when it answers, and stop it at the end."""
    with start_server(server, directory) as running:
        await wait_until_working(running, partial(get, client, running, server.path))
        yield running


async def load(client: aiohttp.ClientSession, contender: Contender, seconds: float) -> Cost:
    """Send reactions from all callers for `seconds` seconds."""
    running = contender.running
    address = running.address + "/reactions"
    latencies: list[float] = []
    failed = 0
    start = time.perf_counter()
    before = running.cpu_seconds

    async def send_reactions() -> None:
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
            group.create_task(send_reactions())
    elapsed = time.perf_counter() - start
    cpu = (running.cpu_seconds - before) / (len(latencies) + failed) * 1000
    contender.stored += len(latencies)
    return Cost(len(latencies) / elapsed, *p50_and_p99(latencies), cpu, failed)


async def reaction_rows(url: str) -> int:
    ((number,),) = await rows(url, "SELECT count(*) FROM reactions")
    return int(number)


async def check_stored(contender: Contender) -> None:
    """Raise BenchmarkFailed unless the database has a row for each answer with 200."""
    if contender.url is not None:
        row_count = await reaction_rows(contender.url) - contender.before
        if row_count < contender.stored:
            raise BenchmarkFailed(f"{contender.running.server.name}: {contender.stored} answers, but {row_count} rows.")


async def measure_reactions(
    client: aiohttp.ClientSession, databases: Mapping[str, str | None], past: Past, seconds: float, rounds: int
) -> dict[str, Cost]:
    """Measure all servers in alternation, for each type of database; return the median cost of each."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = [Contender(await stack.enter_async_context(start_and_wait(client, floor(), directory)), None)]
        for name, postgres in databases.items():
            for server in (tips, naive, partial(naive, connections=1)):
                url = await stack.enter_async_context(database(postgres, directory))
                await fill(url, past)
                running = await stack.enter_async_context(start_and_wait(client, server(name, url), directory))
                contenders.append(Contender(running, url, before=await reaction_rows(url)))
        for _, contender in alternate({contender.running.server.name: contender for contender in contenders}, rounds):
            await load(client, contender, WARM_UP)
            contender.costs.append(await load(client, contender, seconds))
        for contender in contenders:
            await check_stored(contender)
        return {contender.running.server.name: median(contender.costs) for contender in contenders}


def reports(past: Past) -> list[Report]:
    first, last = past.last - timedelta(days=29), past.last - timedelta(days=10)
    return [
        Report("the whole period", {}, "1 = 1"),
        Report("one segment", {"segment": SEGMENT}, f"CAST(segments AS text) LIKE '%\"{SEGMENT}\"%'"),
        Report(
            "20 days",
            {"from": first.isoformat(), "to": last.isoformat()},
            f"created_at >= '{first}' AND created_at < '{last + timedelta(days=1)}'",
        ),
    ]


async def measure_rewards(
    client: aiohttp.ClientSession, databases: Mapping[str, str | None], past: Past
) -> list[ReportTime]:
    """Measure tips and the naive form, for each type of database."""
    times = []
    for name, postgres in databases.items():
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = await stack.enter_async_context(database(postgres, directory))
            typer.echo(f"{name}: {past.tips:,} tips", err=True)
            await fill(url, past)
            async with start_and_wait(client, tips(name, url), directory) as running:
                for report in reports(past):
                    times.append(await measure_report(client, running, report))
                    await check_counts(client, running, report, url)
            async with start_and_wait(client, naive(name, url), directory) as running:
                times += [
                    await measure_report(client, running, report)
                    for report in reports(past)
                    if "segment" not in report.query
                ]
    return times


async def measure_report(client: aiohttp.ClientSession, running: Running, report: Report) -> ReportTime:
    """Request one report many times; the first time is not measured."""
    times = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        await rewards(client, running, report)
        times.append((time.perf_counter() - start) * 1000)
    _, *measured = times
    return ReportTime(running.server.name, report.name, statistics.median(measured), max(measured))


async def rewards(client: aiohttp.ClientSession, running: Running, report: Report) -> dict[str, Any]:
    async with client.get(running.address + "/rewards", params=report.query) as response:
        if response.status != 200:
            raise BenchmarkFailed(f"{running.server.name}: {response.status} {(await response.text())[:300]}")
        answer: dict[str, Any] = await response.json()
        return answer


async def check_counts(client: aiohttp.ClientSession, running: Running, report: Report, url: str) -> None:
    """Raise BenchmarkFailed unless the counts of the report are those that SQL computes from the rows."""
    answer = await rewards(client, running, report)
    reported = sorted(
        (variant["prompt_version"], reaction, count)
        for variant in answer["variants"]
        for reaction, count in ({"": variant["tips"] - variant["reacted"]} | variant["reactions"]).items()
    )
    query = "SELECT prompt_version, coalesce(reaction, ''), count(*) FROM tip_scores WHERE {} GROUP BY 1, 2"
    expected = sorted(await rows(url, query.format(report.where)))
    if reported != expected:
        raise BenchmarkFailed(f"{running.server.name}, {report.name}: {reported} reported, but {expected} stored.")
    total = sum(count for _, _, count in expected)
    typer.echo(f"{running.server.name}, {report.name}: correct for {total:,} tips", err=True)


def reaction_table(costs: Mapping[str, Cost]) -> str:
    """Return the costs as a Markdown table."""
    lines = [
        "| server | reactions per second | ratio | p50 ms | p99 ms | CPU ms per request | not 200 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        reference = costs.get(f"{name.partition(':')[0]}: {NAIVE}")
        ratio = f"{cost.rate / reference.rate:.1f}" if reference else ""
        figures = f"{cost.rate:,.0f} | {ratio} | {cost.p50:.1f} | {cost.p99:.1f} | {cost.cpu:.2f} | {cost.failed:g}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def rewards_table(times: Sequence[ReportTime]) -> str:
    """Return the times as a Markdown table."""
    lines = ["| server | rewards of | median ms | maximum ms |", "|---|---|---|---|"]
    lines += [f"| {time.server} | {time.report} | {time.median:.0f} | {time.maximum:.0f} |" for time in times]
    return "\n".join(lines)


def flush_time(directory: Path) -> float:
    """Return the time in which the disk makes a write durable, in ms: the lower bound of a commit."""
    times = []
    with (directory / "flushed").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


async def benchmark(seconds: float, rounds: int, tips: int, postgres: str | None) -> tuple[str, str]:
    """Measure reactions and rewards; return the two tables."""
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
        times = await measure_rewards(client, databases, Past(tips, today, reacted=1 / 3))
    return reaction_table(costs), rewards_table(times)


def main(
    seconds: Annotated[
        float, typer.Option(min=1, help="The time for which each server is measured in each round.")
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds.")] = 5,
    tips: Annotated[
        int, typer.Option(min=10_000, help="The number of stored tips for the reports on rewards.")
    ] = 1_000_000,
    postgres: Annotated[str | None, typer.Option(help="postgresql+asyncpg://USER:PASSWORD@HOST/NAME")] = None,
) -> None:
    """Measure the rate of stored reactions, and the time of reports on rewards."""
    reaction_costs, report_times = run(benchmark(seconds, rounds, tips, postgres), loop=uvloop.new_event_loop)
    with tempfile.TemporaryDirectory() as directory:
        disk = f"The disk takes {flush_time(Path(directory)):.2f} ms to make a write durable."
    versions = machine("fastapi", "uvicorn", "uvloop", "httptools")
    typer.echo(
        f"{CALLERS} callers, {seconds:g} s per round, median of {rounds}. {versions} {disk}\n\n{reaction_costs}\n"
    )
    typer.echo(f"GET /rewards over {tips:,} tips, each report {REPETITIONS} times:\n\n{report_times}")
    if postgres is None:
        typer.echo("\nPostgreSQL was not measured, see --postgres.")


if __name__ == "__main__":
    typer.run(main)
