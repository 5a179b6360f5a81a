"""Dated figures about rollouts, written by the monitor and by batch jobs: the newest ones of each day and name."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ml.store.database import Database
from ml.store.hours import hour_of
from ml.store.tables import rollout_evidence


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """The figures of one name about a rollout, as they were at a time. `day`: since 1970. `figures`: JSON."""

    rollout: int
    name: str
    day: int
    at: datetime
    figures: Mapping[str, Any]


class EvidenceLog:
    """The table `rollout_evidence`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        upsert = database.upsert(rollout_evidence)
        changed = {name: upsert.excluded[name] for name in ("at", "figures")}
        self._write = upsert.on_conflict_do_update(index_elements=list(rollout_evidence.primary_key), set_=changed)

    async def record(self, rollout: int, at: datetime, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Store figures by name; they replace earlier ones of the same day."""
        if not figures:
            return
        day = hour_of(at) // 24
        rows = [
            {"rollout": rollout, "name": name, "day": day, "at": at, "figures": dict(each)}
            for name, each in sorted(figures.items())
        ]
        async with self._database.writing() as connection:
            await connection.execute(self._write, rows)

    async def history(self, rollout: int) -> list[EvidenceRow]:
        """Return all figures about a rollout, the oldest first."""
        table = rollout_evidence
        query = select(table).where(table.c.rollout == rollout).order_by(table.c.day, table.c.name)
        async with self._database.reading() as connection:
            return [EvidenceRow(**row) for row in (await connection.execute(query)).mappings()]
