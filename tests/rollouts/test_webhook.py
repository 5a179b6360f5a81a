"""The webhook: events arrive signed, in order and at least once, through failures and restarts."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry
from ml.recommender.settings import RecommenderSettings
from ml.rollouts import webhook
from ml.rollouts.webhook import MAX_BLOCKING_ATTEMPTS, MAX_RETRY, WebhookSender
from ml.rollouts.webhook_signature import decode_secret
from ml.store.database import Database as StoreDatabase
from ml.store.rollouts import NewRolloutEvent, RolloutLog
from tests.conftest import eventually
from tests.databases import Database
from tests.example_tips import DIGEST, SetClock
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.server import running

KEY = bytes(range(32))
SECRET = SecretStr(f"whsec_{base64.b64encode(KEY).decode()}")


class Receiver:
    """A webhook that verifies signatures, and answers what the test sets."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Callable[[], Response] = Response
        self.refused_ids: set[str] = set()
        self.attempts: list[str] = []
        self.received: list[dict[str, Any]] = []

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/rollouts", self._receive, methods=["POST"])])

    async def _receive(self, request: Request) -> Response:
        body, headers = await request.body(), request.headers
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert hmac.compare_digest(headers["webhook-signature"], f"v1,{digest}")
        self.attempts.append(headers["webhook-id"])
        response = Response(status_code=500) if headers["webhook-id"] in self.refused_ids else self.answer()
        if response.status_code < 300:
            self.received.append(json.loads(body))
        return response


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with running(receiver.app()) as url:
        receiver.url = f"{url}/rollouts"
        yield receiver


async def append(database: StoreDatabase, clock: SetClock, count: int = 1) -> None:
    log = RolloutLog(database)
    last = len(await log.events())
    for number in range(last, last + count):
        event = NewRolloutEvent(
            clock(), "prompt", "v2-mentor", DIGEST, "start", "registered", "shadow", "ada", f"Test {number + 1}."
        )
        await log.append(event, expected=number, notify=True)


@asynccontextmanager
async def sender_on(url: str, receiver_url: str, clock: SetClock) -> AsyncIterator[tuple[StoreDatabase, WebhookSender]]:
    database = StoreDatabase(url)
    async with httpx.AsyncClient() as http:
        deliveries = Telemetry().webhook_deliveries
        yield database, WebhookSender(database, http, receiver_url, KEY, clock=clock, deliveries=deliveries)
    await database.close()


