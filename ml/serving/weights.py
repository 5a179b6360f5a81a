"""The weights of the embedded model: three sources of the same file, each verified by its SHA-256."""

import hashlib
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import structlog
from httpx import HTTPError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from platformdirs import user_cache_path
from tqdm import tqdm

from ml.platform.errors import NotReady
from ml.serving.published_weights import QWEN, Weights
from ml.serving.settings import NO_EMBEDDED_MODEL

log = structlog.get_logger()

CHUNK_BYTES = 1 << 22


def find_weights(
    path: Path | None, weights: Weights = QWEN, *, cache: Path | None = None, hub: str | None = None
) -> Path:
    """Return a verified file with the weights; this may take minutes the first time.

    `path`: the operator's own GGUF file; its hash is logged, not checked. Without it, the file is read from the cache
    folder, or joined there from the installed data packages, or downloaded from the hub (`hub`: its address, by default
    the public one). Raises NotReady, with one sentence for the operator, if no source works.
    """
    if path is not None:
        log.info("weights", path=str(path), sha256=_sha256(_read_blocks(path), path.stat().st_size))
        return path
    cached = (cache or user_cache_path("tips")) / weights.file
    try:
        if _is_intact(cached, weights):
            return cached
        return _join_parts(cached, weights) or _download(weights, hub, cached.parent)
    except OSError as error:  # no permission, a full disk, or a disk error
        log.error("weights_not_kept", folder=str(cached.parent), reason=error.strerror)
        raise NotReady(
            "The embedded model's weights cannot be stored in the cache folder; the log has the reason."
        ) from error


def _join_parts(target: Path, weights: Weights) -> Path | None:
    """Join the installed parts into `target`; None if parts are missing or the result has another SHA-256."""
    parts = [_find_part(name) for name in weights.parts]
    if not parts or None in parts:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as joined:
        try:
            blocks = (block for part in parts if part is not None for block in _read_blocks(part))
            digest = _sha256(_copy(blocks, joined), weights.size, "joining")
            if digest != weights.sha256:
                log.warning("weights_packages_differ", expected=weights.sha256, found=digest)
                return None
            joined.flush()
            Path(joined.name).replace(target)
        finally:
            Path(joined.name).unlink(missing_ok=True)
    return target


def _download(weights: Weights, hub: str | None, cache: Path) -> Path:
    """Download the pinned revision from the hub to `cache`. Raises NotReady if that fails or the SHA-256 differs."""
    try:
        downloaded = Path(
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
    if not _is_intact(downloaded, weights):
        downloaded.resolve().unlink(missing_ok=True)
        raise NotReady(f"The file from the hub has another SHA-256 than expected. {NO_EMBEDDED_MODEL}")
    return downloaded


def _find_part(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0], "data").glob("part*.bin")) if folders else []
    return files[0] if len(files) == 1 else None


def _is_intact(path: Path, weights: Weights) -> bool:
    if not path.is_file() or path.stat().st_size != weights.size:
        return False
    return _sha256(_read_blocks(path), weights.size) == weights.sha256


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            yield block


def _copy(blocks: Iterable[bytes], file: IO[bytes]) -> Iterator[bytes]:
    for block in blocks:
        file.write(block)
        yield block


def _sha256(blocks: Iterable[bytes], size: int, action: str = "checking") -> str:
    digest = hashlib.sha256()
    # `disable=None`: shown on a terminal only.
    with tqdm(total=size, desc=f"{action} the model", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for block in blocks:
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
