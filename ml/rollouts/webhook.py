"""The webhook: posts the events of rollouts to an address of the operator, signed, in their order, at least once.

The message, its headers and its signature are those of the Standard Webhooks specification.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Self

import httpx
import structlog
from prometheus_client import Counter
from pydantic import BaseModel, SecretStr

from ml.experiments.rollout_state import RolloutEvent
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.platform.errors import StorageUnavailable
from ml.rollouts.schemas import RolloutEventResponse
from ml.rollouts.webhook_signature import decode_secret, sign
from ml.store.database import Database
from ml.store.leases import Lease
from ml.store.outbox import Outbox, PendingDelivery

POLL_SECONDS = 2.0
"""The interval at which a replica looks for events to deliver."""

TIMEOUT_SECONDS = 10.0
"""The time for one delivery."""

FIRST_RETRY = timedelta(seconds=5)
"""The time after the first failure; each further one doubles it, up to `MAX_RETRY`."""

MAX_RETRY = timedelta(hours=1)

MAX_BLOCKING_ATTEMPTS = 8
"""The failures, over about 10 minutes, after which an event no longer holds up those after it."""

LEASE = timedelta(seconds=60)
"""Longer than a delivery, so that two replicas do not deliver at the same time."""

log = structlog.get_logger()


class WebhookMessage(BaseModel):
    """The body of a delivery. `type`: `rollout.` and the action of the event. `timestamp`: the time of the event."""

    type: str
    timestamp: datetime
    data: RolloutEventResponse

    @classmethod
    def of(cls, event: RolloutEvent) -> Self:
        data = RolloutEventResponse.of(event)
        return cls(type=f"rollout.{event.action}", timestamp=data.at, data=data)


class WebhookSender:
    """Delivers the outbox to the webhook; of several replicas, the one that has the lease."""

    def __init__(
        self, database: Database, http: httpx.AsyncClient, url: str, key: bytes, *, clock: Clock, deliveries: Counter
    ) -> None:
        """`http`: a client that follows no redirects. `deliveries`: the metric, with the outcome as its label."""
        self._outbox = Outbox(database)
        self._lease = Lease(database, "webhook", uuid.uuid4().hex, LEASE)
        self._http = http
        self._url = url
        self._key = key
        self._clock = clock
        self._deliveries = deliveries

    async def run(self, every: float = POLL_SECONDS) -> None:
        """Deliver events as they come, until the task is cancelled; `every`: in seconds."""
        try:
            while True:
                with suppress(StorageUnavailable):  # logged by the store; the outbox keeps everything
                    await self.deliver_due()
                await asyncio.sleep(every)
        finally:
            with suppress(StorageUnavailable):
                await self._lease.release()

    async def deliver_due(self) -> None:
        """Deliver the events that are due, the oldest first, unless another replica does. Raises StorageUnavailable.

        An event that fails holds up those after it until it has failed `MAX_BLOCKING_ATTEMPTS` times.
        """
        if not self._due(await self._outbox.pending()):
            return
        if not await self._lease.acquire(self._clock()):
            return
        # Read again: until now, another replica may have delivered them.
        for delivery in self._due(await self._outbox.pending()):
            if not await self._lease.acquire(self._clock()):
                return
            error = await self._post(delivery.event)
            self._deliveries.labels("failed" if error else "delivered").inc()
            if not error:
                await self._outbox.complete(delivery.event.id)
                continue
            await self._postpone(delivery, error)
            if delivery.attempts + 1 < MAX_BLOCKING_ATTEMPTS:
                return

    def _due(self, pending: list[PendingDelivery]) -> list[PendingDelivery]:
        """Return the deliveries that may be tried now."""
        due, now = [], self._clock()
        for delivery in pending:
            if delivery.due_at <= now:
                due.append(delivery)
            elif delivery.attempts < MAX_BLOCKING_ATTEMPTS:
                break
        return due

    async def _post(self, event: RolloutEvent) -> str:
        """Post an event; return why that failed, and an empty text if it did not."""
        body = WebhookMessage.of(event).model_dump_json().encode()
        message_id, timestamp = str(event.id), int(self._clock().timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._key, message_id, timestamp, body),
        }
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                # A stream, of which only the status is read.
                async with self._http.stream("POST", self._url, content=body, headers=headers) as response:
                    return "" if response.is_success else f"status {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return type(error).__name__

    async def _postpone(self, delivery: PendingDelivery, error: str) -> None:
        wait = min(FIRST_RETRY * 2 ** min(delivery.attempts, 16), MAX_RETRY)
        log.warning(
            "webhook_failed",
            event_id=delivery.event.id,
            reason=error,
            attempts=delivery.attempts + 1,
            retry_seconds=wait.total_seconds(),
        )
        await self._outbox.postpone(delivery.event.id, self._clock() + wait)


@asynccontextmanager
async def deliver_events(
    url: str | None,
    secret: SecretStr | None,
    database: Database,
    *,
    clock: Clock,
    deliveries: Counter,
    background: BackgroundTasks,
    every: float = POLL_SECONDS,
) -> AsyncIterator[None]:
    """Deliver the outbox to the webhook at `url`, if there is one, until the block ends."""
    if url is None or secret is None:
        yield
        return
    async with httpx.AsyncClient(follow_redirects=False, timeout=TIMEOUT_SECONDS) as http:
        sender = WebhookSender(database, http, url, decode_secret(secret), clock=clock, deliveries=deliveries)
        async with background.run("webhook", sender.run(every)):
            yield
