"""The offline store: what a reader sees, and which bytes are written."""

import hashlib
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.features.offline_store import MANIFEST, ROW_GROUP_ROWS, OfflineStore, OfflineStoreUnavailable

SCHEMA = pa.schema([("tip_id", pa.string()), ("n", pa.int64())])
DAY = 20_000


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([[str(number) for number in numbers], numbers], schema=SCHEMA)


def numbers(store: OfflineStore, day: int = DAY) -> list[int]:
    return [number for each in store.batches("tips", day, ["n"]) for number in each["n"].to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_reader_sees_a_change_when_it_is_committed_and_all_of_it(tmp_path: Path) -> None:
    store = OfflineStore.open(str(tmp_path / "offline"))
    store.replace("tips", DAY, "first", SCHEMA, [batch(1, 2)])
    assert not OfflineStore.open(str(tmp_path / "offline")).exists
    store.commit()
    reader = OfflineStore.open(str(tmp_path / "offline"))
    store.replace("tips", DAY, "second", SCHEMA, [batch(3)])
    store.replace("tips", DAY + 1, "second", SCHEMA, [batch(4)])
    assert numbers(reader) == numbers(OfflineStore.open(str(tmp_path / "offline"))) == [1, 2]
    store.commit()
    reader.reload()
    assert (numbers(reader), numbers(reader, DAY + 1), [*reader.days("tips")]) == ([3], [4], [DAY, DAY + 1])


def test_a_killed_job_leaves_the_earlier_files_and_the_next_one_the_same_as_if_there_had_been_none(
    tmp_path: Path,
) -> None:
    def write(folder: str, *, commit: bool = True) -> None:
        store = OfflineStore.open(str(tmp_path / folder))
        store.replace("tips", DAY, "second", SCHEMA, [batch(3)])
        if commit:
            store.commit()

    store = OfflineStore.open(str(tmp_path / "killed"))
    store.replace("tips", DAY, "first", SCHEMA, [batch(1)])
    store.commit()
    write("killed", commit=False)
    assert numbers(OfflineStore.open(str(tmp_path / "killed"))) == [1]
    (tmp_path / "killed/tips/day=2024-10-04/.part-half.parquet").write_bytes(b"half")
    write("killed")
    write("never-killed")
    assert files(tmp_path / "killed") == files(tmp_path / "never-killed")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(cuts=st.lists(st.integers(1, ROW_GROUP_ROWS * 2 + 1), max_size=5))
def test_the_sizes_of_batches_do_not_change_the_bytes(cuts: list[int], tmp_path: Path) -> None:
    total = batch(*range(ROW_GROUP_ROWS * 2 + 2))
    edges = [0, *sorted({*cuts}), total.num_rows]
    parts = [total.slice(start, end - start) for start, end in pairwise(edges)]
    for name, batches in (("whole", [total]), ("parts", parts)):
        store = OfflineStore.open(str(tmp_path / name))
        store.replace("tips", DAY, "source", SCHEMA, batches)
        store.commit()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_the_manifest_has_rows_and_digest_of_each_file(tmp_path: Path) -> None:
    store = OfflineStore.open(str(tmp_path))
    store.replace("tips", DAY, "first", SCHEMA, [batch(1, 2), batch(3)])
    store.replace("tips", DAY + 1, "first", SCHEMA, [])
    store.commit()
    for day, rows in ((DAY, 3), (DAY + 1, 0)):
        file = OfflineStore.open(str(tmp_path)).days("tips")[day]
        assert (file.rows, file.sha256) == (rows, hashlib.sha256((tmp_path / file.path).read_bytes()).hexdigest())


def test_a_removed_day_has_no_file(tmp_path: Path) -> None:
    store = OfflineStore.open(str(tmp_path))
    store.replace("tips", DAY, "first", SCHEMA, [batch(1)])
    store.commit()
    store.remove("tips", DAY)
    store.commit()
    assert (numbers(store), [*files(tmp_path)]) == ([], [MANIFEST])


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"tables": 1}')
    with pytest.raises(OfflineStoreUnavailable, match="is not the manifest"):
        OfflineStore.open(str(tmp_path))
