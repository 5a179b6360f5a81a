"""Proposals of rollouts: the version that a batch job would put into shadow next, at most one of each kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select

from ml.experiments.rollout_state import Kind
from ml.store.database import Database
from ml.store.tables import as_row, rollout_proposals


@dataclass(frozen=True, slots=True)
class Proposal:
    """A version that is proposed for a rollout.

    `source`: where serving finds it, such as `models:/tips/3`. `evidence`: JSON, the figures that speak for it.
    """

    kind: Kind
    version: str
    at: datetime
    source: str
    evidence: Mapping[str, Any]


class Proposals:
    """The table `rollout_proposals`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, proposal: Proposal) -> None:
        """Store a proposal instead of the earlier one of its kind."""
        async with self._database.writing() as connection:
            await connection.execute(delete(rollout_proposals).where(rollout_proposals.c.kind == proposal.kind))
            await connection.execute(insert(rollout_proposals).values(as_row(proposal)))

    async def find(self, kind: Kind, version: str) -> Proposal | None:
        """Return the proposal of a version; None without one."""
        return next((each for each in await self.all() if (each.kind, each.version) == (kind, version)), None)

    async def all(self) -> list[Proposal]:
        """Return the proposal of each kind that has one, whether its rollout has begun or not."""
        query = select(rollout_proposals).order_by(rollout_proposals.c.kind)
        async with self._database.reading() as connection:
            return [Proposal(**row) for row in (await connection.execute(query)).mappings()]
