"""Access to the stored tips, and to the extra that this needs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from ml.cli.progress import counted
from ml.platform.clock import utc_now
from ml.platform.errors import StorageUnavailable
from ml.platform.settings import ConfigurationError

if TYPE_CHECKING:
    from ml.experiments.decisions import LoggedDecision
    from ml.recommender.settings import RecommenderSettings
    from ml.store.tips import TipStore

T = TypeVar("T")


def database_name() -> str:
    """Return the name of the database of DATABASE_URL: the path of its file, or the URL without the password.

    Raises ConfigurationError if it is an SQLite file that does not exist or is not a database of tips: a command that
    works on stored tips never creates one.
    """
    with needs_recommender_extra():
        from ml.store.database import existing_database
    return existing_database(database_url())


def with_tip_store(work: Callable[["TipStore"], Awaitable[T]]) -> T:
    """Return the result of `work` with the store of DATABASE_URL, which must exist."""
    database = database_name()

    async def open_and_work() -> T:
        with needs_recommender_extra():
            from ml.store.tips import open_tip_store
        async with open_tip_store(database_url(), utc_now, reaction_window=reaction_window()) as store:
            return await work(store)

    try:
        return asyncio.run(open_and_work())
    except StorageUnavailable:
        raise ConfigurationError(f"DATABASE_URL: {database} is locked, full or cannot be reached.") from None


def reaction_window() -> timedelta:
    """Return REACTION_WINDOW_HOURS."""
    return recommender_settings().reaction_window


def exposure_reported() -> bool:
    """Return whether TIP_EXPOSURE is `reported`, so that only tips that were seen count."""
    return recommender_settings().exposure_reported


def mature_decisions(*, since: timedelta | None = None, until: timedelta | None = None) -> "list[LoggedDecision]":
    """Return the mature logged decisions whose age is at most `since` and at least `until`, by TIP_EXPOSURE."""
    now, window = utc_now(), reaction_window()
    return decisions_between(None if since is None else now - since, now - max(window, until or window))


def decisions_between(since: datetime | None, before: datetime) -> "list[LoggedDecision]":
    """Return the logged decisions from `since` (included; None: the first) to `before` (excluded), by TIP_EXPOSURE."""
    seen_only = exposure_reported()

    async def read(store: "TipStore") -> "list[LoggedDecision]":
        decisions = store.decisions(before, since, seen_only=seen_only)
        return [decision async for decision in counted("Reading decisions", decisions)]

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


def database_url() -> str:
    """Return DATABASE_URL."""
    return recommender_settings().database_url.get_secret_value()


def recommender_settings() -> "RecommenderSettings":
    """Return the settings of the recommender."""
    with needs_recommender_extra():
        from ml.recommender.settings import RecommenderSettings
    return RecommenderSettings.from_environment()
