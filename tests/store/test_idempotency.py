"""Idempotency keys in the store: any sequence of attempts, failures, crashes and waits gives one decision per key."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.platform.errors import IdempotencyKeyReused, RequestInProgress
from ml.platform.idempotency_key import IdempotencyKey
from ml.store.idempotency import RETENTION
from ml.store.tip_records import TipRecord
from ml.store.tips import Reservation, TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import WINDOW, SetClock, a_tip
from tests.fixtures import ON_SQLITE

LEASE = timedelta(seconds=40)


class Crashed(BaseException):
    """Ends an attempt."""


@dataclass
class Attempt:
    """An attempt with a reservation, whose block has not ended; `stack` ends it. `expires`: when its lease ends."""

    reservation: Reservation
    stack: AsyncExitStack
    expires: float


@dataclass
class KeyModel:
    """The expected state of one key: the time of its first attempt, its draw, its answer and its lease."""

    first_at: float
    draw: list[str]
    answer: uuid.UUID | None = None
    leased_by: Attempt | None = None


@dataclass
class Run:
    """Executes steps on one key with the store, and checks each against the model."""

    stores: Sequence[TipStore]
    clock: SetClock
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    now: float = 0
    model: KeyModel | None = None
    attempts: list[Attempt] = field(default_factory=list)
    crashed: list[Attempt] = field(default_factory=list)
    number: int = 0

    async def step(self, name: str, store: int) -> None:
        await getattr(self, name)(self.stores[store])

    async def wait_a_little(self, _: TipStore) -> None:
        self._wait(timedelta(seconds=15))

    async def wait_for_the_lease(self, _: TipStore) -> None:
        self._wait(LEASE)

    async def wait_a_day(self, _: TipStore) -> None:
        self._wait(RETENTION)

    def _wait(self, by: timedelta) -> None:
        self.clock.now += by
        self.now += by.total_seconds()

    async def other_body(self, store: TipStore) -> None:
        if self.model and not self._has_expired(self.model):
            with pytest.raises(IdempotencyKeyReused):
                async with store.reserve(IdempotencyKey(self.key, "other"), "u-1", [], LEASE):
                    pass

    async def request(self, store: TipStore) -> None:
        if self.model and self._has_expired(self.model):
            self.model = None
        self.number += 1
        draw, stack = [f"draw-{self.number}"], AsyncExitStack()
        reserving = store.reserve(IdempotencyKey(self.key, "body"), "u-1", draw, LEASE)
        model = self.model = self.model or KeyModel(self.now, draw)
        if model.answer is None and model.leased_by and model.leased_by.expires > self.now:
            with pytest.raises(RequestInProgress):
                await stack.enter_async_context(reserving)
            return
        reserved = await stack.enter_async_context(reserving)
        if model.answer:
            assert isinstance(reserved, TipRecord)
            assert reserved.tip_id == model.answer
            await stack.aclose()
            return
        assert isinstance(reserved, Reservation)
        assert reserved.draw == model.draw
        model.leased_by = Attempt(reserved, stack, self.now + LEASE.total_seconds())
        self.attempts.append(model.leased_by)

    async def answer(self, store: TipStore) -> None:
        if not self.attempts:
            return
        attempt, tip = self.attempts.pop(0), a_tip()
        if self.model and self._has_expired(self.model):  # any request with a key may have deleted its row
            await self._fail(attempt)
        elif self.model and self.model.leased_by is attempt and not self.model.answer:
            await store.add(tip, claim=attempt.reservation.claim)
            self.model.answer = tip.tip_id
            await attempt.stack.aclose()
        else:
            with pytest.raises(RequestInProgress):
                await store.add(tip, claim=attempt.reservation.claim)
            await self._fail(attempt)

    async def fail(self, _: TipStore) -> None:
        if self.attempts:
            attempt = self.attempts.pop(0)
            await self._fail(attempt)
            if self.model and self.model.leased_by is attempt and not self.model.answer:
                self.model.leased_by = None

    async def _fail(self, attempt: Attempt) -> None:
        with suppress(Crashed):
            async with attempt.stack:
                raise Crashed

    async def crash(self, _: TipStore) -> None:
        if self.attempts:
            self.crashed.append(self.attempts.pop(0))  # kept, since the end of its block would release the key

    def _has_expired(self, model: KeyModel) -> bool:
        return self.now - model.first_at >= RETENTION.total_seconds()


STEPS = (
    ["request"] * 4 + ["answer", "fail", "crash", "other_body"] + ["wait_a_little", "wait_for_the_lease", "wait_a_day"]
)


@ON_SQLITE
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), max_size=15))
def test_any_sequence_of_attempts_gives_one_decision(database: Database, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        clock = SetClock()
        async with (
            open_tip_store(database.url, clock, reaction_window=WINDOW) as first,
            open_tip_store(database.url, clock, reaction_window=WINDOW) as second,
        ):
            state = Run([first, second], clock)
            for name, store in steps:
                await state.step(name, store)

    asyncio.run(run())
