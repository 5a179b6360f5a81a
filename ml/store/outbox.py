"""The outbox of the webhook: which events of rollouts it has not received yet.

A row is inserted in the transaction of its event (`RolloutLog.append`), so no event is lost, and is deleted when the
webhook has received the event, so it receives each at least once.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, update

from ml.experiments.rollout_state import RolloutEvent
from ml.store.database import Database
from ml.store.rollouts import event_of_row
from ml.store.tables import rollout_events, webhook_outbox


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """An event to deliver. `attempts`: how often it has been tried. `due_at`: when to try next."""

    event: RolloutEvent
    attempts: int
    due_at: datetime


class Outbox:
    """The table `webhook_outbox`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pending(self, limit: int = 100) -> list[PendingDelivery]:
        """Return the oldest deliveries that are not complete, in the order of their events."""
        query = (
            select(rollout_events, webhook_outbox.c.attempts, webhook_outbox.c.due_at)
            .join(webhook_outbox, webhook_outbox.c.event_id == rollout_events.c.id)
            .order_by(rollout_events.c.id)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [PendingDelivery(event_of_row(row), row["attempts"], row["due_at"]) for row in rows]

    async def complete(self, event_id: int) -> None:
        """Record that the webhook has received an event."""
        async with self._database.writing() as connection:
            await connection.execute(delete(webhook_outbox).where(webhook_outbox.c.event_id == event_id))

    async def postpone(self, event_id: int, due_at: datetime) -> None:
        """Record an attempt that failed, and when to try again."""
        change = update(webhook_outbox).where(webhook_outbox.c.event_id == event_id)
        async with self._database.writing() as connection:
            await connection.execute(change.values(attempts=webhook_outbox.c.attempts + 1, due_at=due_at))
