"""The webhook's outbox has each event until it was received."""

import asyncio
from datetime import timedelta

from ml.store.database import Database as OpenDatabase
from ml.store.outbox import Outbox, PendingDelivery
from ml.store.rollouts import RolloutLog
from tests.databases import Database
from tests.example_tips import NOW
from tests.store.rollout_rows import a_move

MINUTE = timedelta(minutes=1)


def test_an_event_is_pending_until_it_was_received_and_due_later_after_a_failed_attempt(database: Database) -> None:
    async def run() -> None:
        store = OpenDatabase(database.url)
        log, outbox = RolloutLog(store), Outbox(store)
        await log.append(a_move("initial", "v1"), expected=0)
        second = await log.append(a_move("start", evidence={"gates": []}), expected=1, notify=True)
        third = await log.append(a_move("start", "v3", at=NOW + MINUTE), expected=2, notify=True)
        first_delivery = PendingDelivery(second, 0, NOW)
        other = PendingDelivery(third, 0, NOW + MINUTE)
        assert await outbox.pending() == [first_delivery, other]
        assert await outbox.pending(limit=1) == [first_delivery]
        for attempts in (1, 2):
            due_at = NOW + 2 * attempts * MINUTE
            await outbox.postpone(second.id, due_at)
            assert await outbox.pending() == [PendingDelivery(second, attempts, due_at), other]
        for _ in range(2):
            await outbox.complete(second.id)
        await outbox.postpone(second.id, NOW)  # it was received in the meantime
        assert await outbox.pending() == [other]
        await store.close()

    asyncio.run(run())
    assert database.count("rollout_events") == 3
