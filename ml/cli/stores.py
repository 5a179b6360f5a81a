"""Access to the stored tips, and to the extra that this needs."""

import asyncio
import math
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ml.cli.engines import spark_engine
from ml.cli.progress import working
from ml.pipelines.settings import PipelineSettings
from ml.platform.clock import utc_now
from ml.platform.errors import StorageUnavailable, TipsError
from ml.platform.settings import ConfigurationError

if TYPE_CHECKING:
    from ml.features.offline_store import OfflineStore
    from ml.pipelines.offline_log import OfflineDecisionLog
    from ml.pipelines.training import TrainingData
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


def decision_log() -> "OfflineDecisionLog":
    """Export the tips of DATABASE_URL to OFFLINE_STORE, and return the decision log there, by TIP_EXPOSURE."""
    store = open_offline_store()
    with_tip_store(_is_ready)  # so that the tips were counted with this reaction window
    with using_offline_store(), working("Exporting days") as show:
        from ml.pipelines.export import export
        from ml.pipelines.offline_log import OfflineDecisionLog

        export(database_url(), store, show=show)
        return OfflineDecisionLog(store, seen_only=exposure_reported())


def mature_period(*, since: timedelta | None = None, until: timedelta | None = None) -> tuple[float, float]:
    """Return from when to when tips are mature, and at most `since` and at least `until` old, in Unix seconds."""
    now, window = utc_now(), reaction_window()
    return (now - since).timestamp() if since else -math.inf, (now - max(window, until or window)).timestamp()


def training_data(log: "OfflineDecisionLog", since: float, before: float) -> "TrainingData":
    """Return the decisions of a period as sums; those of whole days are stored, computed on all cores or by Spark.

    Of a log with more than `MAX_ROWS` rows, only a share is used.
    """
    with using_offline_store(), spark_engine() as spark:
        from ml.experiments.regression_statistics import MAX_ROWS
        from ml.pipelines import training
        from ml.pipelines.cached_statistics import cached_statistics

        compute = spark.store_statistics if spark else None
        log = log.bounded(MAX_ROWS)
        statistics = partial(cached_statistics, log, processes=os.cpu_count() or 1, compute=compute)
        try:
            return training.training_data(log, since=since, before=before, days_of=statistics, share=log.share)
        except BrokenProcessPool:
            sys.exit("A process was killed, perhaps for lack of memory. Run this again: the finished days are kept.")


async def _is_ready(_: "TipStore") -> None:
    """Do nothing: opening the store has checked it."""


@contextmanager
def needs_recommender_extra() -> Iterator[None]:
    """Raise ConfigurationError if an import in the block fails because the `recommender` extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is missing: this needs the `recommender` extra; `tips serve --only serving` does not."
        ) from None


@contextmanager
def using_offline_store() -> Iterator[None]:
    """Raise ConfigurationError if the block needs the `pipelines` extra, or if the offline store fails."""
    try:
        from ml.features.offline_store import OfflineStoreUnavailable
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is missing: this needs the `pipelines` extra.") from None
    try:
        yield
    except OfflineStoreUnavailable as error:
        raise ConfigurationError(f"OFFLINE_STORE: {error}.") from None
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is missing: this needs the `pipelines` extra.") from None


def open_offline_store() -> "OfflineStore":
    """Open the store of OFFLINE_STORE. Raises ConfigurationError."""
    with using_offline_store():
        from ml.features.offline_store import OfflineStore

        return OfflineStore.open(PipelineSettings.from_environment().offline_store)


def existing_offline_store() -> "OfflineStore | None":
    """Open the store of OFFLINE_STORE, if there is one; without it, the `pipelines` extra is not needed."""
    url = PipelineSettings.from_environment().offline_store
    if "://" not in url and not Path(url).is_dir():
        return None
    store = open_offline_store()
    return store if store.exists else None


@contextmanager
def deleting_offline(database: str) -> Iterator[None]:
    """Exit with a message that says what is left to do, if the block, which follows a deletion, fails."""
    try:
        with using_offline_store():
            yield
    except (ConfigurationError, TipsError) as error:
        sys.exit(f"The data is removed from {database}, but not from OFFLINE_STORE; run this again. {error}")


def database_url() -> str:
    """Return DATABASE_URL."""
    return recommender_settings().database_url.get_secret_value()


def recommender_settings() -> "RecommenderSettings":
    """Return the settings of the recommender."""
    with needs_recommender_extra():
        from ml.recommender.settings import RecommenderSettings
    return RecommenderSettings.from_environment()
