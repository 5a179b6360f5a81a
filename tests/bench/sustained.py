"""Memory, descriptors and threads of both services under a mixed load for half an hour.

    python -m tests.bench.sustained [--minutes 30] [--rate 20]

One process runs both services as `tips serve` does, with keys, SQLite, two candidates a tip, a learned ranking and the
users' aggregates; the model is a server on this machine that answers at once. Requests are sent on schedule (open loop)
and drawn at random from `OPERATIONS`: tips, reactions, retries with an idempotency key, whole and streamed generations,
rankings, the reward page, and callers that send nonsense, disconnect, or never finish their request.

The resident memory, open descriptors and threads of the process are read from Linux's /proc every five seconds. The
program prints their medians for each tenth of the run, and what was answered to each operation. It exits with an error
if an operation was answered with another status than its own, if an acknowledged tip is not stored, or if memory grew
by more than 5 % from the third tenth to the last.
"""

import asyncio
import json
import random
import sqlite3
import statistics
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import aiohttp
import typer

from ml.experiments.decisions import InMemoryDecisionLog
from ml.features.online_store import replace_all
from ml.pipelines.training import train
from tests.bench.figures import machine
from tests.bench.open_loop import session
from tests.bench.score import score_requests
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
from tests.bench.users import User, decisions, random_users

SAMPLE_SECONDS = 5.0
MAX_GROWTH = 1.05
"""Memory of the last tenth relative to the third, in which all caches are full."""

UNFINISHED_SECONDS = 3.0
"""How long an unfinished request is kept open."""


@dataclass(frozen=True)
class Sample:
    """Resident memory in MiB, open descriptors, and threads."""

    memory: float
    descriptors: int
    threads: int


