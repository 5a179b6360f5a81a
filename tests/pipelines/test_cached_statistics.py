"""The statistics of days in the offline store: equal bytes however they are computed, and only changed days anew."""

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from ml.experiments.decisions import DAY_SECONDS, InMemoryDecisionLog, LoggedDecision
from ml.features.offline_store import OfflineStore
from ml.pipelines import cached_statistics as cache
from ml.pipelines.cached_statistics import cached_statistics
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.pipelines.training import train, train_with, training_data
from tests.conftest import eventually
from tests.offline import rows_of, write_decisions
from tests.pipelines.logs import log_of, ranked_log_of, with_digests

N_DAYS = 6
LOG = [
    replace(each, at=day * DAY_SECONDS + number * 60.0, id=f"{day}-{each.id}", user_id=f"u-{number % 9}")
    for day in range(N_DAYS)
    for number, each in enumerate([*log_of(20, seed=day), *with_digests(ranked_log_of(20, seed=day), "a")])
]


def store_of(folder: Path, log: Sequence[LoggedDecision] = LOG) -> OfflineStore:
    store = OfflineStore.open(str(folder))
    write_decisions(store, log)
    return store


def trained(store: OfflineStore, *, rows: int = 4_096, processes: int = 1, before: float = math.inf) -> bytes:
    log = OfflineDecisionLog(store, seen_only=False, chunk_rows=rows)
    return train_with(training_data(log, before=before, days_of=partial(cached_statistics, log, processes=processes)))


def files(folder: Path) -> dict[str, float]:
    """Return the time at which the statistics of each day were written."""
    return {file.name.split(".")[0]: file.stat().st_mtime_ns for file in folder.glob("stats/*/day=*.npz")}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("stats/*/*")}


@pytest.fixture
def several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several processes for few rows too."""
    monkeypatch.setattr(cache, "MIN_ROWS_PER_PROCESS", 1)


@pytest.mark.usefixtures("several_processes")
def test_chunks_and_processes_do_not_change_the_bytes(tmp_path: Path) -> None:
    expected = train(InMemoryDecisionLog(LOG))
    assert train(InMemoryDecisionLog(LOG[::-1], chunk_size=7)) == expected
    for rows, processes in ((1, 1), (7, 2), (4_096, 1)):
        folder = tmp_path / f"{rows}"
        assert trained(store_of(folder), rows=rows, processes=processes) == expected
        assert contents(folder) == contents(tmp_path / "1")
        assert trained(OfflineStore.open(str(folder)), rows=rows) == expected
    assert len(contents(tmp_path / "1")) == N_DAYS


def test_a_late_reaction_changes_only_the_statistics_of_its_day(tmp_path: Path) -> None:
    trained(store_of(tmp_path))
    before = files(tmp_path)
    later = [replace(each, reward=0.75) if index == 50 else each for index, each in enumerate(LOG)]
    assert trained(store_of(tmp_path, later)) == train(InMemoryDecisionLog(later))
    after = files(tmp_path)
    assert [day for day in after if after[day] != before[day]] == ["day=1970-01-02"]
    assert len(contents(tmp_path)) == N_DAYS


def test_what_a_forgotten_user_left_is_in_no_statistics(tmp_path: Path) -> None:
    trained(store_of(tmp_path))
    rest = [each for each in LOG if each.user_id != "u-3" and each.at >= DAY_SECONDS]
    assert trained(store_of(tmp_path, rest)) == train(InMemoryDecisionLog(rest))
    trained(store_of(tmp_path / "other", rest))
    assert contents(tmp_path) == contents(tmp_path / "other")


def test_new_aggregates_change_only_the_statistics_of_their_day(tmp_path: Path) -> None:
    first = trained(store_of(tmp_path))
    before = files(tmp_path)
    store = store_of(tmp_path)
    shown = [row for each in LOG if each.day == 1 for row in rows_of(each) if row["shown"]]
    columns = [[row["tip_id"] for row in shown], [row["created_at"] for row in shown], [3] * len(shown)]
    schema = pa.schema([("tip_id", pa.string()), ("created_at", pa.timestamp("us", "UTC")), ("tips_7d", pa.int64())])
    store.replace("aggregates", 1, "first", schema, [pa.record_batch(columns, schema)])
    store.commit()
    with_aggregates = [
        replace(each, aggregates=each.aggregates or {"tips_7d": 3.0}) if each.day == 1 else each for each in LOG
    ]
    assert trained(store) == train(InMemoryDecisionLog(with_aggregates)) != first
    after = files(tmp_path)
    assert [day for day in after if after[day] != before[day]] == ["day=1970-01-02"]


def test_part_of_a_day_is_computed_but_not_stored(tmp_path: Path) -> None:
    before = 3 * DAY_SECONDS + 600
    expected = train(InMemoryDecisionLog([each for each in LOG if each.at < before]))
    assert trained(store_of(tmp_path), before=before) == expected
    assert sorted(files(tmp_path)) == ["day=1970-01-01", "day=1970-01-02", "day=1970-01-03"]


def test_a_new_digest_of_a_version_leaves_out_earlier_days(tmp_path: Path) -> None:
    trained(store_of(tmp_path))
    changed = with_digests([each for each in LOG if each.at >= 4 * DAY_SECONDS], "b")
    log = [*LOG[: -len(changed)], *changed]
    assert trained(store_of(tmp_path, log)) == train(InMemoryDecisionLog(log))
    assert len(contents(tmp_path)) == N_DAYS


@pytest.mark.parametrize("damage", [b"", b"PK\x05\x06", "half", "other day", "one bit"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes | str) -> None:
    expected = trained(store_of(tmp_path))
    first, second, *_ = sorted(tmp_path.glob("stats/*/*.npz"))
    content = first.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {"half": content[: len(content) // 2], "other day": second.read_bytes(), "one bit": bytes(flipped)}
    first.write_bytes(damage if isinstance(damage, bytes) else damaged[damage])
    assert trained(OfflineStore.open(str(tmp_path))) == expected
    assert first.read_bytes() == content


_TRAIN = """
import sys
from pathlib import Path
from ml.features.offline_store import OfflineStore
from tests.pipelines import test_cached_statistics as tested

if __name__ == "__main__":
    tested.cache.MIN_ROWS_PER_PROCESS = 1
    print("started", flush=True)
    tested.trained(OfflineStore.open(sys.argv[1]), processes=int(sys.argv[2]))
"""


def group_exists(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_is_continued_with_the_days_that_it_has_finished(tmp_path: Path, processes: int) -> None:
    store_of(tmp_path / "killed")
    script = tmp_path / "script.py"
    script.write_text(_TRAIN)
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "killed"), str(processes)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"started\n"
        while process.poll() is None and not files(tmp_path / "killed"):
            time.sleep(0.001)
        time.sleep(random.Random(processes).random() * 0.02)
        process.kill()
    assert eventually(lambda: not group_exists(process.pid))  # its workers have ended too
    finished = files(tmp_path / "killed")
    assert finished
    expected = trained(store_of(tmp_path / "never killed"))
    assert trained(OfflineStore.open(str(tmp_path / "killed"))) == expected
    after = files(tmp_path / "killed")
    assert {day: after[day] for day in finished} == finished
    visible = {name: content for name, content in contents(tmp_path / "killed").items() if not name.startswith(".")}
    assert visible == contents(tmp_path / "never killed")
