"""One writer for many concurrent callers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from ml.platform.background import BackgroundTasks
from ml.platform.errors import Busy, NotReady, StorageUnavailable
from ml.store.group_commit import GroupCommit


class Disk:
    """A disk on which committing a number doubles it; the first commit blocks until `released` is set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.released = asyncio.Event()
        self.began = asyncio.Event()
        self.failure: Exception | None = None

    async def commit(self, numbers: Sequence[int]) -> Sequence[Any]:
        self.began.set()
        await self.released.wait()
        self.groups.append([*numbers])
        if self.failure:
            raise self.failure
        if any(number < 0 for number in numbers):
            raise ValueError("poison")
        return [LookupError(number) if number == 13 else 2 * number for number in numbers]


def run_with_writer(
    work: Callable[[Disk, GroupCommit[int]], Awaitable[None]], *, max_group: int = 256, max_waiting: int = 8192
) -> Disk:
    """Run `work` with a writer on a new disk; return the disk."""

    async def run() -> Disk:
        disk = Disk()
        writer = GroupCommit(disk.commit, max_group=max_group, max_waiting=max_waiting)
        async with BackgroundTasks().run("writer", writer.run()), asyncio.timeout(60):
            await work(disk, writer)
        return disk

    return asyncio.run(run())


async def submit_all(writer: GroupCommit[int], disk: Disk, numbers: Sequence[int]) -> list[Any]:
    """Submit the first number, and the other ones during its commit; return the result or exception of each."""
    tasks = [asyncio.ensure_future(writer.submit(numbers[0]))]
    await disk.began.wait()
    tasks += [asyncio.ensure_future(writer.submit(number)) for number in numbers[1:]]
    await asyncio.sleep(0)
    disk.released.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_operations_that_arrive_during_a_commit_are_committed_together_in_order() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        assert await submit_all(writer, disk, range(1, 7)) == [2, 4, 6, 8, 10, 12]

    assert run_with_writer(work).groups == [[1], [2, 3, 4, 5, 6]]


def test_a_group_has_a_maximum_size() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        await submit_all(writer, disk, range(1, 7))

    assert run_with_writer(work, max_group=2).groups == [[1], [2, 3], [4, 5], [6]]


def test_an_operation_that_cannot_be_stored_does_not_fail_the_other_operations() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        one, two, poison, three = await submit_all(writer, disk, [1, 2, -1, 3])
        assert (one, two, three) == (2, 4, 6)
        assert isinstance(poison, ValueError)
        assert await writer.submit(4) == 8

    assert run_with_writer(work).groups == [[1], [2, -1, 3], [2], [-1], [3], [4]]


def test_an_operation_that_is_refused_does_not_undo_the_other_operations() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        one, refused, two = await submit_all(writer, disk, [1, 13, 2])
        assert (one, two) == (2, 4)
        assert isinstance(refused, LookupError)

    assert run_with_writer(work).groups == [[1], [13, 2]]


def test_an_unavailable_database_fails_the_whole_group_and_the_writer_continues() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        disk.failure = StorageUnavailable("unavailable")
        assert [type(result) for result in await submit_all(writer, disk, [1, 2, 3])] == [StorageUnavailable] * 3
        disk.failure = None
        assert await writer.submit(4) == 8

    assert run_with_writer(work).groups == [[1], [2, 3], [4]]


def test_an_operation_that_is_cancelled_while_it_waits_is_not_committed() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        first = asyncio.ensure_future(writer.submit(1))
        await disk.began.wait()
        cancelled, kept = asyncio.ensure_future(writer.submit(2)), asyncio.ensure_future(writer.submit(3))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        disk.released.set()
        assert (await first, await kept) == (2, 6)
        assert cancelled.cancelled()

    assert run_with_writer(work).groups == [[1], [3]]


def test_a_cancellation_during_the_commit_does_not_affect_later_operations() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        first = asyncio.ensure_future(writer.submit(1))
        await disk.began.wait()
        first.cancel()
        await asyncio.sleep(0)
        disk.released.set()
        assert await writer.submit(2) == 4

    assert run_with_writer(work).groups == [[1], [2]]


def test_when_too_many_operations_wait_the_next_one_is_refused_at_once() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        results = await submit_all(writer, disk, range(1, 7))
        assert results[:3] == [2, 4, 6]
        assert [type(result) for result in results[3:]] == [Busy] * 3
        with pytest.raises(Busy) as refused:
            raise results[3]
        assert refused.value.detail == "Too many writes wait for the database; it is safe to send this again."

    assert run_with_writer(work, max_waiting=2).groups == [[1], [2, 3]]


async def submit_and_kill(disk: Disk, writer: GroupCommit[int], kill: Callable[[], None]) -> list[Any]:
    """Submit one operation, and two during its commit; kill the writer, and return the exceptions of all three."""
    tasks = [asyncio.ensure_future(writer.submit(1))]
    await disk.began.wait()
    tasks += [asyncio.ensure_future(writer.submit(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    kill()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("cause", ["cancelled", "wrong number of results"])
def test_when_the_writer_ends_all_operations_fail_and_none_waits(cause: str) -> None:
    async def run() -> None:
        disk = Disk()
        background = BackgroundTasks()

        async def commit(numbers: Sequence[int]) -> Sequence[Any]:
            return [*await disk.commit(numbers), "one too many"]

        writer = GroupCommit(disk.commit if cause == "cancelled" else commit)
        async with background.run("writer", writer.run()), asyncio.timeout(60):

            def kill() -> None:
                if cause == "cancelled":
                    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "writer"]
                    task.cancel()
                else:
                    disk.released.set()

            first, *waiting = await submit_and_kill(disk, writer, kill)
            assert [type(error) for error in waiting] == [StorageUnavailable] * 2
            assert first == 2 or isinstance(first, StorageUnavailable)
            with pytest.raises(StorageUnavailable, match="until it is restarted"):
                await writer.submit(4)
            with pytest.raises(NotReady, match="writer"):
                await background.check_ready()

    asyncio.run(run())
