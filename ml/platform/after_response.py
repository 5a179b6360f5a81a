"""Work that begins once the response to the current request has been sent, so that it cannot delay or change it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_functions: ContextVar[list[Callable[[], None]] | None] = ContextVar("after_response", default=None)


def call_after_response(function: Callable[[], None]) -> None:
    """Call `function`, which must return at once, when the current request has ended; outside of a request, now."""
    functions = _functions.get()
    if functions is None:
        function()
    else:
        functions.append(function)


@contextmanager
def responding() -> Iterator[None]:
    """Send the response to one request in this block; what was registered in it is called when the block ends."""
    functions: list[Callable[[], None]] = []
    token = _functions.set(functions)
    try:
        yield
    finally:
        _functions.reset(token)
        for function in functions:
            function()