@dataclass
class Load:
    """The clients of a run.

    `acknowledged`: the ids of all tips that were answered, as the database stores them. `unanswered`: the ids of tips
    without a reaction.
    """

    http: aiohttp.ClientSession
    running: Running
    users: Sequence[User]
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    unanswered: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, **request: Any) -> tuple[int, bytes]:
        async with self.http.request(method, self.running.address + path, **request) as response:
            return response.status, await response.read()

    def user(self) -> User:
        return self.rng.choice(self.users)

    async def tip(self) -> int:
        user = self.user()
        body = {"user_id": user.user_id, "signals": user.signals}
        status, answer = await self.send("POST", "/tips", json=body)
        if status == 200:
            tip_id = json.loads(answer)["tip_id"]
            self.acknowledged.add(uuid.UUID(tip_id).hex)
            self.unanswered.append(tip_id)
        return status

    async def tip_twice(self) -> int:
        user = self.user()
        body = {"user_id": user.user_id, "signals": user.signals}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        first = await self.send("POST", "/tips", json=body, headers=headers)
        second = await self.send("POST", "/tips", json=body, headers=headers)
        if first != second:
            raise BenchmarkFailed(f"A retry was answered differently: {first} {second}")
        self.acknowledged.add(uuid.UUID(json.loads(first[1])["tip_id"]).hex)
        return second[0]

    async def reaction(self) -> int:
        if not self.unanswered:
            return await self.tip()
        tip_id = self.unanswered.pop(self.rng.randrange(len(self.unanswered)))
        body = {"tip_id": tip_id, "reaction": self.rng.choice(("helpful", "not_helpful", "dismissed"))}
        return (await self.send("POST", "/reactions", json=body))[0]

    async def generation(self) -> int:
        return (await self.send("POST", "/generate", json={"signals": self.user().signals}))[0]

    async def stream(self) -> int:
        status, answer = await self.send("POST", "/generate", json={"signals": self.user().signals, "stream": True})
        if b"event: done" not in answer:
            raise BenchmarkFailed(f"A stream did not end: {answer[-200:]!r}")
        return status

    async def abandoned_stream(self) -> int:
        body = {"signals": self.user().signals, "stream": True}
        async with self.http.post(self.running.address + "/generate", json=body) as response:
            await response.content.readany()
            response.close()
            return response.status

    async def ranking(self) -> int:
        return (await self.send("POST", "/score", data=self.rng.choice(score_requests([self.user()]))))[0]

    async def page(self) -> int:
        path = self.rng.choice(("/rewards", "/admin/rewards", "/metrics", "/health/ready", "/prompts", "/"))
        return (await self.send("GET", path))[0]

    async def nonsense(self) -> int:
        path = self.rng.choice(("/generate", "/score", "/tips", "/reactions"))
        return (await self.send("POST", path, data=b'{"signals": ['))[0]

    async def oversize(self) -> int:
        return (await self.send("POST", "/tips", data=b" " * 70_000))[0]

    async def wrong_key(self) -> int:
        return (await self.send("POST", "/tips", json={}, headers={"Authorization": "Bearer no"}))[0]

    async def many_headers(self) -> int:
        return (await self.send("GET", "/health/live", headers={f"X-Header-{n}": "x" for n in range(200)}))[0]

    async def unfinished(self) -> int:
        """Send one byte of a body, wait, and disconnect."""
        address = urlsplit(self.running.address)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /score HTTP/1.1\r\nHost: tips\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{"
        writer.write(head.encode())
        await asyncio.sleep(UNFINISHED_SECONDS)
        writer.close()
        return 0


@dataclass(frozen=True)
class Operation:
    """An operation of a client, its share of all operations, and the status of its answer."""

    send: Callable[[Load], Awaitable[int]]
    weight: float
    status: int = 200


OPERATIONS = {
    "tip": Operation(Load.tip, 25),
    "tip, sent twice with one key": Operation(Load.tip_twice, 5),
    "reaction": Operation(Load.reaction, 20),
    "generation": Operation(Load.generation, 15),
    "stream": Operation(Load.stream, 10),
    "stream, abandoned": Operation(Load.abandoned_stream, 3),
    "ranking": Operation(Load.ranking, 10),
    "page": Operation(Load.page, 5),
    "nonsense": Operation(Load.nonsense, 3, 400),
    "oversize body": Operation(Load.oversize, 1, 413),
    "wrong key": Operation(Load.wrong_key, 2, 401),
    "200 headers": Operation(Load.many_headers, 1, 431),
    "unfinished request": Operation(Load.unfinished, 1, 0),
}


def services(users: Sequence[User], model: str, directory: Path) -> Server:
    """Return both services in one process, with their files in `directory`."""
    policy, store = directory / "policy", f"sqlite:///{directory / 'features.db'}"
    policy.write_bytes(train(InMemoryDecisionLog([*decisions(users)]), name="benchmark"))
    replace_all(store, ((user.user_id, user.aggregates) for user in users), datetime.now(UTC))
    environment = {
        "API_KEYS": KEY,
        "TIP_MODEL": "openai/tiny",
        "TIP_MODEL_API_BASE": f"{model}/v1",
        "OPENAI_API_KEY": "k",
        "SCORE_POLICY": str(policy),
        "ONLINE_STORE_URL": store,
        "DATABASE_URL": f"sqlite+aiosqlite:///{directory / 'tips.db'}",
        "TIP_PROMPT_VERSION": "v1,v2-mentor,v3-few-shot",
        "TIP_CANDIDATES": "2",
    }
    return Server("tips", service("ml.standalone.main:app"), "/generate", environment=environment)


def sample(pid: int) -> Sample:
    """Read the use of a process from /proc (proc_pid_status(5))."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.split() for name, _, value in lines}
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Sample(int(status["VmRSS"][0]) / 1024, descriptors, int(status["Threads"][0]))


async def keep_sampling(pid: int, samples: list[Sample]) -> None:
    while True:
        samples.append(sample(pid))
        await asyncio.sleep(SAMPLE_SECONDS)


async def keep_sending(load: Load, seconds: float, rate: float) -> None:
    """Send operations on schedule. Raises BenchmarkFailed at the first answer that is not the operation's."""
    names, weights = [*OPERATIONS], [operation.weight for operation in OPERATIONS.values()]

    async def send(name: str) -> None:
        operation = OPERATIONS[name]
        status = await operation.send(load)
        load.statuses[name, status] += 1
        if status != operation.status:
            raise BenchmarkFailed(f"{name}: {status} instead of {operation.status}")

    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(round(seconds * rate)):
                await asyncio.sleep(start + number / rate - loop.time())
                group.create_task(send(*load.rng.choices(names, weights)))
    except ExceptionGroup as failures:
        raise BenchmarkFailed(repr(failures.exceptions[0])) from failures


def table(samples: Sequence[Sample], minutes: float) -> str:
    """Return the medians of each tenth of the run as a Markdown table."""
    lines = ["| minutes | memory MiB | descriptors | threads |", "|---|---|---|---|"]
    for number, part in enumerate(tenths(samples)):
        label = f"{number * minutes / 10:g} to {(number + 1) * minutes / 10:g}"
        memory, descriptors, threads = (statistics.median(values) for values in zip(*map(_values, part), strict=True))
        lines.append(f"| {label} | {memory:.0f} | {descriptors:.0f} | {threads:.0f} |")
    return "\n".join(lines)


def _values(sample: Sample) -> tuple[float, int, int]:
    return sample.memory, sample.descriptors, sample.threads


def tenths(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    return [samples[len(samples) * part // 10 : len(samples) * (part + 1) // 10] for part in range(10)]


def growth(samples: Sequence[Sample]) -> float:
    """Return the memory of the last tenth relative to the third."""
    parts = tenths(samples)
    third, last = (statistics.median(each.memory for each in parts[number]) for number in (2, 9))
    return last / third


async def benchmark(minutes: float, rate: float) -> tuple[Load, list[Sample]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        users = random_users()
        async with session() as http:
            model_server = Server("upstream", uvicorn("tests.bench.peers:upstream", "--no-access-log"), "/")
            model = stack.enter_context(start_server(model_server, directory))
            running = stack.enter_context(start_server(services(users, model.address, directory), directory))
            await wait_until_working(running, partial(get, http, running, "/health/ready"))
            load, samples = Load(http, running, users), list[Sample]()
            sampling = asyncio.create_task(keep_sampling(running.process.pid, samples))
            await keep_sending(load, minutes * 60, rate)
            sampling.cancel()
            with sqlite3.connect(directory / "tips.db") as database:
                stored = {row[0] for row in database.execute("SELECT tip_id FROM tip_scores")}
            if lost := load.acknowledged - stored:
                raise BenchmarkFailed(f"{len(lost)} acknowledged tips are not stored.")
            return load, samples


def main(
    minutes: Annotated[float, typer.Option(min=1, help="The duration of the load.")] = 30,
    rate: Annotated[float, typer.Option(min=0.1, help="Operations per second.")] = 20,
) -> None:
    """Measure memory, descriptors and threads under a mixed load."""
    load, samples = run(benchmark(minutes, rate))
    typer.echo(f"{rate:g} operations per second for {minutes:g} minutes. {machine('fastapi', 'uvicorn', 'litellm')}\n")
    typer.echo(table(samples, minutes))
    typer.echo(f"\n{len(load.acknowledged)} tips were acknowledged, and all are stored.\n")
    for (name, status), count in sorted(load.statuses.items()):
        typer.echo(f"{name}: {count} answered {status or 'nothing'}")
    typer.echo(f"\nMemory of the last tenth relative to the third: {growth(samples):.3f}")
    if growth(samples) > MAX_GROWTH:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
