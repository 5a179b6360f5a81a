"""Aggregates of all decisions as of the start of their day: this project's, pandas, and DuckDB's ASOF join.

    python -m tests.bench.aggregates [--rows 1000000] [--pandas-python PATH] [--folder FOLDER] [--only NAME]

prints the table of docs/benchmarks.md. A log of 90 days is written to an offline store; then each contender, in a
process of its own, reads its Parquet files and writes its results as Parquet; how many of them differ from numpy's in
any bit is counted.
DuckDB has a memory limit, a folder to spill to, and does not preserve the order of rows, as its guide to workloads that
are larger than memory recommends; for pandas see `pandas_aggregates`.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa

from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY, Int64s
from ml.pipelines.aggregates import CountedTips, write_decision_aggregates
from ml.store.reactions import REACTIONS
from tests.bench.figures import machine
from tests.pipelines.aggregates_in_sql import decision_aggregates
from tests.pipelines.offline_tips import FIRST_DAY, SCHEMAS

DAYS = 90
USERS_PER_TIP = 0.02
COUNTED = CountedTips(timedelta(hours=24), seen_only=False)
KINDS = pa.array(sorted(REACTIONS))
REWARD_OF = np.array([REACTIONS[kind] for kind in sorted(REACTIONS)])


def write_log(offline: OfflineStore, rows: int) -> None:
    """Write a log: half of the tips with a reaction, a fifth of these with a second one; a third of them days late."""
    for index in range(DAYS):
        rng = np.random.default_rng(index)
        n, start = rows * (index + 1) // DAYS - rows * index // DAYS, (FIRST_DAY + index) * DAY
        created_at = start + np.sort(rng.integers(0, DAY, n))
        tip_ids = _uuids(rng, n)
        users = (rows * USERS_PER_TIP * rng.random(n) ** 2).astype(np.int64)
        user_ids = pa.array([f"user-{user:032d}" for user in users.tolist()])
        missing = pa.nulls(n)
        columns = [tip_ids, user_ids, _times(created_at), pa.array(np.ones(n, bool)), missing.cast(pa.string())]
        _write(
            offline, "tip_scores", index, [*columns, missing.cast(SCHEMAS["tip_scores"].field("aggregates_at").type)]
        )
        reacted = np.sort(np.concatenate([np.flatnonzero(rng.random(n) < share) for share in (0.5, 0.1)]))
        delay = rng.exponential(np.where(rng.random(reacted.size) < 1 / 3, 2 * DAY, DAY / 24)).astype(np.int64)
        at, kinds = created_at[reacted] + delay, rng.integers(0, len(KINDS), reacted.size)
        received_at = at + rng.integers(0, DAY // 24, reacted.size)
        columns = [tip_ids.take(pa.array(reacted)), _times(at), KINDS.take(pa.array(kinds))]
        _write(offline, "reactions", index, [*columns, pa.array(REWARD_OF[kinds]), _times(received_at)])
    offline.commit()


def run_numpy(folder: Path, result: Path) -> None:
    """Write the table `aggregates` of the store, and move it to `result`, a folder."""
    offline = OfflineStore.open(str(folder))
    write_decision_aggregates(offline, COUNTED)
    offline.commit()
    for day in [*offline.days("aggregates")]:
        offline.remove("aggregates", day)
    (folder / "aggregates").rename(result)
    offline.commit()


def run_duckdb(folder: Path, result: Path, memory: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{memory}'")
        connection.execute(f"SET temp_directory = '{result}.spilled'")
        connection.execute("SET preserve_insertion_order = false")
        query = decision_aggregates(folder, DAY, seen_only=False)
        connection.execute(f"COPY ({query}) TO '{result}' (FORMAT parquet)")


@dataclass(frozen=True)
class Cost:
    """Seconds, CPU seconds, and the peak of the resident memory in MB."""

    wall: float
    cpu: float
    memory: float


def measured(*command: str) -> Cost:
    """Return what a command costs."""
    started = time.monotonic()
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    _, status, used = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1_024)


def differing(one: str, other: str) -> tuple[int, int]:
    """Return how many results differ in two sets of Parquet files, and how many there are in the first."""
    equal = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in ("reward_rate_30d", "tips_7d"))
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '4GB'")
        found = connection.execute(
            f"SELECT count(*) - count(*) FILTER ({equal}), count(a.tip_id)"
            f" FROM read_parquet('{one}') AS a FULL JOIN read_parquet('{other}') AS b USING (tip_id)"
        ).fetchone()
    assert found
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pandas-python", default=sys.executable, help="the Python of an environment with pandas")
    parser.add_argument("--duckdb-memory", default="1GB")
    parser.add_argument("--folder", type=Path, help="where the log is written, or is already; default: temporary")
    parser.add_argument("--only", help="the contenders to run, separated by commas")
    parser.add_argument("--contender", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        log, result = arguments.contender
        if arguments.only == "numpy":
            run_numpy(log, result)
        else:
            run_duckdb(log, result, arguments.duckdb_memory)
        return
    with TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "offline"
        offline = OfflineStore.open(str(folder))
        if not offline.exists:
            write_log(offline, arguments.rows)
        compare(folder, Path(temporary), arguments)


def compare(folder: Path, results: Path, arguments: argparse.Namespace) -> None:
    itself = sys.executable, "-m", "tests.bench.aggregates", "--duckdb-memory", arguments.duckdb_memory
    pandas_program = str(Path(__file__).with_name("pandas_aggregates.py"))
    commands = {
        "numpy": (*itself, "--only", "numpy", "--contender"),
        "duckdb": (*itself, "--only", "duckdb", "--contender"),
        "pandas": (arguments.pandas_python, pandas_program),
    }
    for unwanted in commands.keys() - set((arguments.only or ",".join(commands)).split(",")):
        del commands[unwanted]
    rows = sum(file.rows for file in OfflineStore.open(str(folder)).days("tip_scores").values())
    print(f"{rows:,} tips of {DAYS} days. {machine('numpy', 'pyarrow', 'duckdb')}\n")
    print("| | s | CPU s | peak MB | differing results |\n|---|---|---|---|---|")
    for name, command in commands.items():
        result = results / name
        cost = measured(*command, str(folder), str(result))
        files = f"{result}/*/*.parquet" if result.is_dir() else str(result)
        if name == "numpy":
            first = files
        differences, n = differing(first, files)
        print(
            f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.memory:,.0f} | {differences} of {n:,} |", flush=True
        )
        if name != "numpy":
            result.unlink()


def _write(offline: OfflineStore, table: str, index: int, columns: list[pa.Array]) -> None:
    batch = pa.record_batch(columns, schema=SCHEMAS[table])
    offline.replace(table, FIRST_DAY + index, "bench", SCHEMAS[table], [batch])


def _times(values: Int64s) -> pa.Array:
    return pa.array(values).cast(SCHEMAS["tip_scores"].field("created_at").type)


def _uuids(rng: np.random.Generator, n: int) -> pa.Array:
    digits = np.frombuffer(rng.bytes(16 * n).hex().encode(), "S1").reshape(n, 32)
    dashes = np.full((n, 1), b"-", "S1")
    parts = [digits[:, :8], digits[:, 8:12], digits[:, 12:16], digits[:, 16:20], digits[:, 20:]]
    joined = [part for each in parts for part in (dashes, each)][1:]
    return pa.array(np.concatenate(joined, axis=1).reshape(-1).view("S36")).cast(pa.string())


if __name__ == "__main__":
    main()
