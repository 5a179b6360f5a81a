"""The offline store in a bucket, behind a local implementation of S3."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from ml.features.offline_store import OfflineStore, OfflineStoreUnavailable
from ml.pipelines.deletion import forget_user
from ml.pipelines.export import export
from tests.databases import Database
from tests.example_tips import NOW, SetClock
from tests.fixtures import ON_SQLITE
from tests.pipelines.stored_tips import files, make_changes


@pytest.fixture
def bucket() -> Iterator[str]:
    """The address of a store in a new bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        httpx.put(f"http://{host}:{port}/tips").raise_for_status()
        yield f"s3://key:geheim@tips/offline?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
    finally:
        server.stop()


def objects(store: OfflineStore) -> dict[str, bytes]:
    return {path: store.read(path) or b"" for path in store.paths("")}


@ON_SQLITE
def test_a_bucket_gets_the_files_that_a_folder_gets(database: Database, tmp_path: Path, bucket: str) -> None:
    clock = SetClock(NOW + timedelta(days=1))
    for changes in (
        [("add", {0, 1, 2, 3}), ("react", 1, "done", 1)],
        [("add", {4, 5, 6}), ("react", 2, "saved", 0), ("expose", 0)],
        [("forget", 0)],
    ):
        make_changes(database.url, changes, clock)
        export(database.url, OfflineStore.open(bucket))
    stored = OfflineStore.open(bucket)
    export(database.url, OfflineStore.open(str(tmp_path / "offline")))
    assert objects(stored) == files(tmp_path / "offline")
    assert [*stored.damaged()] == []
    make_changes(database.url, [("forget", 1)], clock)
    assert forget_user(database.url, stored, "u-1") == 2
    export(database.url, OfflineStore.open(str(tmp_path / "offline")))
    assert objects(stored) == files(tmp_path / "offline")


def test_the_error_of_a_bucket_that_does_not_exist_has_no_secret(bucket: str) -> None:
    with pytest.raises(OfflineStoreUnavailable, match=r"^missing/offline/a cannot be read or written$") as raised:
        OfflineStore.open(bucket.replace("@tips/", "@missing/")).write("a", b"")
    assert raised.value.__cause__ is None
