"""The aggregates of users as of the starts of days, from the offline store: of each decision, and of all users.

    aggregates   each shown tip, with its user's aggregates as of the start of the day on which it was shown
    snapshots    each user with a tip in the last 37 days, with the aggregates as of the end of the day

Users who have had no tip for 30 days have no aggregates: their rows say so to a join that finds the newest row of a
user that is not too old, as that of Feast.

Both are made of what was known at that time, so a reaction that arrives later changes no file. The source of a file
names the tips that it was made from: a day is computed again if tips were added or deleted, and only then.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ml.features.definitions import AGGREGATES
from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY, REWARD_RATE_PERIOD, Floats, Int64s, aggregates_as_of
from ml.pipelines.user_partitions import TIME, UserPartitions, UserTips, read_day, shown_tips

TIPS_PER_PARTITION = 500_000
_FORMAT = f"1 {' '.join(AGGREGATES)}"
"""Part of each source; with another one, all files are computed again."""
_DAYS = REWARD_RATE_PERIOD // DAY
SNAPSHOT_DAYS = _DAYS + max(aggregate.max_age for aggregate in AGGREGATES.values()).days
"""How old the last tip of a user may be who is in a snapshot."""
_VALUES = [("computed_at", TIME), *((name, pa.float64()) for name in AGGREGATES)]
_TIP = [("tip_id", pa.string()), ("user_id", pa.string()), ("created_at", TIME)]
_DECISIONS = pa.schema([*_TIP, *_VALUES])
SNAPSHOT = pa.schema([("user_id", pa.string()), *_VALUES])
_SHOWN_TIPS = pa.schema([*_TIP, ("shown", pa.bool_())])
_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class CountedTips:
    """Which tips aggregates count: REACTION_WINDOW_HOURS, and whether TIP_EXPOSURE is `reported`."""

    reaction_window: timedelta
    seen_only: bool

    @property
    def source(self) -> str:
        """The part of a file's source that says how it was made."""
        return f"{_FORMAT} window={self.reaction_window // timedelta(microseconds=1)} seen_only={self.seen_only}"

    def aggregates(self, tips: UserTips, users: Int64s, as_of: Int64s) -> Floats:
        """Return the aggregates of users as of times, shape (n, k), in the order of `AGGREGATES`."""
        values = aggregates_as_of(
            tips.tips, users, as_of, reaction_window=self.reaction_window, seen_only=self.seen_only
        )
        return np.column_stack([values[name] for name in AGGREGATES])


