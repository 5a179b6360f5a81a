"""Aggregates and statistics of days on the machines of a Spark cluster, by the functions that also run in one process.

Rows travel as Arrow batches (`mapInArrow`), so the numbers are equal to the last bit. Spark divides the days among its
executors, which read and write the offline store themselves: all of them must see it under the same address.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

import ml
from ml.experiments.decisions import NewestPrompts
from ml.features.definitions import AGGREGATES
from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY, Floats, Int64s, TipTimeline
from ml.pipelines.aggregates import (
    SNAPSHOT,
    CountedTips,
    days_before_decisions,
    days_before_snapshots,
    decision_aggregates,
    snapshots_of_users,
)
from ml.pipelines.cached_statistics import store_statistics
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.user_partitions import UserTips, read_day

TIPS_PER_PARTITION = 200_000
TASKS_PER_CORE = 4
STEP_SECONDS = 1.0
DAYS_AT_ONCE = 30
"""Days whose results are in the memory of the driver at a time."""

_DAY = pa.schema([("day", pa.int64())])
_DAY_AND_PATH = pa.schema([*_DAY, ("path", pa.string())])
_TIP = pa.schema(
    [
        ("user_id", pa.string()),
        ("position", pa.int64()),  # within the shown tips of its day
        ("created_at", pa.int64()),
        ("exposed_at", pa.int64()),
        ("changed_at", pa.list_(pa.int64())),
        ("change", pa.list_(pa.int64())),
    ]
)
_VALUES = [(name, pa.float64()) for name in AGGREGATES]
_DECISION = pa.schema([*_DAY, ("position", pa.int64()), *_VALUES])
_USER = pa.schema([*_DAY, ("user_id", pa.string()), *_VALUES])

Batches = Iterator[pa.RecordBatch]


class SparkUnavailable(Exception):
    """Spark cannot be started, or a job failed; the message is a sentence without the full stop."""


@contextmanager
def spark_session(master: str) -> Iterator[SparkSession]:
    """Start Spark, or connect to the cluster at `master`, until the block ends; other settings are Spark's own.

    Raises SparkUnavailable, also for what fails in the block.
    """
    builder = SparkSession.builder.master(master).appName("tips").config("spark.sql.session.timeZone", "UTC")
    if master.startswith("local"):
        # Executors are processes of this machine, which need neither its address in a network nor an installation.
        local = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executorEnv.PYTHONPATH": str(Path(ml.__path__[0]).parent),
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        for name, value in local.items():
            builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
        try:
            if master.startswith("local"):
                session.sparkContext.pythonExec = sys.executable
            yield session
        finally:
            session.stop()
    except (PySparkException, Py4JError) as error:
        raise SparkUnavailable(f"Spark at {master} failed ({type(error).__name__}); its log says why") from None


class SparkEngine:
    """Computes what `LocalEngine` computes, in partitions of users that the executors hold."""

    def __init__(self, session: SparkSession) -> None:
        self._session = session

    def of_decisions(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[Floats]:
        for some in _parts(days):

            def compute(batches: Batches, asked_days: Sequence[int] = some) -> Batches:
                table = pa.Table.from_batches(batches, _TIP)
                asked = np.isin(_integers(table["created_at"]) // DAY, asked_days)
                values = decision_aggregates(_user_tips(table), counted, asked)
                rows = table.filter(pa.array(asked))
                columns = [_integers(rows["created_at"]) // DAY, _integers(rows["position"]), *values.T]
                yield pa.record_batch([pa.array(column) for column in columns], schema=_DECISION)

            tips = self._tips_by_user(offline, counted, days_before_decisions(some))
            rows = _collect(tips.mapInArrow(compute, _spark_schema(_DECISION)), step)
            order = np.lexsort((_integers(rows["position"]), _integers(rows["day"])))
            values = np.column_stack([rows[name].to_numpy()[order] for name in AGGREGATES])
            ends = np.searchsorted(_integers(rows["day"])[order], some, side="right")
            yield from np.split(values, ends[:-1])

    def of_users(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[pa.Table]:
        for some in _parts(days):

            def compute(batches: Batches, asked_days: Sequence[int] = some) -> Batches:
                tips = _user_tips(pa.Table.from_batches(batches, _TIP))
                for day, users in snapshots_of_users(tips, counted, asked_days):
                    of_day = pa.array(np.full(users.num_rows, day))
                    columns = [of_day, users["user_id"], *(users[name] for name in AGGREGATES)]
                    yield from pa.Table.from_arrays(columns, schema=_USER).to_batches()

            tips = self._tips_by_user(offline, counted, days_before_snapshots(some))
            rows = _collect(tips.mapInArrow(compute, _spark_schema(_USER)), step)
            for day in some:
                users = rows.filter(pa.array(_integers(rows["day"]) == day))
                computed_at = pa.array(np.full(users.num_rows, (day + 1) * DAY)).cast(
                    SNAPSHOT.field("computed_at").type
                )
                columns = [users["user_id"], computed_at, *(users[name] for name in AGGREGATES)]
                yield pa.Table.from_arrays(columns, schema=SNAPSHOT)

    def store_statistics(self, log: OfflineDecisionLog, newest: NewestPrompts, paths: Mapping[int, str]) -> None:
        """Compute the statistics of days, and write each to its path within the store of the log."""

        def compute(batches: Batches) -> Batches:
            for batch in batches:
                for row in batch.to_pylist():
                    store_statistics(log, newest, row["day"], row["path"])
                yield batch.select(_DAY.names)

        rows = pa.table({"day": [*paths], "path": [*paths.values()]}, schema=_DAY_AND_PATH)
        self._divided(rows).mapInArrow(compute, _spark_schema(_DAY)).toArrow()

    def _tips_by_user(self, offline: OfflineStore, counted: CountedTips, days: Iterable[int]) -> DataFrame:
        """Return the tips of days, with all tips of a user in one partition."""

        def read(batches: Batches) -> Batches:
            for batch in batches:
                for day in batch["day"].to_pylist():
                    yield from _rows(read_day(offline, day, with_exposures=counted.seen_only)).to_batches()

        files = {day: file for day, file in offline.days("tip_scores").items() if day in days}
        partitions = 1 + sum(file.rows for file in files.values()) // TIPS_PER_PARTITION
        tips = self._divided(pa.table({"day": [*files]}, schema=_DAY)).mapInArrow(read, _spark_schema(_TIP))
        return tips.repartition(max(partitions, self._session.sparkContext.defaultParallelism), "user_id")

    def _divided(self, rows: pa.Table) -> DataFrame:
        """Return rows that are tasks, divided among the executors."""
        tasks = TASKS_PER_CORE * self._session.sparkContext.defaultParallelism
        return self._session.createDataFrame(rows).repartition(max(1, min(rows.num_rows, tasks)))


def _collect(rows: DataFrame, step: Callable[[], None]) -> pa.Table:
    """Compute rows, calling `step` in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(rows.toArrow)
        while not wait([result], STEP_SECONDS).done:
            step()
        return result.result()


