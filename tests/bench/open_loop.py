"""Load in an open loop: requests are sent on schedule, whatever becomes of earlier ones, as callers do.

An answer's latency counts from when its request was due, the timer's own delay (below 1 ms) included. The CPU time is
what the server's processes spent, user and system, from the first measured request to the last answer, over the number
of requests; it is read from Linux's /proc. Each measurement comes after a warm-up that does not count.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.bench.figures import median, p50_and_p99, turns
from tests.bench.server import KEY, BenchmarkFailed, Running

WARM_UP = 50
"""Requests."""

REFUSED = 503


@dataclass(frozen=True)
class Answer:
    """Right, or a refusal (503); and how long after its request was due it came, in ms."""

    refused: bool
    latency: float


@dataclass(frozen=True)
class Cost:
    """What one request costs: CPU time and latency, in ms."""

    cpu: float
    p50: float
    p99: float


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client that knows the key and has as many connections as it needs; it closes idle ones first."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as client:
        yield client


async def ask(client: aiohttp.ClientSession, running: Running, body: bytes) -> bool:
    """Send one request; tell whether it was answered rather than refused. Raises BenchmarkFailed for anything else."""
    server = running.server
    try:
        async with client.post(running.address + server.path, data=body) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchmarkFailed(f"{server.name}: {type(error).__name__} {error}") from error
    if response.status != REFUSED and not (response.status == 200 and server.right(answer)):
        raise BenchmarkFailed(f"{server.name} answered {response.status}: {answer[:300].decode(errors='replace')}")
    return response.status == 200


async def must_answer(client: aiohttp.ClientSession, running: Running) -> None:
    """Raise BenchmarkFailed unless the server answers rightly."""
    if not await ask(client, running, running.server.bodies[0]):
        raise BenchmarkFailed(f"{running.server.name} answered {REFUSED}.")


async def load(client: aiohttp.ClientSession, running: Running, count: int, rate: float) -> list[Answer]:
    """Send `count` requests, `rate` a second whatever becomes of them.

    Raises BenchmarkFailed at the first answer that is neither right nor a refusal.
    """
    loop = asyncio.get_running_loop()

    async def answer(body: bytes, due: float) -> Answer:
        answered = await ask(client, running, body)
        return Answer(not answered, (loop.time() - due) * 1000)

    start = loop.time()
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            for number, body in zip(range(count), itertools.cycle(running.server.bodies), strict=False):
                due = start + number / rate
                await asyncio.sleep(due - loop.time())
                tasks.append(group.create_task(answer(body, due)))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def measure(client: aiohttp.ClientSession, running: Running, seconds: float, rate: float) -> Cost:
    """Measure what a request costs. Raises BenchmarkFailed if one is refused."""
    await load(client, running, WARM_UP, rate)
    count = max(2, round(seconds * rate))
    before = running.cpu_seconds
    answers = await load(client, running, count, rate)
    cpu = running.cpu_seconds - before
    if any(answer.refused for answer in answers):
        raise BenchmarkFailed(f"{running.server.name} answered {REFUSED} at {rate:g} requests a second.")
    return Cost(cpu / count * 1000, *p50_and_p99([answer.latency for answer in answers]))


async def measure_all(
    client: aiohttp.ClientSession, runnings: Sequence[Running], seconds: float, rate: float, rounds: int
) -> dict[str, Cost]:
    """Measure servers in turns; return each one's median cost."""
    costs: dict[str, list[Cost]] = {running.server.name: [] for running in runnings}
    for name, running in turns({running.server.name: running for running in runnings}, rounds):
        costs[name].append(await measure(client, running, seconds, rate))
    return {name: median(of_rounds) for name, of_rounds in costs.items()}


def table(costs: Mapping[str, Cost], reference: str, called: str) -> str:
    """Return the costs as a table in Markdown, the cheapest first, with ratios to the reference, if it was measured."""
    lines = [f"| server | CPU ms a request | ratio to {called} | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, cost in sorted(costs.items(), key=lambda item: item[1].cpu):
        ratio = f"{cost.cpu / costs[reference].cpu:.2f}" if reference in costs else ""
        lines.append(f"| {name} | {cost.cpu:.2f} | {ratio} | {cost.p50:.1f} | {cost.p99:.1f} |")
    return "\n".join(lines)
