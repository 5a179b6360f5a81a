"""The append-only log of rollouts. An event is effective when its transaction is committed; the state is a fold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping, func, insert, select
from sqlalchemy.exc import IntegrityError

from ml.experiments.rollout_state import Action, Kind, RolloutEvent, Stage
from ml.platform.errors import RolloutConflict
from ml.store.database import Database
from ml.store.tables import rollout_events, webhook_outbox


@dataclass(frozen=True, slots=True)
class NewRolloutEvent:
    """An event to append. The fields are those of `RolloutEvent`; `rollout` is None for one that begins a rollout."""

    at: datetime
    kind: Kind
    version: str
    digest: str
    action: Action
    from_stage: Stage
    to_stage: Stage
    actor: str
    reason: str
    rollout: int | None = None
    share: float = 0.0
    segment: str = ""
    paused: bool = False
    gated: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)


class RolloutLog:
    """The table `rollout_events`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def events(self, after: int = 0) -> list[RolloutEvent]:
        """Return the events with an id above `after`, in their order."""
        query = select(rollout_events).where(rollout_events.c.id > after).order_by(rollout_events.c.id)
        async with self._database.reading() as connection:
            return [event_of_row(row) for row in (await connection.execute(query)).mappings()]

    async def append(self, event: NewRolloutEvent, *, expected: int, notify: bool = False) -> RolloutEvent:
        """Append an event, which is effective when this returns; return it with its id.

        `expected`: the id of the last event that the author knows (compare-and-swap). `notify`: the webhook is to
        receive the event; the order to do so is stored in the same transaction. Raises RolloutConflict, and appends
        nothing, if there are other events since.
        """
        event_id = expected + 1
        values = {name: getattr(event, name) for name in event.__slots__}
        row = values | {"id": event_id, "rollout": event.rollout or event_id, "evidence": dict(event.evidence)}
        try:
            async with self._database.writing() as connection:
                last = (await connection.execute(select(func.max(rollout_events.c.id)))).scalar() or 0
                if last != expected:
                    raise _conflict()
                await connection.execute(insert(rollout_events).values(row))
                if notify:
                    order = {"event_id": event_id, "attempts": 0, "due_at": event.at}
                    await connection.execute(insert(webhook_outbox).values(order))
        except IntegrityError:  # another transaction has appended an event with this id
            raise _conflict() from None
        return RolloutEvent(**row | {"at": event.at.timestamp()})


def event_of_row(row: RowMapping) -> RolloutEvent:
    """Return the event in a row that has all columns of `rollout_events`."""
    values = {column.name: row[column.name] for column in rollout_events.columns}
    return RolloutEvent(**values | {"at": row["at"].timestamp()})


def time_of(event: RolloutEvent) -> datetime:
    """Return the time of an event, in UTC."""
    return datetime.fromtimestamp(event.at, UTC)


def _conflict() -> RolloutConflict:
    return RolloutConflict("Somebody else has changed a rollout since; look at the state again before you decide.")