def _rows(of_day: UserTips) -> pa.Table:
    """Return the tips of a day as rows."""
    tips = of_day.tips
    n = tips.user.size
    by_tip = np.argsort(tips.changed_tip, kind="stable")
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(tips.changed_tip, minlength=n))]).astype(np.int32))
    changes = [pa.ListArray.from_arrays(offsets, pa.array(each[by_tip])) for each in (tips.changed_at, tips.change)]
    integers = [pa.array(each) for each in (np.arange(n), tips.created_at, tips.exposed_at)]
    return pa.Table.from_arrays([of_day.user_ids.take(pa.array(tips.user)), *integers, *changes], schema=_TIP)


def _user_tips(rows: pa.Table) -> UserTips:
    """Return the tips of rows, in their order."""
    users = rows["user_id"].combine_chunks().dictionary_encode()
    changes = [rows[name].combine_chunks() for name in ("changed_at", "change")]
    timeline = TipTimeline(
        users.indices.to_numpy().astype(np.int64),
        _integers(rows["created_at"]),
        _integers(rows["exposed_at"]),
        np.repeat(np.arange(rows.num_rows), changes[0].value_lengths().to_numpy().astype(np.int64)),
        *(each.flatten().to_numpy() for each in changes),
    )
    return UserTips(users.dictionary, timeline)


def _parts(days: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(days), DAYS_AT_ONCE):
        yield days[start : start + DAYS_AT_ONCE]


def _integers(column: pa.ChunkedArray) -> Int64s:
    integers: Int64s = column.to_numpy()
    return integers


def _spark_schema(schema: pa.Schema) -> Any:
    return from_arrow_schema(schema)
