"""Spark computes the same files as this machine alone, to the last bit."""

import math
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyspark
import pytest
from pyspark.sql import SparkSession

from ml.cli.stores import training_data
from ml.features.offline_store import OfflineStore
from ml.pipelines.aggregates import AggregateEngine, CountedTips, write_decision_aggregates, write_snapshots
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.spark import SparkEngine, SparkUnavailable, spark_session
from tests.offline import write_decisions
from tests.pipelines.logs import ranked_log_of
from tests.pipelines.offline_tips import FIRST_DAY, random_tips, write_tips


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    """A cluster of two executors, each a process of its own, and the processes in which these run Python."""
    with spark_session("local-cluster[2,1,1024]") as started:
        yield started
    # The executors' folders, which a cluster of this kind makes within the installation.
    shutil.rmtree(Path(pyspark.__path__[0]) / "work", ignore_errors=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_job_that_fails_is_one_sentence(tmp_path: Path) -> None:
    offline = OfflineStore.open(str(tmp_path))
    write_tips(offline, random_tips(1))
    shutil.rmtree(tmp_path / "reactions")
    counted = CountedTips(timedelta(hours=24), seen_only=True)
    message = r"^Spark at local\[1\] failed \(PythonException\)"
    with pytest.raises(SparkUnavailable, match=message), spark_session("local[1]") as started:
        write_snapshots(offline, counted, [FIRST_DAY], engine=SparkEngine(started))


def test_aggregates_are_computed_by_several_processes(session: SparkSession, tmp_path: Path) -> None:
    def write(name: str, engine: AggregateEngine | None) -> dict[str, bytes]:
        offline = OfflineStore.open(str(tmp_path / name))
        write_tips(offline, random_tips(32, per_day=20))
        counted = CountedTips(timedelta(hours=24), seen_only=True)
        # More days than the driver holds at a time.
        write_decision_aggregates(offline, counted, engine=engine)
        write_snapshots(offline, counted, [FIRST_DAY + 3, FIRST_DAY + 31], engine=engine)
        offline.commit()
        return files(tmp_path / name)

    expected = write("alone", None)
    assert write("spark", SparkEngine(session)) == expected
    assert len([name for name in expected if name.startswith("aggregates/")]) == 32
    assert session.sparkContext.master == "local-cluster[2,1,1024]"
    processes = session.range(8, numPartitions=8).mapInArrow(process_ids, "process bigint").toArrow()
    assert len({*processes["process"].to_pylist()} - {os.getpid()}) > 1


def process_ids(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"process": [os.getppid()]})
    for _ in batches:
        pass


def test_the_command_computes_statistics_of_days_on_spark(
    session: SparkSession,  # noqa: ARG001 - the command uses the one that runs
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decisions = ranked_log_of(400)

    def write(name: str) -> dict[str, bytes]:
        offline = OfflineStore.open(str(tmp_path / name))
        write_decisions(offline, decisions)
        data = training_data(OfflineDecisionLog(offline, seen_only=False), -math.inf, math.inf)
        assert data.decisions == len(decisions)
        return files(tmp_path / name / "stats")

    expected = write("alone")
    assert len(expected) > 1
    monkeypatch.setenv("SPARK_MASTER", "local-cluster[2,1,1024]")
    monkeypatch.delattr("ml.pipelines.cached_statistics.day_statistics")  # of this process, not of the executors
    assert write("spark") == expected
