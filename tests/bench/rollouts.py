"""Wrong versions while rollouts change: two recommenders under load, on one database, and live switches.

    python -m tests.bench.rollouts [--requests 100000] [--switches 100] [--postgres URL]

Everything runs on this machine: a serving that answers at once (rollout_serving.py), and two recommender processes as
in production, with keys, under TIP_PROMPT_POLICY=rollout, on one database: an SQLite file, or one that is created on
the server at `--postgres`, whose role must be allowed to do so, and removed at the end. Callers on persistent
connections send their next request when the last one is answered; each uses one of the recommenders, and users with or
without the locale of the cohorts. Meanwhile random moves are appended to the log of rollouts, equally spaced in the
requests: canaries of all users or of a cohort, other shares, champions, and rollbacks.

At the end, every answer must be 200 and stored, and each stored tip is checked against the fold of the events up to the
one that decided it: its version must have a share, with its digest, and its options must be the shares of that moment
for the segments of its user. The delay of a switch is the time from its event to the last tip of a recommender that an
earlier event decided. The program exits with an error if there is a wrong version, or a delay above 5 s.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
import uvloop
from sqlalchemy import select

from ml.experiments.rollout_state import RolloutEvent, fold
from ml.store import tables
from ml.store.database import Database, migrate_database
from ml.store.rollouts import RolloutLog
from tests.bench.figures import machine
from tests.bench.open_loop import session
from tests.bench.recommender import database
from tests.bench.rollout_serving import DIGEST, VERSIONS
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
from tests.rollout_events import append, random_move, wrong_versions

CALLERS = 16
MAX_DELAY = 5.0
"""Seconds."""

LOCALES = (None, "de", "en")
SEED = 1
_PAGE = 5_000
"""The stored tips that are checked at a time."""


@dataclass
class Load:
    """The numbers of requests that are left to send, and that were answered."""

    left: int
    answered: int = 0


@dataclass(frozen=True)
class Outcome:
    """The figures of a run: `delays`: of each switch, in seconds, the longer one of both recommenders."""

    requests: int
    switches: int
    seconds: float
    wrong: int
    delays: Sequence[float]


async def call(client: aiohttp.ClientSession, running: Running, number: int, load: Load) -> None:
    """Send requests until none are left; the user ids begin with the name of the recommender."""
    rng = random.Random(number)
    while load.left > 0:
        load.left -= 1
        locale = rng.choice(LOCALES)
        user = f"{running.server.name}-{rng.randrange(1_000)}"
        body = {"user_id": user, "signals": {"locale": locale} if locale else {}}
        async with client.post(f"{running.address}/tips", json=body) as response:
            answer = await response.read()
            if response.status != 200:
                raise BenchmarkFailed(f"{running.server.name} answered {response.status}: {answer[:200]!r}")
        load.answered += 1


async def switch(store: Database, load: Load, switches: int) -> None:
    """Append a random move whenever the next part of the requests has been answered."""
    rng, requests = random.Random(SEED), load.left
    log = RolloutLog(store)
    for number in range(1, switches + 1):
        while load.answered < number * requests // (switches + 1):  # noqa: ASYNC110 - the callers count
            await asyncio.sleep(0.01)
        move = random_move(fold(await log.events()), VERSIONS, rng, at=datetime.now(UTC), digest=DIGEST)
        await append(store, move)


async def check(store: Database, events: Sequence[RolloutEvent]) -> tuple[int, int, dict[str, dict[int, float]]]:
    """Return the numbers of stored tips and of wrong versions, and when each recommender used each event last."""
    tips = tables.tip_scores
    stored, wrong = 0, 0
    last: dict[str, dict[int, float]] = {}
    async with store.reading() as connection:
        async for page in (await connection.stream(select(tips))).mappings().partitions(_PAGE):
            stored += len(page)
            wrong += len(wrong_versions(page, events))
            for tip in page:
                of_recommender = last.setdefault(tip["user_id"].partition("-")[0], {})
                at = tip["created_at"].timestamp()
                of_recommender[tip["prompt_event"]] = max(of_recommender.get(tip["prompt_event"], 0), at)
    return stored, wrong, last


def delay(event: RolloutEvent, last: dict[str, dict[int, float]]) -> float:
    """Return how long after an event a recommender used an earlier one, in seconds; 0 if none did."""
    return max(max((at - event.at for id_, at in of.items() if id_ < event.id), default=0.0) for of in last.values())


async def benchmark(requests: int, switches: int, postgres: str | None) -> Outcome:
    """Start everything, send the requests during the switches, stop everything, and check what is stored."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = await stack.enter_async_context(database(postgres, directory))
        migrate_database(url)
        store = Database(url)
        stack.push_async_callback(store.close)
        client = await stack.enter_async_context(session())

        async def start(server: Server, path: str) -> Running:
            running = stack.enter_context(start_server(server, directory))
            await wait_until_working(running, partial(get, client, running, path))
            return running

        options = ("--no-access-log", "--lifespan", "off", "--timeout-keep-alive", "600")
        serving = await start(Server("serving", uvicorn("tests.bench.rollout_serving:app", *options), ""), "/prompts")
        environment = {
            "SERVING_URL": serving.address,
            "DATABASE_URL": url,
            "TIP_PROMPT_POLICY": "rollout",
            "API_KEYS": KEY,
        }
        command = service("ml.recommender.main:app")
        recommenders = [
            await start(Server(name, command, "/tips", environment=environment), "/health/ready") for name in "ab"
        ]
        load, started = Load(requests), time.monotonic()
        callers = (call(client, recommenders[n % 2], n, load) for n in range(CALLERS))
        await asyncio.gather(switch(store, load, switches), *callers)
        seconds = time.monotonic() - started
        events = await RolloutLog(store).events()
        stored, wrong, last = await check(store, events)
    if stored != requests:
        raise BenchmarkFailed(f"{requests} requests were answered, but {stored} tips are stored")
    return Outcome(requests, switches, seconds, wrong, [delay(event, last) for event in events[1:]])


def main(
    requests: Annotated[int, typer.Option(min=100, help="Requests for a tip.")] = 100_000,
    switches: Annotated[int, typer.Option(min=1, help="Events of rollouts during them.")] = 100,
    postgres: Annotated[str | None, typer.Option(help="postgresql+asyncpg://USER:PASSWORD@HOST/NAME")] = None,
) -> None:
    """Count the wrong versions while rollouts change, and measure how soon a change is effective."""
    outcome = run(benchmark(requests, switches, postgres), loop=uvloop.new_event_loop)
    typer.echo(f"{machine('fastapi', 'sqlalchemy')} {'PostgreSQL' if postgres else 'SQLite'}\n")
    typer.echo(f"requests                 {outcome.requests:,} in {outcome.seconds:.0f} s")
    typer.echo(f"switches                 {outcome.switches}")
    typer.echo(f"wrong versions           {outcome.wrong}")
    middle, longest = statistics.median(outcome.delays), max(outcome.delays)
    typer.echo(f"delay of a switch, s     median {middle:.2f}, max {longest:.2f}")
    if outcome.wrong or longest > MAX_DELAY:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
