"""Servers in processes of their own: started, waited for, stopped, and the CPU time that they spend."""

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

LONGEST_START = 120.0
"""Seconds until a server must answer."""

REPOSITORY = Path(__file__).parents[2]

INHERITED = ("PATH", "HOME", "PYTHONDONTWRITEBYTECODE")
"""The variables that servers get from this process: no one's proxies, and no one's settings."""


class BenchmarkFailed(Exception):
    """A server does not start, or does not answer as it should."""


@dataclass(frozen=True)
class Server:
    """A program that is told `--host` and `--port`, where it is asked, and what (JSON, in turns); `right` answers."""

    name: str
    command: Sequence[str]
    path: str
    bodies: Sequence[bytes] = ()
    right: Callable[[bytes], bool] = bool
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
        """What the process and all processes below it have spent so far, user and system."""
        return sum(_ticks(self.process.pid)) / os.sysconf("SC_CLK_TCK")


def _ticks(root: int) -> Iterator[int]:
    """Yield the CPU time of a process and of each below it, with ended ones (proc_pid_stat(5), fields 14 to 17)."""
    spent, below = {}, dict[int, list[int]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            after_name = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            spent[pid] = sum(map(int, after_name[11:15]))
            below.setdefault(int(after_name[1]), []).append(pid)
    family = [root]
    for pid in family:
        family += below.get(pid, [])
        yield spent.get(pid, 0)


def uvicorn(app: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, *options]


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


async def until_it_works(running: Running, attempt: Callable[[], Awaitable[object]]) -> None:
    """Try again until the attempt no longer raises BenchmarkFailed; raise it if that takes too long."""
    deadline = time.monotonic() + LONGEST_START
    while True:
        try:
            await attempt()
            return
        except BenchmarkFailed as failure:
            if time.monotonic() > deadline or running.process.poll() is not None:
                log = running.log.read_text(errors="replace").splitlines()[-5:]
                raise BenchmarkFailed("\n".join([f"It does not start. {failure}", *log])) from None
        await asyncio.sleep(0.2)


async def get(client: aiohttp.ClientSession, running: Running, path: str) -> None:
    """Raise BenchmarkFailed unless the server answers with 200 there."""
    try:
        async with client.get(running.address + path) as response:
            if response.status != 200:
                raise BenchmarkFailed(f"{running.server.name} answered {response.status} at {path}")
    except aiohttp.ClientError as error:
        raise BenchmarkFailed(f"{running.server.name}: {type(error).__name__} {error}") from error


def run(benchmark: Coroutine[Any, Any, T], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a benchmark to its end, or end the program with the sentence that says what failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was begun is cleared away then, too
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(benchmark)
    except BenchmarkFailed as failure:
        sys.exit(str(failure))