def test_an_event_arrives_with_its_fields_and_after_a_failure_and_a_restart_again(
    database: Database,
    start_recommender: StartRecommender,
    receiver: Receiver,
    clock: SetClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def add_event() -> None:
        store = StoreDatabase(database.url)
        await append(store, clock)
        await store.close()

    receiver.answer = lambda: Response(status_code=500)
    asyncio.run(add_event())
    settings = {"rollout_webhook_url": receiver.url, "rollout_webhook_secret": SECRET}
    first = start_recommender(**settings)
    assert eventually(lambda: database.rows("SELECT attempts FROM webhook_outbox")[0]["attempts"] == 1)
    assert 'tips_webhook_deliveries_total{outcome="failed"} 1.0' in first.get("/metrics").text
    log = capsys.readouterr().out
    assert "webhook_failed" in log
    assert "status 500" in log
    assert receiver.url not in log
    assert SECRET.get_secret_value() not in log
    receiver.answer = Response
    clock.go(minutes=2)
    start_recommender(**settings)
    assert eventually(lambda: database.count("webhook_outbox") == 0)
    (message,) = receiver.received
    assert (message["type"], message["timestamp"]) == ("rollout.start", "2026-01-31T21:40:00Z")
    data = message["data"]
    assert (data["id"], data["kind"], data["version"], data["to_stage"]) == (1, "prompt", "v2-mentor", "shadow")
    assert (data["actor"], data["reason"]) == ("ada", "Test 1.")


def test_of_two_replicas_one_delivers_and_the_other_takes_over(
    database: Database, receiver: Receiver, clock: SetClock
) -> None:
    async def deliver() -> None:
        async with (
            sender_on(database.url, receiver.url, clock) as (store, first),
            sender_on(database.url, receiver.url, clock) as (_, second),
        ):
            await append(store, clock, 3)
            await asyncio.gather(first.deliver_due(), second.deliver_due())
            assert receiver.attempts == ["1", "2", "3"]
            await append(store, clock)
            clock.go(minutes=2)  # the lease has ended
            await second.deliver_due()
            await first.deliver_due()
            assert receiver.attempts == ["1", "2", "3", "4"]

    asyncio.run(deliver())


@ON_SQLITE
def test_events_arrive_in_order_and_one_that_is_always_refused_does_not_hold_up_the_others_for_long(
    database: Database, receiver: Receiver, clock: SetClock
) -> None:
    async def deliver() -> None:
        async with sender_on(database.url, receiver.url, clock) as (store, sender):
            await append(store, clock, 3)
            receiver.refused_ids = {"1"}
            for attempt in range(1, MAX_BLOCKING_ATTEMPTS):
                await sender.deliver_due()
                await sender.deliver_due()  # not due yet
                assert receiver.attempts == ["1"] * attempt
                clock.now += MAX_RETRY
            await sender.deliver_due()
            assert receiver.attempts == ["1"] * MAX_BLOCKING_ATTEMPTS + ["2", "3"]
            receiver.refused_ids = set()
            clock.now += MAX_RETRY
            await sender.deliver_due()
            assert [message["data"]["id"] for message in receiver.received] == [2, 3, 1]

    asyncio.run(deliver())


@ON_SQLITE
@pytest.mark.parametrize("fault", ["redirect", "no answer", "no server", "no host"])
def test_a_fault_of_the_receiver_is_retried_later_with_growing_intervals(
    database: Database, receiver: Receiver, clock: SetClock, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deliver() -> None:
        url = {"no server": "http://127.0.0.1:9/", "no host": "http://\u2603..example/"}.get(fault, receiver.url)
        async with sender_on(database.url, url, clock) as (store, sender):
            await append(store, clock)
            waits = []
            for _ in range(3):
                await sender.deliver_due()
                (row,) = await sender._outbox.pending()
                waits.append(row.due_at - clock.now)
                clock.now = row.due_at
            assert waits == [timedelta(seconds=seconds) for seconds in (5, 10, 20)]

    if fault == "redirect":
        receiver.answer = lambda: RedirectResponse(receiver.url)
    if fault == "no answer":
        monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.0)
    asyncio.run(deliver())
    assert receiver.received == []
    assert len(receiver.attempts) == (3 if fault == "redirect" else 0)


def test_a_webhook_needs_a_secret_that_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_WEBHOOK_URL", "https://example.org/hook")
    with pytest.raises(ConfigurationError) as error:
        RecommenderSettings.from_environment()
    assert str(error.value) == "ROLLOUT_WEBHOOK_SECRET: the value is required with ROLLOUT_WEBHOOK_URL."
    for wrong in ("open sesame", "whsec_", "whsec_AAAA", "whsec_*", SECRET.get_secret_value().removeprefix("whsec_")):
        monkeypatch.setenv("ROLLOUT_WEBHOOK_SECRET", wrong)
        with pytest.raises(ConfigurationError) as error:
            RecommenderSettings.from_environment()
        expected = "the value should be whsec_ and the base64 of 24 to 64 random bytes."
        assert str(error.value) == f"ROLLOUT_WEBHOOK_SECRET: {expected}"
    monkeypatch.setenv("ROLLOUT_WEBHOOK_SECRET", SECRET.get_secret_value())
    settings = RecommenderSettings.from_environment()
    assert settings.rollout_webhook_secret
    assert decode_secret(settings.rollout_webhook_secret) == KEY
    assert "example.org" not in repr(settings)
