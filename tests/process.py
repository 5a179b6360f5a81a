"""Run a program of this project in its own process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

TIPS = str(Path(sys.executable).with_name("tips"))

START_TIMEOUT = 120
"""In seconds; only prevents a failing test from hanging."""


def environment(**settings: str) -> dict[str, str]:
    """Return an environment without the settings of this process, with these settings.

    The offline store is by default next to an SQLite database, so that tests do not share one in the current directory.
    """
    inherited = ("PATH", "HOME", "XDG_CACHE_HOME", "PYTHONPATH")
    _, is_sqlite, file = settings.get("DATABASE_URL", "").partition("sqlite+aiosqlite:///")
    offline = {"OFFLINE_STORE": f"{Path(file).parent}/offline"} if is_sqlite else {}
    return {name: os.environ[name] for name in inherited if name in os.environ} | offline | settings


def run(*command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its exit code and output."""
    return subprocess.run(
        command, env=environment(**settings), capture_output=True, text=True, timeout=300, check=False
    )


class Service:
    """A running service: its process, its address and a client."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=60)
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def wait_until_live(self) -> None:
        started = time.monotonic()
        while time.monotonic() < started + START_TIMEOUT:
            try:
                httpx.get(f"{self.url}/health/live", timeout=60).raise_for_status()
            except httpx.TransportError:
                assert self.process.poll() is None, self.complete_output()
                time.sleep(0.01)
            else:
                return
        raise AssertionError("the service did not answer")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log lines until now."""
        return [json.loads(line) for line in [*self._output]]

    def stop(self) -> tuple[int, list[dict[str, Any]]]:
        """Send SIGTERM; return the exit code and the log lines."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=300)
        self.complete_output()
        return self.process.returncode, self.log

    def complete_output(self) -> str:
        """Wait until the process has closed its output, and return it."""
        self._reader.join(timeout=60)
        return "".join(self._output)

    def _read_output(self) -> None:
        assert self.process.stdout
        self._output.extend(self.process.stdout)  # appends each line when it arrives


def free_port() -> int:
    """Return a port that is free on every address of this machine."""
    with socket.socket() as unused:
        unused.bind(("", 0))
        return int(unused.getsockname()[1])


@contextmanager
def service(*command: str, address: str = "", **settings: str) -> Iterator[Service]:
    """Run a service, by default `tips serve`, until the block ends.

    `address`: HOST:PORT to listen on; by default a free port of 127.0.0.1.
    """
    host, _, port = address.partition(":") if address else ("127.0.0.1", "", str(free_port()))
    command = command or (TIPS, "serve")
    with subprocess.Popen(
        [*command, "--port", port, *(["--host", host] if address else [])],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        running = Service(process, f"http://{host}:{port}")
        try:
            with running.http:
                running.wait_until_live()
                yield running
        finally:
            process.kill()
            running.complete_output()
