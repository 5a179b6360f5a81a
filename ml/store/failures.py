"""Generations that failed: the draws for which no tip was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables
from ml.store.database import MAX_PARAMETERS, Database
from ml.store.rollup import CounterDelta
from ml.store.tip_dimensions import Row


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """A row of `generation_failures`: a draw of a prompt version for a user, and the error that prevented its tip.

    `tip_id`: the id that the tip would have had. `decision_id`: that of the decision's tips; without
    any, the tip_id of its first draw.
    `prompt_version_asked`: the version that was drawn; None if serving's default was asked for. `error`: its slug.
    """

    tip_id: UUID
    decision_id: UUID
    user_id: str
    created_at: datetime
    policy: str
    policy_version: str
    options: Mapping[str, float]
    probability: float
    prompt_version_asked: str | None
    error: str
    segments: tuple[str, ...]
    simulated: bool = False

    @classmethod
    def of(cls, row: Row) -> "GenerationFailure":
        """Take the columns from a row of `generation_failures`."""
        return cls(**{name: row[name] for name in cls.__slots__} | {"segments": tuple(row["segments"])})


_FAILURES = tables.generation_failures.c
_COLUMNS = [_FAILURES[name] for name in GenerationFailure.__slots__]
_EXISTING = select(tables.tip_scores.c.tip_id).where(tables.tip_scores.c.tip_id.in_(bindparam("ids", expanding=True)))
_DELETE = (
    delete(tables.generation_failures)
    .where(_FAILURES.tip_id.in_(bindparam("ids", expanding=True)))
    .returning(*_COLUMNS)
)


class FailureWriter:
    """Stores failures in the caller's transaction. There is either a tip or a failure with an id, and a tip wins."""

    def __init__(self, database: Database) -> None:
        # A row that exists already is not returned, so it is not counted twice.
        self._insert = database.upsert(tables.generation_failures).on_conflict_do_nothing().returning(_FAILURES.tip_id)

    async def add(
        self, connection: AsyncConnection, failures: Sequence[GenerationFailure], delta: CounterDelta
    ) -> None:
        """Store failures without a tip, and count them. The first failure with an id counts."""
        by_id = {failure.tip_id: failure for failure in sorted(failures, key=lambda failure: failure.tip_id)}
        if not by_id:
            return
        written = {*(await connection.execute(_EXISTING, {"ids": [*by_id]})).scalars()}
        rows = [tables.as_row(failure) for tip_id, failure in by_id.items() if tip_id not in written]
        if rows:
            for tip_id in (await connection.execute(self._insert, rows)).scalars():
                delta.add_failure(by_id[tip_id])

    async def remove(self, connection: AsyncConnection, tip_ids: Sequence[UUID], delta: CounterDelta) -> None:
        """Delete the failures with these ids, and subtract them from the counts."""
        for start in range(0, len(tip_ids), MAX_PARAMETERS):
            rows = await connection.execute(_DELETE, {"ids": tip_ids[start : start + MAX_PARAMETERS]})
            for row in rows.mappings():
                delta.add_failure(GenerationFailure.of(row), -1)
