"""The decision log of the offline store: logged decisions with their rewards and the aggregates of their users.

A day of the table `tip_scores` is read in row groups, so the memory does not depend on the number of rows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import pyarrow as pa

from ml.experiments.decisions import DAY_SECONDS, LoggedDecision, NewestPrompts, PromptUse, prompt_uses
from ml.features.definitions import AGGREGATES
from ml.features.offline_store import OfflineFile, OfflineStore
from ml.pipelines.decision_rows import (
    COLUMNS,
    MICROSECONDS,
    PROMPT_COLUMNS,
    decisions_of,
    extreme_uses,
    objects_of,
    sampled_rows,
    times_of,
)

TIPS, AGGREGATES_TABLE = "tip_scores", "aggregates"
CHUNK_ROWS = 4_096
"""Rows of a table in memory at a time, apart from a row group of the file."""


class OfflineDecisionLog:
    """The decisions of an offline store, in the order of (`at`, `id`).

    Tips of policies that draw no version and tips of a fallback model are left out; with `seen_only`, also tips that
    were not seen within the reaction window; and decisions of which a candidate is missing. The aggregates of a
    decision are those that were logged, or else those of the table `aggregates`, if its day has them. `chunk_rows`: the
    rows in memory at a time, which change no result. All methods raise OfflineStoreUnavailable.
    """

    def __init__(
        self, store: OfflineStore, *, seen_only: bool, chunk_rows: int = CHUNK_ROWS, share: float = 1.0
    ) -> None:
        """`share`: of the decisions, in (0, 1], by a hash of their ids: always the same ones."""
        self.store = store
        self.seen_only = seen_only
        self._chunk_rows = chunk_rows
        self.share = share

    def sample(self, share: float) -> Self:
        """Return the log of a share of the decisions, in (0, 1], chosen by a hash of their ids."""
        return type(self)(self.store, seen_only=self.seen_only, chunk_rows=self._chunk_rows, share=share)

    def bounded(self, max_rows: int) -> Self:
        """Return the log of the largest share of half, a quarter, … that has at most so many rows; all if it has.

        The share changes when the rows double, so what was computed of earlier days stays valid most of the time.
        """
        rows, share = sum(file.rows for file, _ in self.days().values()), self.share
        while rows * share > max_rows:
            share /= 2
        return self.sample(share)

    def days(self) -> Mapping[int, tuple[OfflineFile, OfflineFile | None]]:
        """Return the files that each day (since 1970) is read from: its tips, and their aggregates if there are any."""
        aggregates = self.store.days(AGGREGATES_TABLE)
        return {day: (file, aggregates.get(day)) for day, file in self.store.days(TIPS).items()}

    def chunks(self, since: float = -math.inf, before: float = math.inf) -> Iterator[Sequence[LoggedDecision]]:
        """Yield the decisions of a period, in Unix seconds; see `DecisionLog`."""
        for day in self._days_between(since, before):
            for chunk in self.decisions_of_day(day):
                if chunk[0].at >= since and chunk[-1].at < before:
                    yield chunk
                elif selected := [decision for decision in chunk if since <= decision.at < before]:
                    yield selected

    def decisions_of_day(self, day: int) -> Iterator[Sequence[LoggedDecision]]:
        """Yield the decisions of a day in chunks of at least one decision."""
        aggregates = _AggregatesOfDay(self.store, day)
        for whole in self._blocks(day, COLUMNS):
            block = whole if self.share == 1 else sampled_rows(whole, self.share)
            if not block.num_rows:
                continue
            times = times_of(block)
            aggregates.go_to(int(times[0]), int(times[-1]))
            if decisions := decisions_of(block, self.seen_only, aggregates.of_tip):
                yield decisions

    def newest_prompts(self, since: float = -math.inf, before: float = math.inf) -> NewestPrompts:
        """Return the newest digests of the prompt versions of a period; it reads few columns."""

        return NewestPrompts.of_uses(
            use for day in self._days_between(since, before) for use in self._prompt_uses(day, since, before)
        )

    def _prompt_uses(self, day: int, since: float, before: float) -> Iterable[PromptUse]:
        """Return the first and the last use of each digest in parts of a day, by the time of the last one."""
        uses: list[PromptUse] = []
        for block in self._blocks(day, PROMPT_COLUMNS):
            times = times_of(block) / MICROSECONDS
            found = extreme_uses(block.filter(pa.array((times >= since) & (times < before))), self.seen_only)
            if found is None:
                period = max(since, day * DAY_SECONDS), min(before, (day + 1) * DAY_SECONDS)
                return (use for chunk in self.chunks(*period) for use in prompt_uses(chunk))
            uses += found
        return uses

    def _days_between(self, since: float, before: float) -> Iterator[int]:
        for day in self.store.days(TIPS):
            if day * DAY_SECONDS < before and (day + 1) * DAY_SECONDS > since:
                yield day

    def _blocks(self, day: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a day in blocks that end between two instants, so that no decision is divided."""
        waiting: list[pa.RecordBatch] = []  # rows of one instant
        for batch in self.store.batches(TIPS, day, columns, rows=self._chunk_rows):
            times = times_of(batch)
            start_of_last = int(np.searchsorted(times, times[-1]))
            if start_of_last == 0 and (not waiting or times_of(waiting[0])[0] == times[-1]):
                waiting.append(batch)
                continue
            yield pa.concat_batches([*waiting, batch.slice(0, start_of_last)])
            waiting = [batch.slice(start_of_last)]
        if waiting:
            yield pa.concat_batches(waiting)


class _AggregatesOfDay:
    """The table `aggregates` of a day, which is in the order of time like the tips, read along with these."""

    def __init__(self, store: OfflineStore, day: int) -> None:
        self._batches = store.batches(AGGREGATES_TABLE, day, rows=CHUNK_ROWS)
        self._read: list[tuple[int, dict[str, dict[str, float]]]] = []
        self._is_exhausted = False

    def go_to(self, first: int, last: int) -> None:
        """Read the rows of the instants from `first` to `last`, in microseconds, and drop those before."""
        self._read = [(until, values) for until, values in self._read if until >= first]
        while not self._is_exhausted and (not self._read or self._read[-1][0] <= last):
            batch = next(self._batches, None)
            if batch is None:
                self._is_exhausted = True
            elif until := int(times_of(batch)[-1]):
                self._read.append((until, _aggregates_by_tip(batch)))

    def of_tip(self, tip_id: str) -> dict[str, float]:
        """Return the aggregates of a tip; empty without any."""
        for _, values in self._read:
            if tip_id in values:
                return values[tip_id]
        return {}


def _aggregates_by_tip(batch: pa.RecordBatch) -> dict[str, dict[str, float]]:
    names = [name for name in AGGREGATES if name in batch.schema.names]
    columns = [batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False).tolist() for name in names]
    return {
        tip_id: {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}
        for tip_id, *values in zip(objects_of(batch, "tip_id"), *columns, strict=True)
    }
