"""What writing a tip costs beside the model's own work, and what the usual ways to reach a model cost.

    python -m tests.bench.generate [--seconds 20] [--rate 30] [--rounds 3] [--proxy PATH/TO/litellm]

Everything runs here, over the loopback: one OpenAI-compatible upstream that answers at once, and one process with one
worker for each server that asks it:

- tips: `POST /generate` as deployed, with keys, validation, prompts, retries, checks, logs (to a file) and metrics;
- (a) a FastAPI handler that calls `litellm.acompletion`; all ratios are relative to it;
- (b) a FastAPI handler that calls the OpenAI SDK;
- (c) LiteLLM's own proxy with a key, only with `--proxy`: its requirements conflict with ours (rich), so it needs an
  environment of its own (`pip install 'litellm[proxy]' httptools`, of the version that pyproject.toml pins);
- the floor: a FastAPI handler that calls nothing.

All send the upstream the same messages. Requests are sent on schedule, whatever becomes of earlier ones (open loop),
and an answer's latency counts from when its request was due, the timer's own delay (below 1 ms) included. The CPU time
is what the server's process spent, user and system, from the first measured request to the last answer, over the number
of requests; it is read from Linux's /proc. The servers take turns for several rounds, each turn after a warm-up that
does not count, and what is printed is the median of the rounds. An answer that is not the tip ends the run.
"""

import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from ml.features.context import assemble
from ml.serving.prompts import PROMPTS
from tests.bench.peers import TIP

SIGNALS = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}
PROMPT_VERSION = "v2-mentor"
KEY = "sk-benchmark"
REFERENCE = "(a) FastAPI + LiteLLM SDK"

WARM_UP = 50
"""Requests."""

LONGEST_START = 120.0
"""Seconds until a server must answer."""

REPOSITORY = Path(__file__).parents[2]

LITELLM = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}

INHERITED = ("PATH", "HOME", "PYTHONDONTWRITEBYTECODE")
"""The variables that servers get from this process: no one's proxies, and no one's settings."""


class BenchmarkFailed(Exception):
    """A server does not start, or does not answer as it should."""


@dataclass(frozen=True)
class Server:
    """A program that is told `--host` and `--port`, and the request that it is asked."""

    name: str
    command: Sequence[str]
    path: str
    body: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A server that has been started."""

    server: Server
    process: subprocess.Popen[bytes]
    log: Path
    address: str

    @property
    def cpu_seconds(self) -> float:
        """What the process has spent so far, user and system (proc_pid_stat(5), fields 14 and 15)."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What one request costs: CPU time and latency, in ms."""

    cpu: float
    p50: float
    p99: float


def chat() -> dict[str, Any]:
    """Return the request that serving makes of the signals, for servers that are given it ready."""
    prompt = PROMPTS[PROMPT_VERSION]
    return {"model": "tiny", "messages": prompt.render(assemble(SIGNALS)), **asdict(prompt.parameters)}


def uvicorn(app: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, *options]


def upstream() -> Server:
    options = ("--no-access-log", "--lifespan", "off", "--timeout-keep-alive", "600")
    return Server("upstream", uvicorn("tests.bench.peers:upstream", *options), "/v1/chat/completions", chat())


def peer(name: str, factory: str, environment: Mapping[str, str]) -> Server:
    command = uvicorn(f"tests.bench.peers:{factory}", "--factory", "--no-access-log")
    return Server(name, command, "/generate", chat(), environment)


def servers(model: str) -> list[Server]:
    """Return what is measured; all but the floor ask the `model` at that address."""
    sdk = {"OPENAI_BASE_URL": model, "OPENAI_API_KEY": "k"}
    ours = {"TIP_MODEL": "openai/tiny", "TIP_MODEL_API_BASE": model, "OPENAI_API_KEY": "k", "API_KEYS": KEY}
    request = {"signals": SIGNALS, "prompt_version": PROMPT_VERSION}
    return [
        peer("floor: FastAPI alone", "floor", {}),
        peer("(b) FastAPI + OpenAI SDK", "openai_sdk", sdk),
        peer(REFERENCE, "litellm_sdk", sdk | LITELLM),
        Server("tips", uvicorn("ml.serving.main:app"), "/generate", request, ours),
    ]


