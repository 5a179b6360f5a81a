"""The tips of the offline store by user: days are read one after the other and split into partitions of users on disk.

So memory holds one day, and later one partition, of a log of any size. A partition has all tips of its users.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import NEVER, Floats, Int64s, TipTimeline, reward_changes

TIME = pa.timestamp("us", "UTC")
_TIPS = pa.schema([("tip_id", pa.string()), ("user_id", pa.string()), ("created_at", TIME), ("shown", pa.bool_())])
_REACTIONS = pa.schema(
    [("tip_id", pa.string()), ("at", TIME), ("reaction", pa.string()), ("reward", pa.float64()), ("received_at", TIME)]
)
_EXPOSURES = pa.schema([("tip_id", pa.string()), ("received_at", TIME)])
_IDS = pa.schema([("user_id", pa.string())])


@dataclass(frozen=True, slots=True, eq=False)
class UserTips:
    """Tips with the ids of their users: `tips.user` is an index of `user_ids`, an array of different strings."""

    user_ids: pa.Array
    tips: TipTimeline

    @classmethod
    def of(cls, tips: pa.Table, reactions: pa.Table, exposures: pa.Table) -> Self:
        """Return tips, in their order, with their reactions and exposures; those of other tips are ignored.

        The tables have the columns of the offline store that `read_day` reads.
        """
        users = tips["user_id"].combine_chunks().dictionary_encode()
        tip_ids = tips["tip_id"].combine_chunks()
        exposed_tip, exposures = _with_tips(exposures, tip_ids)
        exposed_at = np.full(len(tip_ids), NEVER)
        exposed_at[exposed_tip] = _integers(exposures["received_at"])
        reacted_tip, reactions = _with_tips(reactions, tip_ids)
        kinds = reactions["reaction"].combine_chunks().dictionary_encode()
        names = kinds.dictionary.to_pylist()
        rank = np.array([sorted(names).index(name) for name in names], np.int64)
        changes = reward_changes(
            reacted_tip,
            _integers(reactions["at"]),
            rank[kinds.indices.to_numpy()],
            _integers(reactions["received_at"]),
            reactions["reward"].to_numpy(),
        )
        indices = users.indices.to_numpy().astype(np.int64)
        return cls(users.dictionary, TipTimeline(indices, _integers(tips["created_at"]), exposed_at, *changes))

    @classmethod
    def concatenated(cls, parts: Sequence[Self]) -> Self:
        """Return all tips, in their order, of which each user has one index."""
        all_ids = pa.chunked_array([part.user_ids for part in parts], pa.string()).combine_chunks().dictionary_encode()
        index, first_id, first_tip = all_ids.indices.to_numpy().astype(np.int64), 0, 0
        users, changed_tips = [], []
        for part in parts:
            users.append(index[first_id : first_id + len(part.user_ids)][part.tips.user])
            changed_tips.append(part.tips.changed_tip + first_tip)
            first_id, first_tip = first_id + len(part.user_ids), first_tip + part.tips.user.size
        tips = [part.tips for part in parts]
        return cls(
            all_ids.dictionary,
            TipTimeline(
                _joined(users),
                _joined([each.created_at for each in tips]),
                _joined([each.exposed_at for each in tips]),
                _joined(changed_tips),
                _joined([each.changed_at for each in tips]),
                _joined([each.change for each in tips]),
            ),
        )


def read_day(offline: OfflineStore, day: int, *, with_exposures: bool, user_ids: pa.Array | None = None) -> UserTips:
    """Return the shown tips of a day, in their order; those of some users only if `user_ids` are given."""
    tips = shown_tips(offline, day, _TIPS)
    if user_ids is not None:
        tips = tips.filter(pc.is_in(tips["user_id"], value_set=user_ids))
    reactions = _read(offline, "reactions", day, _REACTIONS)
    exposures = _read(offline, "exposures", day, _EXPOSURES) if with_exposures else _EXPOSURES.empty_table()
    return UserTips.of(tips, reactions, exposures)


def shown_tips(offline: OfflineStore, day: int, schema: pa.Schema) -> pa.Table:
    """Return columns of the shown tips of a day, in their order. `schema`: with the column `shown`."""
    tips = _read(offline, "tip_scores", day, schema)
    return tips.filter(tips["shown"])


class UserPartitions:
    """Partitions of users in the files of a folder, and results for some of their tips.

    Days are added in their order; then each partition is read and its results are written; then the results of days are
    read, in the order of days.
    """

    def __init__(self, folder: Path, n: int) -> None:
        self._folder = folder
        self._n = n
        self._sizes: list[list[_Sizes]] = [[] for _ in range(n)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._ids = [
            self._stack.enter_context(pa.ipc.new_stream(str(self._folder / f"{partition}.ids"), _IDS))
            for partition in range(self._n)
        ]
        self._tips = self._open("tips")
        self._results = self._open("results")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, day: int, of_day: UserTips) -> None:
        """Add the tips of a day."""
        tips = of_day.tips
        users = _Split(_partitions(of_day.user_ids, self._n), self._n)
        by_tip = _Split(users.partitions[tips.user], self._n)
        by_change = _Split(by_tip.partitions[tips.changed_tip], self._n)
        (self._folder / f"{day}.day").write_bytes(by_tip.partitions.tobytes())
        ids = of_day.user_ids.take(pa.array(users.order))
        of_tips = [values[by_tip.order] for values in (users.index[tips.user], tips.created_at, tips.exposed_at)]
        changes = (by_tip.index[tips.changed_tip], tips.changed_at, tips.change)
        of_changes = [values[by_change.order] for values in changes]
        for partition, (in_users, in_tips, in_changes) in enumerate(
            zip(users.slices(), by_tip.slices(), by_change.slices(), strict=True)
        ):
            sizes = _Sizes(*(each.stop - each.start for each in (in_users, in_tips, in_changes)))
            if sizes.tips:
                self._sizes[partition].append(sizes)
                self._ids[partition].write_batch(pa.record_batch([ids[in_users]], schema=_IDS))
                for values in (*(each[in_tips] for each in of_tips), *(each[in_changes] for each in of_changes)):
                    self._tips[partition].write(values.data)

    def read(self) -> Iterator[tuple[int, UserTips]]:
        """Yield each partition that is not empty, with its number."""
        for writer in self._ids:
            writer.close()
        for partition, file in enumerate(self._tips):
            file.seek(0)
            with pa.ipc.open_stream(str(self._folder / f"{partition}.ids")) as ids:
                parts = [
                    UserTips(ids.read_next_batch()["user_id"], _read_timeline(file, sizes))
                    for sizes in self._sizes[partition]
                ]
            if parts:
                yield partition, UserTips.concatenated(parts)

    def write_results(self, partition: int, results: Floats) -> None:
        """Write results, shape (n, k), of the tips of some days of a partition, in their order."""
        self._results[partition].write(np.ascontiguousarray(results).data)

    def results(self, days: Iterable[int], k: int) -> Iterator[Floats]:
        """Yield the results of each of these days, which are all that have some; shape (n, k), in the order of tips."""
        for file in self._results:
            file.seek(0)
        for day in days:
            by_tip = _Split(np.frombuffer((self._folder / f"{day}.day").read_bytes(), np.int32), self._n)
            results = np.empty((by_tip.order.size, k))
            for file, rows in zip(self._results, by_tip.slices(), strict=True):
                n = rows.stop - rows.start
                results[by_tip.order[rows]] = np.frombuffer(file.read(8 * n * k)).reshape(n, k)
            yield results

    def write_table(self, partition: int, name: str, table: pa.Table) -> None:
        """Write a table of a partition."""
        with pa.ipc.new_file(str(self._folder / f"{partition}.{name}.table"), table.schema) as writer:
            writer.write_table(table)

    def tables(self, name: str) -> Iterator[pa.Table]:
        """Yield the tables of this name, of all partitions."""
        for file in sorted(self._folder.glob(f"*.{name}.table")):
            with pa.ipc.open_file(str(file)) as reader:
                yield reader.read_all()

    def _open(self, kind: str) -> list[BinaryIO]:
        files = [self._folder / f"{partition}.{kind}" for partition in range(self._n)]
        return [self._stack.enter_context(file.open("w+b")) for file in files]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The part of a day in a partition."""

    users: int
    tips: int
    changes: int


