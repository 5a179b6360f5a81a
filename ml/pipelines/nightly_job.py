"""The settings and the stores of the nightly job, which its steps share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ml.features.offline_store import OfflineStore, start_of_day
from ml.pipelines.aggregates import AggregateEngine, CountedTips
from ml.pipelines.cached_statistics import StoreStatistics
from ml.pipelines.nightly_files import NightFiles
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.platform.clock import Clock
from ml.store.database import Database, run_once

T = TypeVar("T")


class NothingToLearn(Exception):
    """There are no tips to learn from yet; the message is one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class NightlyJob:
    """The settings and the stores that all steps share.

    `database_url`: of the tips. `offline`: the offline store. `counted`: which tips count. `policy_name`: of the
    policy, and of the registered model. `tracking_uri`: of MLflow. `online_store_url`: None without one. `contact`:
    whom to ask about the policy. `release`: of this program; another one trains again. `processes`: the number of those
    that compute statistics. `aggregate_engine`, `store_statistics`: compute on a cluster; None: on this machine.
    """

    database_url: str = field(repr=False)
    offline: OfflineStore
    counted: CountedTips
    policy_name: str
    tracking_uri: str
    release: str
    clock: Clock
    online_store_url: str | None = field(default=None, repr=False)
    contact: str | None = None
    processes: int = 1
    aggregate_engine: AggregateEngine | None = None
    store_statistics: StoreStatistics | None = None

    def files(self, day: int) -> NightFiles:
        """Return the files of a night."""
        return NightFiles(self.offline, day)

    @property
    def log(self) -> OfflineDecisionLog:
        """The decision log in the offline store."""
        return OfflineDecisionLog(self.offline, seen_only=self.counted.seen_only)

    def mature_before(self, day: int) -> float:
        """Return the time before which tips are mature at the end of a day, in Unix seconds."""
        return (start_of_day(day + 1) - self.counted.reaction_window).timestamp()

    def in_database(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """Return the result of work with the database. Raises ConfigurationError if it cannot be reached."""
        return run_once(self.database_url, work)
