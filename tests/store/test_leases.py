"""A lease has one holder at a time, until it gives it up or stops renewing it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from ml.store.database import Database as OpenDatabase
from ml.store.leases import Lease
from tests.databases import Database
from tests.example_tips import NOW

MINUTE = timedelta(minutes=1)


@asynccontextmanager
async def replicas(database: Database, count: int, name: str = "monitor") -> AsyncIterator[list[Lease]]:
    stores = [OpenDatabase(database.url) for _ in range(count)]
    try:
        yield [Lease(store, name, f"replica-{number}", MINUTE) for number, store in enumerate(stores)]
    finally:
        for store in stores:
            await store.close()


def test_a_lease_is_kept_by_renewing_it_and_taken_over_when_it_ends(database: Database) -> None:
    async def run() -> None:
        async with replicas(database, 2) as (first, second):
            assert await first.acquire(NOW)
            assert not await second.acquire(NOW + MINUTE / 2)
            assert await first.acquire(NOW + MINUTE / 2)
            assert not await second.acquire(NOW + MINUTE)  # it was renewed
            assert await second.acquire(NOW + 1.5 * MINUTE)
            assert not await first.acquire(NOW + 1.5 * MINUTE)

    asyncio.run(run())
    assert database.count("leases") == 1


def test_only_the_holder_gives_a_lease_up(database: Database) -> None:
    async def run() -> None:
        async with replicas(database, 2) as (first, second), replicas(database, 1, "another task") as (other,):
            assert await first.acquire(NOW)
            await second.release()
            await other.release()
            assert not await second.acquire(NOW)
            assert await other.acquire(NOW)
            await first.release()
            assert await second.acquire(NOW)

    asyncio.run(run())


def test_one_of_many_replicas_gets_a_lease_also_while_it_is_given_up(database: Database) -> None:
    async def run() -> None:
        async with replicas(database, 6) as leases:
            holder = leases[0]
            for number in range(8):
                now = NOW + 2 * number * MINUTE
                others = [lease for lease in leases if lease is not holder]
                assert await holder.acquire(now)
                *taken, _ = await asyncio.gather(*(lease.acquire(now) for lease in others), holder.release())
                assert sum(map(bool, taken)) <= 1
                held = await asyncio.gather(*(lease.acquire(now + MINUTE) for lease in leases))
                assert sum(held) == 1
                holder = leases[held.index(True)]

    asyncio.run(run())
