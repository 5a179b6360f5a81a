"""The files of a night in the offline store: each is made once from the same sources, however often the job runs.

    nightly/day=2026-11-30/policy.npz
    nightly/day=2026-11-30/policy.npz.record.json

The record names the source of the file, as a hash, and its content; it is written last. A file without a record that
fits is made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from ml.features.offline_store import OfflineStore, OfflineStoreUnavailable, date_of_day

FOLDER = "nightly"


class NightFiles:
    """The files of one night. All methods raise OfflineStoreUnavailable."""

    def __init__(self, offline: OfflineStore, day: int) -> None:
        """`day`: since 1970."""
        self._offline = offline
        self._folder = f"{FOLDER}/day={date_of_day(day)}"

    def path(self, name: str) -> str:
        """Return the path of a file in the offline store."""
        return f"{self._folder}/{name}"

    def make(self, name: str, source: Any, make: Callable[[], bytes]) -> str:
        """Make a file unless it was made from the same source, JSON; return its path."""
        path, record_path = self.path(name), self.path(f"{name}.record.json")
        wanted = {"source": _sha256(as_json(source))}
        content, record = self._offline.read(path), self._offline.read(record_path)
        if content is None or record != as_json(wanted | {"sha256": _sha256(content)}):
            content = make()
            self._offline.write(path, content)
            self._offline.write(record_path, as_json(wanted | {"sha256": _sha256(content)}))
        return path

    def read(self, path: str) -> bytes:
        """Return the content of a file by its path in the offline store."""
        content = self._offline.read(path)
        if content is None:
            raise OfflineStoreUnavailable(f"{self._offline.url}/{path} does not exist: run the step before")
        return content

    def read_json(self, path: str) -> Any:
        """Return the content of a JSON file by its path in the offline store."""
        try:
            return json.loads(self.read(path))
        except ValueError:
            raise OfflineStoreUnavailable(f"{self._offline.url}/{path} is not JSON: run the step before") from None


def figures_of_nights(offline: OfflineStore, name: str, days: range) -> Iterator[tuple[int, Any]]:
    """Yield the content of the JSON file of this name of each of these nights that has it."""
    for day in days:
        content = offline.read(NightFiles(offline, day).path(name))
        if content is not None:
            yield day, json.loads(content)


def as_json(value: Any) -> bytes:
    """Return JSON with sorted keys: the same value gives the same bytes."""
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
