"""Progress on standard error, if that is a terminal; the output of a scheduled command stays empty."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track

T = TypeVar("T")

_ITEMS_PER_UPDATE = 1_000
"""Updating for every item would take as long as reading some."""


@contextmanager
def working(description: str) -> Iterator[Callable[[int], None]]:
    """Show a description and the elapsed time until the block ends; yield a function that shows a number of items."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), "{task.description}", TextColumn("{task.fields[items]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None, items="")
        yield lambda items: progress.update(task, items=f"{items:,}")


async def counted(description: str, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield the items, and show how many have been yielded."""
    with working(description) as show:
        n = 0
        async for item in items:
            yield item
            n += 1
            if n % _ITEMS_PER_UPDATE == 0:
                show(n)


def tracked(description: str, steps: Iterable[int]) -> Iterable[int]:
    """Yield the steps, and show the share of them that is done and the time that the others will take."""
    console = Console(stderr=True)
    return track([*steps], description, console=console, transient=True, disable=not console.is_terminal)
