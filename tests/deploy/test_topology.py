"""The deployment as processes: replicas of both services behind its proxy, and what callers see of a crash."""

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from ml.features.online_store import replace_all
from tests.cli.commands import model_settings
from tests.conftest import becomes_ready, eventually
from tests.databases import Database
from tests.deploy.name_server import name_server
from tests.process import TIPS, Service, free_port, service
from tests.server import running
from tests.upstream import Upstream

CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"

REPLICAS = {"serving": ("127.0.0.2", "127.0.0.3"), "recommender": ("127.0.0.4", "127.0.0.5")}
"""The addresses of the replicas of each service; all listen on the same port."""

USERS = 12
"""The number of users who all the time ask for a tip, see it and react to it."""

TIPS_PER_PHASE = 24
"""The number of tips before, between and after the crashes."""

AGGREGATES = {"reward_rate_30d": 0.25, "tips_7d": 3.0}
SIGNALS = {"mood": "low", "sleep_hours": 5.5}
CANDIDATES = [{"id": "a", "tip": "Dim the lights now."}, {"id": "b", "tip": "Walk around the block."}]


def haproxy() -> str:
    """Return the path of HAProxy, which Debian has in a directory for root."""
    path = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    return path or pytest.fail("HAProxy is missing: `./check install` as root, or install the package haproxy.")


def proxy_settings(**settings: str) -> dict[str, str]:
    """Return the environment of the proxy, with the files of the deployment."""
    return {
        "SERVING": "serving:8000",
        "RECOMMENDER": "recommender:8000",
        "ERRORS": str(CONFIGURATION.parent),
        **settings,
    }


def answers(url: str) -> bool:
    return httpx.get(url, timeout=60).is_success


@dataclass
class Topology:
    """The address of the proxy, and the replicas behind it."""

    url: str
    serving: Sequence[Service]
    recommender: Sequence[Service]


@pytest.fixture
def topology(postgresql_database: Database, redis_url: str) -> Iterator[Topology]:
    """Two servings and two recommenders behind the proxy; the model needs 0.7 s for a tip."""
    port, callers, recommenders = free_port(), free_port(), free_port()
    upstream = Upstream()
    with ExitStack() as stack:
        upstream.url = stack.enter_context(running(upstream.app()))
        settings = {
            "serving": model_settings(upstream, "slow", ONLINE_STORE_URL=redis_url, **upstream.environment()),
            "recommender": {
                "DATABASE_URL": postgresql_database.url,
                "SERVING_URL": f"http://127.0.0.1:{recommenders}",
                "TIP_CANDIDATES": "2",
            },
        }
        environment = proxy_settings(
            CALLERS=f"127.0.0.1:{callers}",
            RECOMMENDERS=f"127.0.0.1:{recommenders}",
            RESOLVER=stack.enter_context(name_server(REPLICAS)),
            SERVING=f"serving:{port}",
            RECOMMENDER=f"recommender:{port}",
        )
        proxy = stack.enter_context(subprocess.Popen([haproxy(), "-db", "-f", CONFIGURATION], env=environment))
        stack.callback(proxy.kill)

        def start(name: str, host: str) -> Service:
            command = (TIPS, "serve", "--only", name)
            replica = stack.enter_context(service(*command, address=f"{host}:{port}", **settings[name]))
            assert becomes_ready(replica.http), replica.log
            return replica

        with ThreadPoolExecutor() as pool:  # together, since each needs seconds
            starting = {name: [pool.submit(start, name, host) for host in hosts] for name, hosts in REPLICAS.items()}
        replicas = {name: [future.result() for future in futures] for name, futures in starting.items()}
        url = f"http://127.0.0.1:{callers}"
        for path in ("/health/ready", "/prompts"):  # of the recommenders, and of the servings
            assert eventually(partial(answers, url + path))
        yield Topology(url, **replicas)


