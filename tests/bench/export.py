"""The CPU time and the memory of `tips export`, over past tips in SQLite and PostgreSQL: a first run, and a second one.

Run `python -m tests.bench.export`. Each run is a process of its own; PostgreSQL's own CPU time is not counted.
"""

import asyncio
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from ml.features.offline_store import OfflineStore
from ml.pipelines.export import ExportSummary, export
from tests.bench.figures import machine
from tests.bench.past_tips import Past, fill
from tests.databases import postgres


def measure(url: str, folder: str) -> tuple[ExportSummary, float, float, float]:
    """Export; return the summary, the seconds, the CPU seconds, and the maximum of memory in MB."""
    started, cpu = time.monotonic(), time.process_time()
    summary = export(url, OfflineStore.open(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return summary, time.monotonic() - started, time.process_time() - cpu, peak


def exports(url: str, directory: Path) -> Iterator[tuple[ExportSummary, float, float, float]]:
    """Yield the figures of two exports, each in a new process."""
    for _ in range(2):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield process.submit(measure, url, str(directory / "offline")).result()


def main(
    tips: Annotated[int, typer.Option(min=1, help="Stored tips.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1, help="Days that they are spread over.")] = 90,
) -> None:
    """Print a table of both databases."""
    print(f"{machine('pyarrow', 'adbc-driver-manager')} {tips:,} tips of {days:,} days\n")
    for name in ("SQLite", "PostgreSQL"):
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = f"sqlite+aiosqlite:///{directory}/tips.db"
            if name == "PostgreSQL":
                url = stack.enter_context(postgres()).url
            asyncio.run(fill(url, Past(tips, date(2026, 11, 30), 0.3, days)))
            for summary, seconds, cpu, peak in exports(url, directory):
                size = sum(file.stat().st_size for file in (directory / "offline").rglob("*.parquet")) / 1e6
                print(
                    f"{name:10}  {summary.written:4} days written  {seconds:6.1f} s  {cpu:6.1f} s of CPU  "
                    f"{peak:4.0f} MB at most  {size:4.0f} MB of files"
                )


if __name__ == "__main__":
    typer.run(main)
