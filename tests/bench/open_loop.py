"""Open-loop load: requests are sent on schedule, independently of the answers to earlier requests, as callers do.

The latency of an answer starts when its request was due, which includes the delay of the timer (below 1 ms). The CPU
time per request is the user and system time of the server's processes from the first measured request to the last
answer, divided by the number of requests; it is read from Linux's /proc. A warm-up before each measurement is not
measured.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.bench.figures import alternate, median, p50_and_p99
from tests.bench.server import KEY, BenchmarkFailed, Running

WARM_UP = 50
"""Requests."""

REFUSED = 503


@dataclass(frozen=True)
class Answer:
    """An answer: correct, or a refusal (503), and its latency in ms."""

    refused: bool
    latency: float


@dataclass(frozen=True)
class Cost:
    """The CPU time and the latency of one request, in ms."""

    cpu: float
    p50: float
    p99: float


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client that sends the key, with unlimited connections; it closes idle connections before servers do."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as client:
        yield client


async def send_request(client: aiohttp.ClientSession, running: Running, body: bytes) -> bool:
    """Send one request; return True for a correct answer, False for a refusal. Raises BenchmarkFailed otherwise."""
    server = running.server
    try:
        async with client.post(running.address + server.path, data=body) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchmarkFailed(f"{server.name}: {type(error).__name__} {error}") from error
    if response.status != REFUSED and not (response.status == 200 and server.is_correct(answer)):
        raise BenchmarkFailed(f"{server.name} answered {response.status}: {answer[:300].decode(errors='replace')}")
    return response.status == 200


async def must_answer(client: aiohttp.ClientSession, running: Running) -> None:
    """Raise BenchmarkFailed unless the server answers correctly."""
    if not await send_request(client, running, running.server.bodies[0]):
        raise BenchmarkFailed(f"{running.server.name} answered {REFUSED}.")


async def load(client: aiohttp.ClientSession, running: Running, count: int, rate: float) -> list[Answer]:
    """Send `count` requests at `rate` per second.

    Raises BenchmarkFailed at the first answer that is neither correct nor a refusal.
    """
    loop = asyncio.get_running_loop()

    async def answer(body: bytes, due: float) -> Answer:
        is_answered = await send_request(client, running, body)
        return Answer(not is_answered, (loop.time() - due) * 1000)

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
    """Measure the cost of a request. Raises BenchmarkFailed if a request is refused."""
    await load(client, running, WARM_UP, rate)
    count = max(2, round(seconds * rate))
    before = running.cpu_seconds
    answers = await load(client, running, count, rate)
    cpu = running.cpu_seconds - before
    if any(answer.refused for answer in answers):
        raise BenchmarkFailed(f"{running.server.name} answered {REFUSED} at {rate:g} requests per second.")
    return Cost(cpu / count * 1000, *p50_and_p99([answer.latency for answer in answers]))


async def measure_all(
    client: aiohttp.ClientSession, runnings: Sequence[Running], seconds: float, rate: float, rounds: int
) -> dict[str, Cost]:
    """Measure servers in alternation; return the median cost of each."""
    costs: dict[str, list[Cost]] = {running.server.name: [] for running in runnings}
    for name, running in alternate({running.server.name: running for running in runnings}, rounds):
        costs[name].append(await measure(client, running, seconds, rate))
    return {name: median(round_costs) for name, round_costs in costs.items()}


def table(costs: Mapping[str, Cost], reference: str, reference_label: str) -> str:
    """Return the costs as a Markdown table in ascending order, with ratios to the reference if it was measured."""
    lines = [f"| server | CPU ms per request | ratio to {reference_label} | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, cost in sorted(costs.items(), key=lambda item: item[1].cpu):
        ratio = f"{cost.cpu / costs[reference].cpu:.2f}" if reference in costs else ""
        lines.append(f"| {name} | {cost.cpu:.2f} | {ratio} | {cost.p50:.1f} | {cost.p99:.1f} |")
    return "\n".join(lines)
