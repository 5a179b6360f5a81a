"""Training on the decision log of an offline store: time, CPU and memory, by the number of decisions and of days.

    python -m tests.bench.training [--rows 1000000] [--days 90] [--ranked 0.5] [--store DIR]

prints the table of docs/benchmarks.md: of a first run, of one without changes, and of one after a day has changed, each
in a process of its own, for a tenth of the decisions, for all, and for all of them in a third of the days. The store is
written to a temporary directory, or kept in DIR for the next run. `--ranked` is the share of decisions among three tips
(three rows), the others are among three prompt versions.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from ml.features.offline_store import OfflineStore, start_of_day
from ml.pipelines.cached_statistics import cached_statistics
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.training import train_with, training_data
from ml.store.export import SCHEMAS
from tests.bench.past_tips import ACTIVITIES, LANGUAGES, MOODS, VERSIONS, WEEKDAYS

FIRST_DAY = 20_454
"""The first of January 2026."""
_BATCH = 10_000
_TIPS = (
    "Take a short walk now, and look out of the window at the trees for minute number {}.",
    "Write down your {} tasks, and begin with the first.",
    "Breathe slowly {} times, and drink a glass of water.",
    "Put your phone away {} minutes before you go to sleep tonight.",
)


def write_day(url: str, day: int, n: int, ranked: float, source: str) -> None:
    """Write `n` decisions of a day, evenly over it; the source is also the seed."""
    store = OfflineStore.open(url)
    store.replace("tip_scores", day, source, SCHEMAS["tip_scores"], _batches(day, n, ranked, source))
    store.commit()


def _batches(day: int, n: int, ranked: float, source: str) -> Iterator[pa.RecordBatch]:
    rng, schema = random.Random(f"{day} {source}"), SCHEMAS["tip_scores"]
    for start in range(0, n, _BATCH):
        rows = []
        for number in range(start, min(start + _BATCH, n)):
            created_at = start_of_day(day) + timedelta(days=1) * (number / n)
            rows += _decision(rng, created_at, is_ranked=rng.random() < ranked)
        yield pa.RecordBatch.from_pylist(rows, schema)


def _decision(rng: random.Random, created_at: datetime, *, is_ranked: bool) -> list[dict[str, Any]]:
    mood, activity, language = rng.choice(MOODS), rng.choice(ACTIVITIES), rng.choice(LANGUAGES)
    signals = {
        "goal": "sleep better",
        "mood": mood,
        "energy": rng.randint(1, 10),
        "stress": rng.randint(1, 10),
        "sleep_hours": rng.randint(8, 18) / 2,
        "steps_today": rng.randint(0, 15_000),
        "activity": activity,
        "local_time": f"{created_at:%H:%M}",
        "weekday": WEEKDAYS[created_at.weekday()],
        "locale": language,
    }
    ids = sorted(str(UUID(int=rng.getrandbits(128))) for _ in range(3 if is_ranked else 1))
    shown, reward = rng.randrange(len(ids)), rng.choice((None, None, 0.0, 0.5, 1.0))
    of_decision: dict[str, Any] = {
        "user_id": f"u-{rng.randrange(100_000)}",
        "created_at": created_at,
        "policy": "uniform",
        "policy_version": "1",
        "options": json.dumps(dict.fromkeys(VERSIONS, 1 / 3)),
        "probability": 1 / 3,
        "fallback": False,
        "signals": json.dumps(signals),
        "segments": json.dumps([f"mood:{mood}", f"activity:{activity}", f"locale:{language}"]),
        "simulated": False,
        "seen": True,
        "decision_id": ids[0],
        "aggregates": json.dumps({"reward_rate_30d": rng.random(), "tips_7d": rng.randint(0, 40)}),
        "aggregates_at": created_at.replace(hour=0, minute=0, second=0, microsecond=0),
    }
    rows = []
    for index, tip_id in enumerate(ids):
        version = rng.choice([*VERSIONS])
        rows.append(
            of_decision
            | {
                "tip_id": tip_id,
                "prompt_version": version,
                "prompt_version_asked": version,
                "prompt_digest": VERSIONS[version],
                "tip": rng.choice(_TIPS).format(rng.randint(1, 1_000)),
                "shown": index == shown,
                "reward": reward if index == shown else None,
                "reward_in_window": reward if index == shown else None,
            }
            | ({"score_policy": "tips", "score_probability": 1 / 3, "candidates": json.dumps(ids)} if is_ranked else {})
        )
    return rows


def measure(url: str) -> None:
    """Train on a store and print, as JSON, the seconds, those of the CPU, and the peak memory in MB."""
    log = OfflineDecisionLog(OfflineStore.open(url), seen_only=False)
    start = time.perf_counter()
    data = training_data(log, days_of=partial(cached_statistics, log, processes=os.cpu_count() or 1))
    summed = time.perf_counter()
    cpu = sum(_cpu_seconds(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    memory = _peak_megabytes(resource.RUSAGE_SELF), _peak_megabytes(resource.RUSAGE_CHILDREN)
    train_with(data)
    trained = time.perf_counter()
    peak = _peak_megabytes(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "decisions": data.decisions,
                "seconds": summed - start,
                "cpu": cpu,
                "memory": memory[0],
                "worker": memory[1],
                "fit": trained - summed,
                "peak": peak,
            }
        )
    )


def _cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _peak_megabytes(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1_024


def report(url: str, run: str, days: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.training", "--measure", url], check=True, capture_output=True, text=True
    )
    found = json.loads(ended.stdout)
    n = found["decisions"]
    print(
        f"| {run} | {n:,} | {days} | {found['seconds']:.1f} s | {n / found['seconds']:,.0f} | "
        f"{1e6 * found['cpu'] / n:.0f} µs | {found['memory']:.0f} MB, {found['worker']:.0f} MB | {found['fit']:.1f} s, "
        f"{found['peak']:.0f} MB |",
        flush=True,
    )


def fill(url: str, rows: int, days: int, ranked: float) -> None:
    """Write the days that a store does not have."""
    OfflineStore.open(url).write("README", b"")  # creates the folder
    missing = [
        day for day in range(FIRST_DAY, FIRST_DAY + days) if day not in OfflineStore.open(url).days("tip_scores")
    ]
    for day in missing:
        write_day(url, day, rows // days, ranked, "first")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--ranked", type=float, default=0.5)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.store or Path(temporary)
        sizes = [(arguments.rows // 10, arguments.days), (arguments.rows, arguments.days // 3)]
        sizes.append((arguments.rows, arguments.days))
        print(
            "| run | decisions | days | time | decisions/s | CPU per decision | peak memory, of a worker | fit, peak |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for rows, days in sizes:
            url = str(folder / f"{rows}-{days}-{arguments.ranked}")
            fill(url, rows, days, arguments.ranked)
            for path in OfflineStore.open(url).paths("stats"):
                OfflineStore.open(url).delete(path)
            report(url, "first", days)
            report(url, "no change", days)
            write_day(url, FIRST_DAY + days // 2, rows // days, arguments.ranked, f"{datetime.now(UTC)}")
            report(url, "one day changed", days)


if __name__ == "__main__":
    main()
