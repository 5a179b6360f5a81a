"""The cost of reading a user's aggregates for a ranking: from SQLite and Redis, and from Redis by Feast.

    python -m tests.bench.online_store [--users 20000] [--reads 2000] [--seconds 10] [--rate 40] [--rounds 3]

First, reads of random users, one after another, in this process, on the event loop of the services:

- SQLite and Redis, as `POST /score` reads them (`ml.features.online_store`);
- Feast's `get_online_features` and its variant for asyncio, of the same keys of the same Redis; only where Feast is
  installed. Feast is not asked on a path of the service: it is what a service without a reader of its own would call.

Every answer is compared with what was written. Then whole rankings, as in score.py: `POST /score` without an online
store, with SQLite and with Redis; of the latter, the output says how many had no aggregates, since on a busy machine a
read can take longer than it may. Both parts measure in alternation for several rounds, and print the medians of the
rounds. CPU time is that of this process or of the server, without Redis'. Redis is the server of the tests
(`TEST_REDIS_URL`), on this machine.
"""

import asyncio
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
import uvloop

from ml.experiments.decisions import InMemoryDecisionLog
from ml.features import online_redis
from ml.features.definitions import AGGREGATES
from ml.features.feast_layout import ENTITY, PROJECT, feature_view
from ml.features.online_store import open_online_store, replace_all
from ml.pipelines.training import train
from tests.bench import score
from tests.bench.figures import alternate, machine, median, p50_and_p99
from tests.bench.open_loop import Cost, measure_all, must_answer, session, table
from tests.bench.server import BenchmarkFailed, get, run, start_server, wait_until_working
from tests.bench.users import decisions, random_users
from tests.databases import redis_database

Read = Callable[[str], Awaitable[Mapping[str, float]]]

WARM_UP = 100
"""Reads."""


@dataclass(frozen=True)
class ReadCost:
    """The CPU time and the latency of one read, in µs."""

    cpu: float
    p50: float
    p99: float


def random_aggregates(count: int) -> dict[str, dict[str, float]]:
    rng = random.Random(1)
    return {f"u-{n}": {"reward_rate_30d": rng.random(), "tips_7d": float(rng.randrange(50))} for n in range(count)}


@asynccontextmanager
async def port_reader(url: str) -> AsyncIterator[Read]:
    """Yield a function that reads as the service does."""
    async with open_online_store(url) as store:

        async def read(user_id: str) -> Mapping[str, float]:
            return (await store.read(user_id, datetime.now(UTC))).values

        yield read


def feast_readers(redis_url: str, directory: Path) -> dict[str, Read]:
    """Return functions that read by Feast, each feature view in the same request."""
    import pyarrow as pa
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64
    from pyarrow import parquet

    file = directory / "empty.parquet"
    columns = [(ENTITY, pa.string()), ("computed_at", pa.timestamp("us", "UTC"))]
    parquet.write_table(pa.schema([*columns, *((name, pa.float64()) for name in AGGREGATES)]).empty_table(), file)
    source = FileSource(path=str(file), timestamp_field="computed_at")
    user = Entity(name=ENTITY, join_keys=[ENTITY], value_type=ValueType.STRING)
    views = [
        FeatureView(
            name=feature_view(name),
            entities=[user],
            ttl=aggregate.max_age,
            schema=[Field(name=name, dtype=Float64)],
            source=source,
        )
        for name, aggregate in AGGREGATES.items()
    ]
    address = urlsplit(redis_url)
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry={"path": str(directory / "registry.db"), "cache_ttl_seconds": 0},  # never read again
            online_store={"type": "redis", "connection_string": f"{address.netloc},db={address.path[1:]}"},
            entity_key_serialization_version=3,
        )
    )
    store.apply([user, *views])
    features = [f"{feature_view(name)}:{name}" for name in AGGREGATES]

    def values(response: Any) -> Mapping[str, float]:
        answer = response.to_dict()
        return {name: answer[name][0] for name in AGGREGATES}

    async def read(user_id: str) -> Mapping[str, float]:
        return values(store.get_online_features(features=features, entity_rows=[{ENTITY: user_id}]))

    async def read_async(user_id: str) -> Mapping[str, float]:
        return values(await store.get_online_features_async(features=features, entity_rows=[{ENTITY: user_id}]))

    return {"Redis, Feast's `get_online_features`": read, "Redis, Feast's `get_online_features_async`": read_async}


