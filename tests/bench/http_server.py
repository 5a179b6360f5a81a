"""The cost and the limits of HTTP servers: uvicorn with its protocols and with ours, granian and hypercorn.

    python -m tests.bench.http_server [--seconds 8] [--rate 200] [--rounds 3] [--peers PATH/TO/bin]

Each runs the same application, which reads the body and answers at once, with one process. The requests are those of
`tests.bench.score`; open_loop.py describes how they are sent and what is measured. Then each server is attacked:

- headers: one request with 60 MB of short headers; the peak of the memory that the server took for it;
- slow headers: one byte every half second; the time until the server closes the connection;
- idle: a connection on which nothing is sent; the same;
- connections: 1,000 idle ones; those that are still open after a second.

uvicorn's zttp protocol, granian and hypercorn are measured with `--peers`, an environment that has them (and FastAPI,
uvicorn, httptools and uvloop).
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from tests.bench.figures import machine
from tests.bench.open_loop import measure_all, must_answer, session, table
from tests.bench.score import score_requests
from tests.bench.server import Running, Server, descendants, run, start_server, wait_until_working
from tests.bench.users import random_users

APP = "tests.bench.peers:upstream"
PATH = "/v1/chat/completions"
REFERENCE = "uvicorn, httptools"
HEADERS_MB = 60
CONNECTIONS = 1_000
PATIENCE = 40.0
"""Seconds, after which a server counts as waiting without a deadline."""

HEAD = f"POST {PATH} HTTP/1.1\r\nhost: service\r\n".encode()


@dataclass(frozen=True)
class Limits:
    """The results of the attacks: memory in MB, times in seconds (None: no deadline), open connections."""

    headers_mb: float
    slow_headers: float | None
    idle: float | None
    connections: int


def servers(peers: Path | None) -> list[Server]:
    python = sys.executable

    def uvicorn(python: str, *options: str) -> list[str]:
        return [python, "-m", "uvicorn", APP, "--no-access-log", "--lifespan", "off", "--ws", "none", *options]

    commands = {
        REFERENCE: uvicorn(python, "--http", "httptools"),
        "**uvicorn, our limits**": uvicorn(python, "--http", "ml.platform.http_protocol:LimitedHttpProtocol"),
        "uvicorn, h11 with a limit of 64 KiB": uvicorn(
            python, "--http", "h11", "--h11-max-incomplete-event-size", "65536"
        ),
    }
    if peers:
        hypercorn = f"exec {peers}/hypercorn --worker-class uvloop --keep-alive 5 --read-timeout 10"
        commands |= {
            "uvicorn, zttp": uvicorn(f"{peers}/python", "--http", "zttp"),
            "granian": [
                f"{peers}/granian",
                *("--interface", "asginl", "--loop", "uvloop", "--http", "1", "--no-ws", "--no-log"),
                *("--http1-header-read-timeout", "10000", "--http1-buffer-size", "65536", APP),
            ],
            "hypercorn": ["sh", "-c", f'{hypercorn} --bind "$2:$4" {APP}', "hypercorn"],
        }
    bodies = score_requests(random_users())
    environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return [Server(name, command, PATH, bodies, environment=environment) for name, command in commands.items()]


def peak_memory(running: Running) -> float:
    """Return the greatest resident memory of the server's processes until now, in MB."""
    kilobytes = 0
    for pid in descendants(running.process.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/status").read_text()
            kilobytes += int(text.partition("VmHWM:")[2].split()[0])
    return kilobytes / 1024


async def connect(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(running.address)
    return await asyncio.open_connection(address.hostname, address.port)


async def send_headers(running: Running) -> None:
    """Send headers until they are `HEADERS_MB` or the server closes the connection."""
    _, writer = await connect(running)
    with suppress(ConnectionError, TimeoutError):
        writer.write(HEAD)
        for _ in range(HEADERS_MB):
            writer.write(b"a:b\r\n" * 200_000)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        await asyncio.sleep(1)
    writer.transport.abort()


async def seconds_until_closed(running: Running, start: bytes, repeated: bytes) -> float | None:
    """Return the time until the server closes a connection on which `repeated` is sent every half second."""
    reader, writer = await connect(running)
    started = time.monotonic()
    writer.write(start)
    closed = asyncio.ensure_future(reader.read())
    while not closed.done() and time.monotonic() < started + PATIENCE:
        await asyncio.wait({closed}, timeout=0.5)
        writer.write(repeated)
    writer.transport.abort()
    with suppress(ConnectionError):
        await closed
    seconds = time.monotonic() - started
    return seconds if seconds < PATIENCE else None


async def open_connections(running: Running) -> int:
    """Return how many of `CONNECTIONS` idle connections are open after a second."""
    connections = [await connect(running) for _ in range(CONNECTIONS)]
    await asyncio.sleep(1)
    count = sum(not reader.at_eof() and reader.exception() is None for reader, _ in connections)
    for _, writer in connections:
        writer.transport.abort()
    return count


async def attack(running: Running) -> Limits:
    before = peak_memory(running)
    await send_headers(running)
    headers_mb = peak_memory(running) - before
    slow_headers, idle = await asyncio.gather(
        seconds_until_closed(running, HEAD, b"x"), seconds_until_closed(running, b"", b"")
    )
    return Limits(headers_mb, slow_headers, idle, await open_connections(running))


def limits_table(limits: Sequence[tuple[str, Limits]]) -> str:
    def seconds(value: float | None) -> str:
        return "no deadline" if value is None else f"{value:.0f} s"

    lines = ["| server | 60 MB of headers | slow headers | idle | 1,000 connections |", "|---|---|---|---|---|"]
    for name, each in limits:
        cells = (f"{each.headers_mb:.0f} MB", seconds(each.slow_headers), seconds(each.idle), f"{each.connections:,}")
        lines.append(f"| {' | '.join((name, *cells))} |")
    return "\n".join(lines)


async def benchmark(seconds: float, rate: float, rounds: int, peers: Path | None) -> tuple[str, str]:
    """Measure all servers; return the table of costs and the table of limits."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with session() as client:
            runnings = []
            for server in servers(peers):
                running = stack.enter_context(start_server(server, directory))
                await wait_until_working(running, partial(must_answer, client, running))
                runnings.append(running)
            costs = await measure_all(client, runnings, seconds, rate, rounds)
        limits = [(running.server.name, await attack(running)) for running in runnings]
        return table(costs, REFERENCE, REFERENCE), limits_table(limits)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="The time for which each server is measured.")] = 8,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds.")] = 3,
    peers: Annotated[
        Path | None, typer.Option(exists=True, help="The `bin` directory of an environment with other servers.")
    ] = None,
) -> None:
    """Measure the CPU time per request of HTTP servers, and how they limit headers and connections."""
    costs, limits = run(benchmark(seconds, rate, rounds, peers.absolute() if peers else None))
    description = machine("uvicorn", "httptools", "h11", "uvloop")
    typer.echo(f"{rate:g} requests per second, {seconds:g} s per round, median of {rounds}. {description}")
    typer.echo(f"\n{costs}\n\n{limits}")


if __name__ == "__main__":
    typer.run(main)
