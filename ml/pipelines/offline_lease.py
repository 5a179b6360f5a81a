"""The lease of the offline store: one job at a time writes to it. Readers need none."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

from ml.features.offline_store import OfflineStore
from ml.platform.clock import utc_now
from ml.platform.errors import Busy
from ml.store.database import Database, run_once
from ml.store.leases import Lease

LEASE = timedelta(seconds=30)
"""How long a killed job keeps others waiting."""

_NAME = "offline-store"


class OfflineLease:
    """A lease of the offline store, in the database that it is filled from. Methods raise ConfigurationError."""

    def __init__(self, database_url: str, duration: timedelta) -> None:
        self._database_url = database_url
        self._duration = duration
        self._holder = str(uuid4())
        self._taken_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the lease should be renewed."""
        return time.monotonic() - self._taken_at > self._duration.total_seconds() / 3

    def renew(self) -> None:
        """Hold the lease for another duration. Raises Busy if another job has taken it: then nothing may be committed.

        Connects to the database: no other connection to an SQLite file may be open (see `ml.store.export`).
        """
        if not self.take():
            raise Busy("Another job writes to the offline store; run this again when it has ended.")

    def take(self) -> bool:
        """Take or renew the lease; return whether this job holds it."""
        self._taken_at = time.monotonic()
        return run_once(self._database_url, lambda database: self._lease(database).acquire(utc_now()))

    def release(self) -> None:
        """Give the lease up."""
        run_once(self._database_url, lambda database: self._lease(database).release())

    def _lease(self, database: Database) -> Lease:
        return Lease(database, _NAME, self._holder, self._duration)


@contextmanager
def hold_offline_store(database_url: str, offline: OfflineStore, duration: timedelta = LEASE) -> Iterator[OfflineLease]:
    """Hold the lease until the block ends; the store then has its newest manifest.

    Waits for the lease of a killed job to end. Raises Busy if another job renews it, and ConfigurationError if the
    database cannot be opened. An SQLite database is migrated.
    """
    run_once(database_url, Database.prepare)
    lease, waiting_until = OfflineLease(database_url, duration), time.monotonic() + 1.1 * duration.total_seconds()
    while not lease.take():
        if time.monotonic() > waiting_until:
            lease.renew()
        time.sleep(min(1, duration.total_seconds() / 10))
    try:
        offline.reload()
        yield lease
    finally:
        lease.release()
