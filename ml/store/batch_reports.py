"""Figures of batch jobs: the newest ones of each day and name."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ml.store.database import Database
from ml.store.tables import batch_reports

DRIFT = "drift"
"""The name of the report about the features of a day; see `ml.pipelines.drift`."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The figures of one name about a day. `day`: since 1970. `at`: when they were computed. `figures`: JSON."""

    day: int
    name: str
    at: datetime
    figures: Mapping[str, Any]


class BatchReports:
    """The table `batch_reports`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        upsert = database.upsert(batch_reports)
        changed = {name: upsert.excluded[name] for name in ("at", "figures")}
        self._write = upsert.on_conflict_do_update(index_elements=list(batch_reports.primary_key), set_=changed)

    async def record(self, report: BatchReport) -> None:
        """Store a report instead of the earlier one of its day and name."""
        row = {name: getattr(report, name) for name in report.__slots__} | {"figures": dict(report.figures)}
        async with self._database.writing() as connection:
            await connection.execute(self._write, [row])

    async def newest(self, name: str, *, days: int = 1) -> list[BatchReport]:
        """Return the reports of a name about the last `days` days that have one, the newest first."""
        table = batch_reports
        query = select(table).where(table.c.name == name).order_by(table.c.day.desc()).limit(days)
        async with self._database.reading() as connection:
            return [BatchReport(**row) for row in (await connection.execute(query)).mappings()]
