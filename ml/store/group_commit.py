"""One writer for many callers: what waits is committed together, and each waits until its own part is durable."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from ml.platform.errors import Busy, StorageUnavailable

Operation = TypeVar("Operation")

Commit = Callable[[Sequence[Operation]], Awaitable[Sequence[Any]]]
"""Do all operations in one transaction and return, for each, its result or the TipsError to raise for it."""


class GroupCommit(Generic[Operation]):
    """Runs operations in the order in which they come, as many in one transaction as have come meanwhile."""

    def __init__(self, commit: Commit[Operation], *, most_together: int = 256, most_waiting: int = 8192) -> None:
        self._commit = commit
        self._most_together = most_together
        self._waiting: asyncio.Queue[tuple[Operation, asyncio.Future[Any]]] = asyncio.Queue(most_waiting)

    async def do(self, operation: Operation) -> Any:
        """Return the operation's result once it is durable.

        Raises Busy when too many wait already, what the operation itself raises, and StorageUnavailable.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((operation, done))
        except asyncio.QueueFull:
            raise Busy("The database does not keep up with what it is given to store.", retry_after=1) from None
        return await done

    async def run(self) -> None:
        """Commit what comes, for ever."""
        while True:
            group = [await self._waiting.get()]
            while len(group) < self._most_together and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            # Whoever went away before the writing began does not want it any more.
            await self._settle([(operation, done) for operation, done in group if not done.done()])

    async def _settle(self, group: Sequence[tuple[Operation, asyncio.Future[Any]]]) -> None:
        try:
            results: Sequence[Any] = await self._commit([operation for operation, _ in group]) if group else ()
        except Exception as error:  # noqa: BLE001 - carried over to whoever awaits; the writer must go on
            if len(group) == 1 or isinstance(error, StorageUnavailable):
                results = [error] * len(group)
            else:  # one of them cannot be stored: the others must not suffer
                for one in group:
                    await self._settle([one])
                return
        for (_, done), result in zip(group, results, strict=True):
            if done.done():
                continue
            if isinstance(result, Exception):
                done.set_exception(result)
            else:
                done.set_result(result)