async def measure_reads(read: Read, users: Mapping[str, Mapping[str, float]], count: int) -> ReadCost:
    """Read random users one after another. Raises BenchmarkFailed for an answer that is not what was written."""
    chosen = random.Random(2).choices([*users], k=WARM_UP + count)
    for user_id in chosen[:WARM_UP]:
        await read(user_id)
    latencies, cpu = [], time.process_time()
    for user_id in chosen[WARM_UP:]:
        started = time.perf_counter()
        answer = await read(user_id)
        latencies.append((time.perf_counter() - started) * 1e6)
        if answer != users[user_id]:
            raise BenchmarkFailed(f"{user_id} has {users[user_id]}, but the answer was {answer}.")
    return ReadCost((time.process_time() - cpu) / count * 1e6, *p50_and_p99(latencies))


async def benchmark_reads(redis_url: str, directory: Path, users: int, reads: int, rounds: int) -> dict[str, ReadCost]:
    aggregates = random_aggregates(users)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    urls = {"SQLite": f"sqlite:///{directory / 'reads.db'}", "Redis": redis_url}
    async with AsyncExitStack() as stack:
        readers: dict[str, Read] = {}
        for name, url in urls.items():
            started = time.perf_counter()
            replace_all(url, aggregates.items(), midnight)
            typer.echo(f"{name}: {users:,} users written in {time.perf_counter() - started:.1f} s", err=True)
            readers[name] = await stack.enter_async_context(port_reader(url))
        if find_spec("feast"):
            readers |= feast_readers(redis_url, directory)
        costs: dict[str, list[ReadCost]] = {name: [] for name in readers}
        for name, read in alternate(readers, rounds):
            costs[name].append(await measure_reads(read, aggregates, reads))
        return {name: median(of_rounds) for name, of_rounds in costs.items()}


async def benchmark_rankings(
    redis_url: str, directory: Path, seconds: float, rate: float, rounds: int
) -> dict[str, Cost]:
    users = random_users()
    policy = directory / "policy"
    policy.write_bytes(train(InMemoryDecisionLog([*decisions(users)]), name=score.POLICY))
    sqlite_url = f"sqlite:///{directory / 'features.db'}"
    servers = [replace(score.tips(users, policy, ""), name="no online store")]
    for name, url in (("SQLite", sqlite_url), ("Redis", redis_url)):
        replace_all(url, ((user.user_id, user.aggregates) for user in users), datetime.now(UTC) - timedelta(minutes=1))
        servers.append(replace(score.tips(users, policy, url), name=name))
    servers = [replace(server, is_correct=score.is_ranking) for server in servers]
    with ExitStack() as stack:
        async with session() as client:
            runnings = [stack.enter_context(start_server(server, directory)) for server in servers]
            for running in runnings:
                await wait_until_working(running, partial(must_answer, client, running))
                await wait_until_working(running, partial(get, client, running, "/health/ready"))
            costs = await measure_all(client, runnings, seconds, rate, rounds)
            for running in runnings:
                async with client.get(f"{running.address}/metrics") as response:
                    (failures,) = re.findall(
                        r"^tips_online_store_failures_total (\S+)", await response.text(), re.MULTILINE
                    )
                typer.echo(f"{running.server.name}: {float(failures):g} rankings lack the stored aggregates", err=True)
            return costs


def reads_table(costs: Mapping[str, ReadCost]) -> str:
    lines = ["| read of one user | CPU µs | p50 µs | p99 µs |", "|---|---|---|---|"]
    lines += [f"| {name} | {cost.cpu:.0f} | {cost.p50:.0f} | {cost.p99:.0f} |" for name, cost in costs.items()]
    return "\n".join(lines)


def main(
    users: Annotated[int, typer.Option(min=1, help="The number of users in the stores.")] = 20_000,
    reads: Annotated[int, typer.Option(min=2, help="The number of reads in each round.")] = 2_000,
    seconds: Annotated[float, typer.Option(min=1, help="The time for which rankings are measured in a round.")] = 10,
    rate: Annotated[float, typer.Option(min=0.1, help="Rankings per second.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds.")] = 3,
) -> None:
    """Measure a read of a user's aggregates, and a ranking that reads them."""
    online_redis.READ_SECONDS = 10  # also slow reads are measured, rather than given up
    with redis_database() as url, tempfile.TemporaryDirectory() as folder:
        read_costs = run(benchmark_reads(url, Path(folder), users, reads, rounds), uvloop.new_event_loop)
    with redis_database() as url, tempfile.TemporaryDirectory() as folder:
        costs = run(benchmark_rankings(url, Path(folder), seconds, rate, rounds), asyncio.new_event_loop)
    typer.echo(machine("redis", "feast", "uvloop"))
    typer.echo(f"\n{reads_table(read_costs)}\n\n{table(costs, 'SQLite', 'SQLite')}")


if __name__ == "__main__":
    typer.run(main)
