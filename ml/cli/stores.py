"""Access to the stored tips, and to the extra that this needs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError

if TYPE_CHECKING:
    from ml.experiments.decisions import LoggedDecision
    from ml.store.tips import TipStore

T = TypeVar("T")


def with_tip_store(work: Callable[["TipStore"], Awaitable[T]]) -> T:
    """Return the result of `work` with the store of DATABASE_URL."""

    async def open_and_work() -> T:
        with needs_recommender_extra():
            from ml.recommender.settings import RecommenderSettings
            from ml.store.tips import open_tip_store
        url = RecommenderSettings.from_environment().database_url.get_secret_value()
        async with open_tip_store(url, utc_now) as store:
            return await work(store)

    return asyncio.run(open_and_work())


def reaction_window() -> timedelta:
    """Return REACTION_WINDOW_HOURS."""
    with needs_recommender_extra():
        from ml.recommender.settings import RecommenderSettings
    return timedelta(hours=RecommenderSettings.from_environment().reaction_window_hours)


def mature_decisions(*, since: timedelta | None = None, until: timedelta | None = None) -> "list[LoggedDecision]":
    """Return the mature logged decisions whose age is at most `since` and at least `until`."""
    now, window = utc_now(), reaction_window()
    before = now - max(window, until or window)

    async def read(store: "TipStore") -> "list[LoggedDecision]":
        return [decision async for decision in store.decisions(before, None if since is None else now - since)]

    return with_tip_store(read)


@contextmanager
def needs_recommender_extra() -> Iterator[None]:
    """Raise ConfigurationError if an import in the block fails because the `recommender` extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is missing: this needs the `recommender` extra; `tips serve --only serving` does not."
        ) from None
