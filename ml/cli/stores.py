"""What commands that work on stored tips have in common: the store, ages, and the extra that they need."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import typer

from ml.platform.settings import ConfigurationError
from ml.recommender.settings import RecommenderSettings

if TYPE_CHECKING:
    from ml.store.tips import TipStore

T = TypeVar("T")


def age(text: str) -> timedelta:
    """Read an age, such as 90d or 36h."""
    found = re.fullmatch(r"([0-9]{1,5})([dh])", text)
    if not found:
        raise typer.BadParameter("should be a number of days or hours, such as 90d or 36h")
    return timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})


def in_store(work: Callable[["TipScores"], Awaitable[T]]) -> T:
    """Do something with the store of DATABASE_URL."""

    async def open_and_work() -> T:
        with recommender_extra():
            from ml.store.tips import open_tip_store
        url = RecommenderSettings.from_environment().database_url.get_secret_value()
        async with open_tip_store(url, lambda: datetime.now(UTC)) as store:
            return await work(store)

    return asyncio.run(open_and_work())


@contextmanager
def recommender_extra() -> Iterator[None]:
    """Around the imports of what only the recommender needs: serving and writing tips go without."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is missing: this needs the `recommender` extra; `tips serve --only serving` does not."
        ) from None