def litellm_proxy(executable: Path, model: str, directory: Path) -> Server:
    """Return LiteLLM's proxy, set up as its documentation advises for production, without a database."""
    parameters = {"model": "openai/tiny", "api_base": model, "api_key": "k"}
    config = {
        "model_list": [{"model_name": "tiny", "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
    }
    path = directory / "proxy.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    environment = LITELLM | {"LITELLM_LOG": "ERROR"}
    return Server(
        "(c) LiteLLM proxy", [str(executable), "--config", str(path)], "/v1/chat/completions", chat(), environment
    )


@contextmanager
def started(server: Server, directory: Path) -> Iterator[Running]:
    """Run a server on a free port until the context ends."""
    port = free_port()
    log = directory / f"{port}.log"
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*server.command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=REPOSITORY,
            env=environment | dict(server.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield Running(server, process, log, f"http://127.0.0.1:{port}")
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


async def ready(client: aiohttp.ClientSession, running: Running) -> None:
    """Wait until the server answers with the tip."""
    deadline = time.monotonic() + LONGEST_START
    while True:
        try:
            return await ask(client, running)
        except BenchmarkFailed as failure:
            if time.monotonic() > deadline or running.process.poll() is not None:
                log = running.log.read_text(errors="replace").splitlines()[-5:]
                raise BenchmarkFailed("\n".join([f"It does not start. {failure}", *log])) from None
        await asyncio.sleep(0.2)


async def ask(client: aiohttp.ClientSession, running: Running) -> None:
    """Send one request. Raises BenchmarkFailed unless the answer has the tip in it."""
    server = running.server
    try:
        async with client.post(running.address + server.path, json=server.body) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BenchmarkFailed(f"{server.name}: {type(error).__name__} {error}") from error
    if response.status != 200 or json.dumps(TIP).encode() not in answer:
        raise BenchmarkFailed(f"{server.name} answered {response.status}: {answer[:300].decode(errors='replace')}")


async def load(client: aiohttp.ClientSession, running: Running, count: int, rate: float) -> list[float]:
    """Send `count` requests, `rate` a second whatever becomes of them; return their latencies in ms.

    Raises BenchmarkFailed at the first answer that is not the tip.
    """
    loop = asyncio.get_running_loop()

    async def latency(due: float) -> float:
        await ask(client, running)
        return (loop.time() - due) * 1000

    start = loop.time()
    tasks = []
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                due = start + number / rate
                await asyncio.sleep(due - loop.time())
                tasks.append(group.create_task(latency(due)))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def measure(client: aiohttp.ClientSession, running: Running, seconds: float, rate: float) -> Cost:
    await load(client, running, WARM_UP, rate)
    count = max(2, round(seconds * rate))
    before = running.cpu_seconds
    latencies = await load(client, running, count, rate)
    cpu = running.cpu_seconds - before
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return Cost(cpu / count * 1000, percentiles[49], percentiles[98])


async def benchmark(seconds: float, rate: float, rounds: int, proxy: Path | None) -> dict[str, Cost]:
    """Start the servers, measure them in turns, stop them; return each one's median cost."""
    headers = {"Authorization": f"Bearer {KEY}"}
    # No limit, for the open loop; and idle connections are closed by this end first.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with aiohttp.ClientSession(connector=connector, headers=headers) as client:

            async def start(server: Server) -> Running:
                running = stack.enter_context(started(server, directory))
                await ready(client, running)
                return running

            model = f"{(await start(upstream())).address}/v1"
            measured = servers(model) + ([litellm_proxy(proxy, model, directory)] if proxy else [])
            runnings = [await start(server) for server in measured]
            costs: dict[str, list[Cost]] = {server.name: [] for server in measured}
            for number in range(rounds):
                for running in runnings:
                    typer.echo(f"round {number + 1} of {rounds}: {running.server.name}", err=True)
                    costs[running.server.name].append(await measure(client, running, seconds, rate))
    return {name: median(of_rounds) for name, of_rounds in costs.items()}


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*(asdict(cost).values() for cost in costs), strict=True)))


def table(costs: Mapping[str, Cost]) -> str:
    """Return the costs as a table in Markdown, the cheapest first."""
    reference = costs[REFERENCE].cpu
    lines = ["| server | CPU ms a request | ratio to (a) | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, cost in sorted(costs.items(), key=lambda item: item[1].cpu):
        ratio = f"{cost.cpu / reference:.2f}"
        lines.append(f"| {name} | {cost.cpu:.2f} | {ratio} | {cost.p50:.1f} | {cost.p99:.1f} |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the figures depend on: the machine, and the versions of what was measured."""
    versions = []
    for package in ("fastapi", "uvicorn", "uvloop", "httptools", "litellm", "openai"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}."
    )


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long each server is measured in each round.")] = 20,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="How often each server has its turn.")] = 3,
    proxy: Annotated[Path | None, typer.Option(exists=True, help="LiteLLM's `litellm`, to measure its proxy.")] = None,
) -> None:
    """Measure what one tip costs, in CPU time and in latency."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped then, too
    try:
        costs = asyncio.run(benchmark(seconds, rate, rounds, proxy.absolute() if proxy else None))
    except BenchmarkFailed as failure:
        sys.exit(str(failure))
    typer.echo(f"{rate:g} requests a second, {seconds:g} s a round, median of {rounds}. {machine()}\n\n{table(costs)}")
    if proxy is None:
        typer.echo("\n(c) LiteLLM's proxy was not measured: it is optional, see --proxy.")


if __name__ == "__main__":
    typer.run(main)
