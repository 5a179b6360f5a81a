"""One writer for many callers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from ml.platform.background import run_in_background
from ml.platform.errors import Busy, StorageUnavailable
from ml.store.group_commit import GroupCommit


class Disk:
    """Commits numbers: doubles each; the first commit waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.let_go = asyncio.Event()
        self.began = asyncio.Event()
        self.fails: Exception | None = None

    async def commit(self, numbers: Sequence[int]) -> Sequence[Any]:
        self.began.set()
        await self.let_go.wait()
        self.groups.append([*numbers])
        if self.fails:
            raise self.fails
        if any(number < 0 for number in numbers):
            raise ValueError("poison")
        return [LookupError(number) if number == 13 else 2 * number for number in numbers]


def together(
    work: Callable[[Disk, GroupCommit[int]], Awaitable[None]], *, most_together: int = 256, most_waiting: int = 8192
) -> Disk:
    async def run() -> Disk:
        disk = Disk()
        writer = GroupCommit(disk.commit, most_together=most_together, most_waiting=most_waiting)
        async with run_in_background(writer.run()), asyncio.timeout(10):
            await work(disk, writer)
        return disk

    return asyncio.run(run())


async def all_of(writer: GroupCommit[int], disk: Disk, numbers: Sequence[int]) -> list[Any]:
    """Do the first one, the others while it is being written, and return what became of each."""
    tasks = [asyncio.ensure_future(writer.do(numbers[0]))]
    await disk.began.wait()
    tasks += [asyncio.ensure_future(writer.do(number)) for number in numbers[1:]]
    await asyncio.sleep(0)
    disk.let_go.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_what_comes_while_one_is_written_is_written_together_in_its_order() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        assert await all_of(writer, disk, range(1, 7)) == [2, 4, 6, 8, 10, 12]

    assert together(work).groups == [[1], [2, 3, 4, 5, 6]]


def test_a_group_has_at_most_so_many() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        await all_of(writer, disk, range(1, 7))

    assert together(work, most_together=2).groups == [[1], [2, 3], [4, 5], [6]]


def test_one_that_cannot_be_stored_does_not_harm_its_neighbours() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        one, two, poison, three = await all_of(writer, disk, [1, 2, -1, 3])
        assert (one, two, three) == (2, 4, 6)
        assert isinstance(poison, ValueError)
        assert await writer.do(4) == 8

    assert together(work).groups == [[1], [2, -1, 3], [2], [-1], [3], [4]]


def test_one_that_is_refused_does_not_undo_its_neighbours() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        one, refused, two = await all_of(writer, disk, [1, 13, 2])
        assert (one, two) == (2, 4)
        assert isinstance(refused, LookupError)

    assert together(work).groups == [[1], [13, 2]]


def test_a_database_that_is_away_fails_all_at_once_and_the_writer_goes_on() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        disk.fails = StorageUnavailable("away")
        assert [type(one) for one in await all_of(writer, disk, [1, 2, 3])] == [StorageUnavailable] * 3
        disk.fails = None
        assert await writer.do(4) == 8

    assert together(work).groups == [[1], [2, 3], [4]]


def test_what_nobody_waits_for_any_more_is_not_written() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        first = asyncio.ensure_future(writer.do(1))
        await disk.began.wait()
        gone, kept = asyncio.ensure_future(writer.do(2)), asyncio.ensure_future(writer.do(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        disk.let_go.set()
        assert (await first, await kept) == (2, 6)
        assert gone.cancelled()

    assert together(work).groups == [[1], [3]]


def test_whoever_goes_away_during_the_writing_harms_nobody() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        first = asyncio.ensure_future(writer.do(1))
        await disk.began.wait()
        first.cancel()
        await asyncio.sleep(0)
        disk.let_go.set()
        assert await writer.do(2) == 4

    assert together(work).groups == [[1], [2]]


def test_when_too_many_wait_the_next_one_is_told_at_once() -> None:
    async def work(disk: Disk, writer: GroupCommit[int]) -> None:
        answers = await all_of(writer, disk, range(1, 7))
        assert answers[:3] == [2, 4, 6]
        assert [type(one) for one in answers[3:]] == [Busy] * 3
        with pytest.raises(Busy):
            raise answers[3]

    assert together(work, most_waiting=2).groups == [[1], [2, 3]]