class AggregateEngine(Protocol):
    """Computes the aggregates of whole days of an offline store. `step`: is called now and then."""

    def of_decisions(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[Floats]:
        """Yield, for each of these days, the values of its shown tips in their order, shape (n, k)."""

    def of_users(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[pa.Table]:
        """Yield the snapshot of each of these days, with its users in any order."""


def write_decision_aggregates(
    offline: OfflineStore,
    counted: CountedTips,
    *,
    step: Callable[[], None] = lambda: None,
    engine: AggregateEngine | None = None,
) -> None:
    """Write the table `aggregates` of all days with tips; `offline.commit` makes it count.

    `step`: is called after each day and each partition. `engine`: computes them; by default this process.
    """
    engine = engine or LocalEngine()
    sources = {day: f"{counted.source} tips={digest}" for day, digest in _tips_digests(offline, step).items()}
    known = offline.days("aggregates")
    for day in known.keys() - sources.keys():
        offline.remove("aggregates", day)
    new = [day for day, source in sources.items() if day not in known or known[day].source != source]
    for day, values in zip(new, engine.of_decisions(offline, counted, new, step), strict=True):
        tips_of_day = shown_tips(offline, day, _SHOWN_TIPS).drop_columns("shown")
        table = pa.Table.from_arrays([*tips_of_day.columns, *_columns(values, day * DAY)], schema=_DECISIONS)
        offline.replace("aggregates", day, sources[day], _DECISIONS, table.to_batches())
        step()


def write_snapshots(
    offline: OfflineStore,
    counted: CountedTips,
    days: Iterable[int],
    *,
    step: Callable[[], None] = lambda: None,
    engine: AggregateEngine | None = None,
) -> None:
    """Write the table `snapshots` of these days, and again of the days whose file was made from other tips.

    `offline.commit` makes it count. `step`, `engine`: see `write_decision_aggregates`.
    """
    engine = engine or LocalEngine()
    digests = _tips_digests(offline, step)
    known, asked = offline.days("snapshots"), {*days}
    new: dict[int, str] = {}
    for day in sorted({*known, *asked}):
        counts = [digests[before] for before in range(day + 1 - SNAPSHOT_DAYS, day + 1) if before in digests]
        source = f"{counted.source} tips={hashlib.sha256(''.join(counts).encode()).hexdigest()}"
        if not counts and day not in asked:
            offline.remove("snapshots", day)
        elif day not in known or known[day].source != source:
            new[day] = source
    for (day, source), users in zip(new.items(), engine.of_users(offline, counted, [*new], step), strict=True):
        offline.replace("snapshots", day, source, SNAPSHOT, users.sort_by("user_id").to_batches())
        step()


class LocalEngine:
    """Computes aggregates in this process, one partition of users after the other."""

    def of_decisions(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[Floats]:
        with _user_partitions(offline, counted, days_before_decisions(days), step) as partitions:
            for partition, tips in partitions.read():
                asked = np.isin(tips.tips.created_at // DAY, days)
                partitions.write_results(partition, decision_aggregates(tips, counted, asked))
                step()
            yield from partitions.results(days, len(AGGREGATES))

    def of_users(
        self, offline: OfflineStore, counted: CountedTips, days: Sequence[int], step: Callable[[], None]
    ) -> Iterator[pa.Table]:
        with _user_partitions(offline, counted, days_before_snapshots(days), step) as partitions:
            for partition, tips in partitions.read():
                for day, users in snapshots_of_users(tips, counted, days):
                    partitions.write_table(partition, str(day), users)
                step()
            for day in days:
                yield pa.concat_tables([SNAPSHOT.empty_table(), *partitions.tables(str(day))])


def days_before_decisions(days: Iterable[int]) -> set[int]:
    """Return the days whose tips the aggregates of the decisions of some days depend on, these days included."""
    return {before for day in days for before in range(day - _DAYS, day + 1)}


def days_before_snapshots(days: Iterable[int]) -> set[int]:
    """Return the days whose tips the snapshots of some days depend on."""
    return {before for day in days for before in range(day + 1 - SNAPSHOT_DAYS, day + 1)}


def decision_aggregates(tips: UserTips, counted: CountedTips, asked: npt.NDArray[np.bool_]) -> Floats:
    """Return the aggregates of the tips that are asked for, as of the start of the day of each; shape (n, k)."""
    start_of_day = tips.tips.created_at[asked] // DAY * DAY
    return counted.aggregates(tips, tips.tips.user[asked], start_of_day)


def snapshots_of_users(tips: UserTips, counted: CountedTips, days: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield, for each of these days, the rows of these users in its snapshot."""
    n = len(tips.user_ids)
    at_once = 1 + _VALUES_AT_ONCE // n
    for start in range(0, len(days), at_once):
        some = np.array(days[start : start + at_once])
        users, as_of = np.tile(np.arange(n), some.size), np.repeat((some + 1) * DAY, n)
        values = counted.aggregates(tips, users, as_of).reshape(some.size, n, len(AGGREGATES))
        for day, of_day in zip(some.tolist(), values, strict=True):
            age = (day + 1) * DAY - tips.tips.created_at
            is_known = np.zeros(n, np.bool_)
            is_known[tips.tips.user[(age > 0) & (age <= SNAPSHOT_DAYS * DAY)]] = True
            columns = [tips.user_ids.filter(pa.array(is_known)), *_columns(of_day[is_known], (day + 1) * DAY)]
            yield day, pa.Table.from_arrays(columns, schema=SNAPSHOT)


def snapshot(offline: OfflineStore, day: int) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield each user who has aggregates in the snapshot of a day, with those that are not missing."""
    for batch in offline.batches("snapshots", day):
        columns = [batch[name].to_pylist() for name in AGGREGATES]
        for user_id, *values in zip(batch["user_id"].to_pylist(), *columns, strict=True):
            if present := _present(values):
                yield user_id, present


@dataclass(frozen=True, slots=True)
class LoggedAggregates:
    """The aggregates that `/score` used for a tip, and the times of the tip and as of which they had been computed."""

    user_id: str
    created_at: datetime
    aggregates: Mapping[str, float]
    computed_at: datetime


def logged_aggregates(offline: OfflineStore, day: int) -> Iterator[LoggedAggregates]:
    """Yield the aggregates of the shown tips of a day, of those that have some."""
    columns = ["user_id", "created_at", "aggregates", "aggregates_at", "shown"]
    for batch in offline.batches("tip_scores", day, columns):
        for row in batch.filter(pc.and_(batch["shown"], batch["aggregates_at"].is_valid())).to_pylist():
            yield LoggedAggregates(
                row["user_id"], row["created_at"], json.loads(row["aggregates"] or "{}"), row["aggregates_at"]
            )


def recomputed(
    offline: OfflineStore, logged: Sequence[LoggedAggregates], counted: CountedTips
) -> list[Mapping[str, float]]:
    """Return the aggregates that `/score` must have used for these tips, in order; equal to the last bit.

    Computed from the log, as of the times at which the used ones were; without those that were too old when the tip was
    created. Memory holds all tips of these users in the 30 days before.
    """
    if not logged:
        return []
    as_of = pa.array([each.computed_at for each in logged], TIME).cast(pa.int64()).to_numpy()
    user_ids = pa.array([each.user_id for each in logged], pa.string())
    days = range(int(as_of.min() // DAY) - _DAYS, int(as_of.max() // DAY) + 1)
    users = user_ids.unique()
    of_days = [read_day(offline, day, with_exposures=counted.seen_only, user_ids=users) for day in days]
    tips = UserTips.concatenated(of_days)
    users = pc.index_in(user_ids, value_set=tips.user_ids)
    # A user without tips is not in the time line: the index after the last one has no aggregates.
    values = counted.aggregates(tips, users.fill_null(len(tips.user_ids)).to_numpy().astype(np.int64), as_of)
    return [
        _present([None if np.isnan(value) else value for value in row], each.created_at - each.computed_at)
        for row, each in zip(values.tolist(), logged, strict=True)
    ]


def _present(values: Sequence[float | None], age: timedelta = timedelta()) -> dict[str, float]:
    """Return the values that are not missing, by the name of the aggregate, unless they are too old at this age."""
    return {
        name: value
        for (name, aggregate), value in zip(AGGREGATES.items(), values, strict=True)
        if value is not None and age <= aggregate.max_age
    }


@contextmanager
def _user_partitions(
    offline: OfflineStore, counted: CountedTips, days: Collection[int], step: Callable[[], None]
) -> Iterator[UserPartitions]:
    """Yield these days by user, until the block ends."""
    files = {day: file for day, file in offline.days("tip_scores").items() if day in days}
    n = 1 + sum(file.rows for file in files.values()) // TIPS_PER_PARTITION
    with TemporaryDirectory(prefix="tips-") as folder, UserPartitions(Path(folder), n) as partitions:
        for day in files:
            partitions.add(day, read_day(offline, day, with_exposures=counted.seen_only))
            step()
        yield partitions


def _columns(values: Floats, computed_at: int) -> list[pa.Array]:
    """Return the columns of `_VALUES`."""
    times = pa.array(np.full(len(values), computed_at), pa.int64()).cast(TIME)
    return [times, *(pa.array(column, from_pandas=True) for column in values.T)]  # NaN becomes null


def _tips_digests(offline: OfflineStore, step: Callable[[], None]) -> dict[int, str]:
    """Return the SHA-256 of the ids of the shown tips of each day."""
    digests = {}
    for day in offline.days("tip_scores"):
        digest = hashlib.sha256()
        for batch in offline.batches("tip_scores", day, ["tip_id", "shown"]):
            ids = batch["tip_id"].filter(batch["shown"])
            if len(ids):
                digest.update(ids.buffers()[2][: 36 * len(ids)])
        digests[day] = digest.hexdigest()
        step()
    return digests
