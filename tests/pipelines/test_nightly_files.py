"""The files of a night: made once from the same sources, and made again when anything differs."""

from functools import partial
from pathlib import Path

import pytest

from ml.features.offline_store import OfflineStore, OfflineStoreUnavailable
from ml.pipelines.nightly_files import NightFiles, figures_of_nights

DAY = 20_000


def files(folder: Path, day: int = DAY) -> NightFiles:
    return NightFiles(OfflineStore.open(str(folder)), day)


def test_a_file_is_made_once_from_the_same_source_and_again_from_another(tmp_path: Path) -> None:
    made: list[bytes] = []

    def make(content: bytes) -> bytes:
        made.append(content)
        return content

    for source, content in (("a", b"1"), ("a", b"2"), ("b", b"3")):
        path = files(tmp_path).make("policy.npz", source, partial(make, content))
    assert (made, files(tmp_path).read(path)) == ([b"1", b"3"], b"3")


@pytest.mark.parametrize("name", ["policy.npz", "policy.npz.record.json"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_file_that_is_missing_or_damaged_is_made_again(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = files(tmp_path).make("policy.npz", "a", lambda: b"1")
    before = {file: file.read_bytes() for file in (tmp_path / path).parent.iterdir()}
    damaged = (tmp_path / path).with_name(name)
    damaged.unlink()
    if content:
        damaged.write_bytes(content)
    files(tmp_path).make("policy.npz", "a", lambda: b"1")
    assert {file: file.read_bytes() for file in before} == before


def test_a_step_whose_input_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises(OfflineStoreUnavailable, match="run the step before"):
        files(tmp_path).read(files(tmp_path).path("policy.npz"))


def test_the_figures_of_nights_leave_out_nights_without_any(tmp_path: Path) -> None:
    for day in (DAY, DAY + 2):
        files(tmp_path, day).make("evaluation.json", "a", str(day).encode)
    found = figures_of_nights(OfflineStore.open(str(tmp_path)), "evaluation.json", range(DAY - 1, DAY + 3))
    assert dict(found) == {DAY: DAY, DAY + 2: DAY + 2}
