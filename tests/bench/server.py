"""Servers in separate processes: starting, waiting, stopping, and their CPU time."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")

KEY = "sk-benchmark"

START_TIMEOUT = 120.0
"""Seconds."""

REPOSITORY = Path(__file__).parents[2]

INHERITED = ("PATH", "HOME", "PYTHONDONTWRITEBYTECODE")
"""The variables that servers inherit from this process: neither proxies nor settings."""


class BenchmarkFailed(Exception):
    """A server does not start, or its answer is not correct."""


@dataclass(frozen=True)
class Server:
    """A program that accepts `--host` and `--port`, and the requests to it.

    `bodies`: JSON, sent in alternation. `is_correct`: whether the body of an answer with status 200 is correct.
    """

    name: str
    command: Sequence[str]
    path: str
    bodies: Sequence[bytes] = ()
    is_correct: Callable[[bytes], bool] = bool
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A running server."""

    server: Server
    process: subprocess.Popen[bytes]
    log: Path
    address: str

    @property
    def cpu_seconds(self) -> float:
        """The user and system time of the process and all its descendants until now."""
        return sum(_ticks(pid) for pid in descendants(self.process.pid)) / os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> list[int]:
    """Return a process and its descendants, including ended ones whose parent has not waited for them yet."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _ticks(pid: int) -> int:
    """Return the CPU time of a process and its ended children (proc_pid_stat(5), fields 14 to 17)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return 0


def uvicorn(app: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, *options]


def service(app: str) -> list[str]:
    """Return the command that runs an application of this project on the server of `tips serve`."""
    return uvicorn(app, "--http", "ml.platform.http_protocol:LimitedHttpProtocol", "--ws", "none")


@contextmanager
def start_server(server: Server, directory: Path) -> Iterator[Running]:
    """Start a server on a free port, and stop it when the context ends."""
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


async def wait_until_working(running: Running, attempt: Callable[[], Awaitable[object]]) -> None:
    """Repeat the attempt until it does not raise BenchmarkFailed; raise it after `START_TIMEOUT` seconds."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            await attempt()
            return
        except BenchmarkFailed as failure:
            if time.monotonic() > deadline or running.process.poll() is not None:
                log = running.log.read_text(errors="replace").splitlines()[-5:]
                raise BenchmarkFailed("\n".join([f"The server does not start. {failure}", *log])) from None
        await asyncio.sleep(0.2)


async def get(client: aiohttp.ClientSession, running: Running, path: str) -> None:
    """Raise BenchmarkFailed unless the server answers a path with 200."""
    try:
        async with client.get(running.address + path) as response:
            if response.status != 200:
                raise BenchmarkFailed(f"{running.server.name} answered {response.status} at {path}")
    except aiohttp.ClientError as error:
        raise BenchmarkFailed(f"{running.server.name}: {type(error).__name__} {error}") from error


def run(benchmark: Coroutine[Any, Any, T], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a benchmark, or end the program with the message of its failure."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the contexts are closed then, too
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(benchmark)
    except BenchmarkFailed as failure:
        sys.exit(str(failure))