@dataclass
class Load:
    """Callers of all routes, who send a request again after a 503, and what was acknowledged to them.

    `time_over`: set when the time of the requests that were in flight in a killed recommender is over. `used`: released
    once for each tip that was seen and has a reaction.
    """

    http: httpx.AsyncClient
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    time_over: asyncio.Event = field(default_factory=asyncio.Event)
    used: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    statuses: Counter[int] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    tips: list[str] = field(default_factory=list)
    exposures: list[str] = field(default_factory=list)
    reactions: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """Send a request until it succeeds; return the body of the answer."""
        headers = {"Idempotency-Key": key} if key else {}
        for attempt in range(1_000):
            answer = await self.http.request(method, path, json=body, headers=headers)
            self.statuses[answer.status_code] += 1
            if answer.is_success:
                self.answered[path] += 1
                return answer.json()
            problem = answer.json()
            if attempt and key and problem["type"] == "urn:tips:problem:request-in-progress":
                await self.time_over.wait()  # as callers.md says of a recommender that was killed
            else:
                assert answer.status_code == 503, (path, problem)
                await asyncio.sleep(0.1)
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert problem["status"] == answer.status_code
            assert int(answer.headers["Retry-After"]) > 0
        raise AssertionError(f"{path} is not answered")

    async def use_tips(self, user_id: str) -> None:
        while not self.stopped.is_set():
            tip = await self.send("POST", "/tips", {"user_id": user_id, "signals": SIGNALS}, uuid4().hex)
            report = {"tip_id": tip["tip_id"]}
            self.tips.append(tip["tip_id"])
            await self.send("POST", "/exposures", report)
            self.exposures.append(tip["tip_id"])
            await self.send("POST", "/reactions", report | {"reaction": "helpful"}, uuid4().hex)
            self.reactions.append(tip["tip_id"])
            self.used.release()

    async def repeat(self, method: str, path: str, body: Any = None) -> None:
        while not self.stopped.is_set():
            await self.send(method, path, body)
            await asyncio.sleep(0.05)

    async def run(self, during: Callable[["Load"], Awaitable[None]]) -> "Load":
        """Send requests until `during` has ended and all of them have succeeded."""
        async with asyncio.TaskGroup() as callers:
            for number in range(USERS):
                callers.create_task(self.use_tips(f"u{number}"))
            callers.create_task(self.repeat("POST", "/generate", {"signals": SIGNALS}))
            callers.create_task(self.repeat("POST", "/score", {"user_id": "u0", "candidates": CANDIDATES}))
            callers.create_task(self.repeat("GET", "/rewards"))
            await during(self)
            self.stopped.set()
        return self

    async def more_tips(self) -> None:
        """Wait until a number of further tips have a reaction."""
        for _ in range(TIPS_PER_PHASE):
            await self.used.acquire()


async def under_load(topology: Topology, during: Callable[[Load], Awaitable[None]]) -> Load:
    async with httpx.AsyncClient(base_url=topology.url, timeout=60) as http:
        return await Load(http).run(during)


def end_time_of_requests(database: Database, before: datetime) -> None:
    """Let the time pass that the recommenders have for requests for tips which arrived before this time."""
    database.rows(
        "UPDATE idempotency_keys SET leased_until = created_at"
        f" WHERE leased_until IS NOT NULL AND created_at < '{before.isoformat()}'"
    )


def test_the_proxy_accepts_its_configuration() -> None:
    checked = subprocess.run(
        [haproxy(), "-c", "-f", CONFIGURATION], env=proxy_settings(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, "WARNING" in checked.stdout + checked.stderr) == (0, False), checked.stderr


def test_a_crash_of_each_service_is_no_error_but_503_and_nothing_is_lost(
    topology: Topology, postgresql_database: Database, redis_url: str
) -> None:
    database = postgresql_database
    replace_all(redis_url, [(f"u{number}", AGGREGATES) for number in range(USERS)], datetime.now(UTC))

    async def crashes(load: Load) -> None:
        await load.more_tips()
        topology.serving[0].process.kill()
        await load.more_tips()
        topology.recommender[0].process.kill()
        killed_at = datetime.now(UTC)
        await load.more_tips()
        await asyncio.to_thread(end_time_of_requests, database, killed_at)
        load.time_over.set()

    load = asyncio.run(under_load(topology, crashes))
    assert {replica.process.poll() for replica in (topology.serving[0], topology.recommender[0])} == {-9}

    # Every tip, exposure and reaction that was acknowledged is stored once, and no other.
    shown = database.rows("SELECT tip_id, score_policy, aggregates FROM tip_scores WHERE shown")
    assert sorted(str(row["tip_id"]) for row in shown) == sorted(load.tips)
    for table, acknowledged in (("exposures", load.exposures), ("reactions", load.reactions)):
        stored = database.rows(f"SELECT tip_id FROM {table}")
        assert sorted(str(row["tip_id"]) for row in stored) == sorted(acknowledged), table
    ranked = [row for row in shown if row["score_policy"]]
    assert any("tips_7d" in (row["aggregates"] or "") for row in ranked)

    async def go_on(load: Load) -> None:
        await load.more_tips()

    after = asyncio.run(under_load(topology, go_on))
    assert set(after.statuses) == {200}
    assert {"/tips", "/exposures", "/reactions", "/generate", "/score", "/rewards"} == {*after.answered}
    rewards = httpx.get(f"{topology.url}/rewards").json()
    assert sum(variant["tips"] for variant in rewards["variants"]) == len(load.tips) + len(after.tips)