class _Split:
    """How things are split into partitions. `order`: all of them, by partition; `index`: of each in its partition."""

    def __init__(self, partitions: npt.NDArray[np.int32], n: int) -> None:
        self.partitions = partitions
        self.order = np.argsort(partitions, kind="stable")
        self._ends = np.cumsum(np.bincount(partitions, minlength=n))
        self.index = np.empty(partitions.size, np.int64)
        self.index[self.order] = np.arange(partitions.size)
        self.index -= np.concatenate([[0], self._ends[:-1]])[partitions]

    def slices(self) -> Iterator[slice]:
        """Yield the place of each partition in `order`."""
        start = 0
        for end in self._ends.tolist():
            yield slice(start, end)
            start = end


def _partitions(user_ids: pa.Array, n: int) -> npt.NDArray[np.int32]:
    """Return the partition of each user, by a hash of the id."""
    if n == 1:
        return np.zeros(len(user_ids), np.int32)
    hashes = np.fromiter(map(crc32, user_ids.cast(pa.binary()).to_pylist()), np.uint32, len(user_ids))
    return (hashes % n).astype(np.int32)


def _read_timeline(file: BinaryIO, sizes: _Sizes) -> TipTimeline:
    n = 3 * [sizes.tips] + 3 * [sizes.changes]
    return TipTimeline(*(np.frombuffer(file.read(8 * rows), np.int64) for rows in n))


def _read(offline: OfflineStore, table: str, day: int, schema: pa.Schema) -> pa.Table:
    batches = [*offline.batches(table, day, schema.names)]
    return pa.Table.from_batches(batches).select(schema.names) if batches else schema.empty_table()


def _with_tips(rows: pa.Table, tip_ids: pa.Array) -> tuple[Int64s, pa.Table]:
    """Return the rows of these tips, with the index of the tip of each."""
    index = pc.index_in(rows["tip_id"].combine_chunks(), value_set=tip_ids)
    return index.drop_null().to_numpy().astype(np.int64), rows.filter(index.is_valid())


def _integers(times: pa.ChunkedArray) -> Int64s:
    integers: Int64s = times.cast(pa.int64()).to_numpy()
    return integers


def _joined(arrays: Sequence[Int64s]) -> Int64s:
    return np.concatenate([np.empty(0, np.int64), *arrays])
