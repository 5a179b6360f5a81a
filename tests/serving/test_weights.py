"""The three sources of the weights, with small files instead of a gigabyte."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ml.platform.errors import NotReady
from ml.serving.published_weights import QWEN, Weights
from ml.serving.weights import find_weights
from tests.server import running

CONTENT = b"GGUF" + bytes(range(256)) * 64
REVISION = "f" * 40


def weights(*parts: str, content: bytes = CONTENT) -> Weights:
    return Weights("someone/model", REVISION, "model.gguf", hashlib.sha256(content).hexdigest(), len(content), parts)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Three data packages that contain the file, and whose code must never run."""
    third = len(CONTENT) // 3
    pieces = (CONTENT[:third], CONTENT[third : 2 * third], CONTENT[2 * third :])
    names = tuple(f"tips_test_part{number}" for number in range(1, 4))
    for number, (name, piece) in enumerate(zip(names, pieces, strict=True), 1):
        data = tmp_path / "packages" / name / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise SystemExit('imported')")
        (data / f"part{number:02}.bin").write_bytes(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return names


class Hub:
    """A model hub with one revision of one file; `methods` are those of the requests that it received."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.methods: list[str] = []

    def app(self) -> Starlette:
        path = "/someone/model/resolve/{revision}/model.gguf"
        return Starlette(routes=[Route(path, self._file, methods=["GET", "HEAD"])])

    async def _file(self, request: Request) -> Response:
        self.methods.append(request.method)
        if request.path_params["revision"] != REVISION:
            return Response(status_code=404)
        etag = hashlib.sha256(self.content).hexdigest()
        headers = {"etag": f'"{etag}"', "x-repo-commit": REVISION, "content-length": str(len(self.content))}
        return Response(b"" if request.method == "HEAD" else self.content, headers=headers)


@pytest.fixture
def hub() -> Iterator[tuple[str, Hub]]:
    served = Hub(CONTENT)
    with running(served.app()) as url:
        yield url, served


def test_the_operator_s_own_file_is_used_with_any_hash(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF, another")
    assert find_weights(own, weights(), cache=tmp_path) == own


def test_installed_parts_are_joined_once_and_never_imported(tmp_path: Path, parts: tuple[str, ...]) -> None:
    found = find_weights(None, weights(*parts), cache=tmp_path / "cache")
    assert found.read_bytes() == CONTENT
    before = found.stat().st_mtime_ns
    assert find_weights(None, weights(*parts), cache=tmp_path / "cache").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], b"x" * len(CONTENT)])
def test_a_damaged_cached_file_is_replaced(tmp_path: Path, parts: tuple[str, ...], damaged: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(damaged)
    assert find_weights(None, weights(*parts), cache=tmp_path).read_bytes() == CONTENT


def test_parts_with_another_hash_are_not_used(tmp_path: Path, parts: tuple[str, ...], hub: tuple[str, Hub]) -> None:
    (tmp_path / "packages" / parts[1] / "data" / "part02.bin").write_bytes(b"tampered")
    found = find_weights(None, weights(*parts), cache=tmp_path / "cache", hub=hub[0])
    assert found.read_bytes() == CONTENT
    assert "GET" in hub[1].methods
    assert not (tmp_path / "cache" / "model.gguf").exists()


def test_a_missing_part_causes_one_download_from_the_hub(
    tmp_path: Path, parts: tuple[str, ...], hub: tuple[str, Hub]
) -> None:
    url, served = hub
    expected = weights(*parts, "tips_test_part_not_installed")
    for _ in range(2):
        assert find_weights(None, expected, cache=tmp_path / "cache", hub=url).read_bytes() == CONTENT
    assert served.methods.count("GET") == 1


def test_a_download_with_another_hash_is_refused_and_removed(tmp_path: Path, hub: tuple[str, Hub]) -> None:
    url, served = hub
    served.content = b"x" * len(CONTENT)
    with pytest.raises(NotReady, match="The file from the hub has another SHA-256 than expected"):
        find_weights(None, weights(), cache=tmp_path, hub=url)
    served.content = CONTENT
    assert find_weights(None, weights(), cache=tmp_path, hub=url).read_bytes() == CONTENT


def test_without_a_working_source_the_error_names_the_settings(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"EMBEDDED_MODEL_PATH .* TIP_MODEL"):
        find_weights(None, weights(), cache=tmp_path, hub="http://127.0.0.1:9")


def test_a_cache_folder_that_cannot_be_written_is_an_error(tmp_path: Path, parts: tuple[str, ...]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(NotReady, match="cannot be stored in the cache folder; the log has the reason"):
        find_weights(None, weights(*parts), cache=tmp_path / "cache")


def test_the_published_weights_are_pinned() -> None:
    assert len(QWEN.sha256) == 64
    assert len(QWEN.revision) == 40
    assert len(QWEN.parts) == 22
