"""The time and the memory of `tips nightly` over past tips in SQLite: the first night, and the same one again.

    python -m tests.bench.nightly [--tips 10000000] [--database FILE]

The tips are those of 90 days, among three prompt versions, 30 % of them with a reaction. Memory is the sum over all
processes of the command, without pages that they share, read twice a second. `--database`: is filled if it does not
exist, and kept.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from tests.bench.figures import machine
from tests.bench.past_tips import Past, fill
from tests.process import TIPS, environment

LAST_DAY = date(2026, 11, 30)


def memory_of(process: int) -> int:
    """Return the memory of a process and of all that it has started, in bytes."""
    total = 0
    pending = [process]
    while pending:
        folder = Path(f"/proc/{pending.pop()}")
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            for thread in (folder / "task").iterdir():
                pending += map(int, (thread / "children").read_text().split())
        except (OSError, StopIteration):  # it has ended
            continue
    return total


def run_night(settings: dict[str, str]) -> tuple[str, float, float, int]:
    """Run the command; return its output, the seconds, the CPU seconds and the maximum of its memory in bytes."""
    started, before, peak = time.monotonic(), os.times(), 0
    command = [TIPS, "nightly", "--day", str(LAST_DAY)]
    with subprocess.Popen(command, env=environment(**settings), stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.5)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(process.returncode)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return output, time.monotonic() - started, cpu, peak


def main(
    tips: Annotated[int, typer.Option(min=1, help="Stored tips.")] = 1_000_000,
    database: Annotated[Path | None, typer.Option(help="An SQLite file.")] = None,
) -> None:
    """Print the table of the steps, the time and the memory of both runs."""
    print(f"{machine('pyarrow', 'numpy')} {tips:,} tips\n")
    with tempfile.TemporaryDirectory() as folder:
        file = database or Path(folder, "tips.db")
        url = f"sqlite+aiosqlite:///{file}"
        if not file.exists():
            asyncio.run(fill(url, Past(tips, LAST_DAY, 0.3)))
        settings = {
            "DATABASE_URL": url,
            "OFFLINE_STORE": f"{folder}/offline",
            "ONLINE_STORE_URL": f"sqlite:///{folder}/features.db",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "COLUMNS": "120",
        }
        for name in ("first", "again"):
            output, seconds, cpu, peak = run_night(settings)
            print(f"{output}{name}: {seconds:,.0f} s, {cpu:,.0f} s of CPU, {peak / 1e6:,.0f} MB at most\n", flush=True)


if __name__ == "__main__":
    typer.run(main)
