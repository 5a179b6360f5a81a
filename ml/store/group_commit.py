"""Group commit: one writer task, which commits all waiting operations in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from ml.platform.errors import Busy, StorageUnavailable

Operation = TypeVar("Operation")

Commit = Callable[[Sequence[Operation]], Awaitable[Sequence[Any]]]
"""Executes operations in one transaction and returns, for each, its result or the exception to raise for it."""


class GroupCommit(Generic[Operation]):
    """Executes operations in the order of their arrival; those that wait at the same time share a transaction."""

    def __init__(self, commit: Commit[Operation], *, max_group: int = 256, max_waiting: int = 8192) -> None:
        self._commit = commit
        self._max_group = max_group
        self._waiting: asyncio.Queue[tuple[Operation, asyncio.Future[Any]]] = asyncio.Queue(max_waiting)
        self._has_ended = False

    async def submit(self, operation: Operation) -> Any:
        """Return the operation's result once it is durable.

        Raises Busy when too many operations wait, StorageUnavailable, which includes that the writer has ended, or the
        operation's own error.
        """
        if self._has_ended:
            raise _writer_has_ended()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((operation, future))
        except asyncio.QueueFull:
            raise Busy("Too many writes wait for the database; it is safe to send this again.", retry_after=1) from None
        return await future

    async def run(self) -> None:
        """Commit operations until cancelled. When it ends, for any reason, all operations fail, later ones too."""
        group: list[tuple[Operation, asyncio.Future[Any]]] = []
        try:
            while True:
                group = [await self._waiting.get()]
                while len(group) < self._max_group and not self._waiting.empty():
                    group.append(self._waiting.get_nowait())
                # A caller that disconnected before the transaction began has cancelled its operation.
                await self._settle([(operation, future) for operation, future in group if not future.done()])
        finally:
            self._has_ended = True
            while not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            for _, future in group:
                if not future.done():
                    future.set_exception(_writer_has_ended())

    async def _settle(self, group: Sequence[tuple[Operation, asyncio.Future[Any]]]) -> None:
        try:
            results: Sequence[Any] = await self._commit([operation for operation, _ in group]) if group else ()
        except Exception as error:  # noqa: BLE001 - raised in the callers; the writer must continue
            if len(group) == 1 or isinstance(error, StorageUnavailable):
                results = [error] * len(group)
            else:  # one operation cannot be stored, which must not fail the others
                for member in group:
                    await self._settle([member])
                return
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _writer_has_ended() -> StorageUnavailable:
    return StorageUnavailable("The service can store nothing until it is restarted.")
