"""The statistics of whole days in the offline store, computed again only when a day's files change.

    stats/SCHEMA/day=2026-11-30.KEY.npz

SCHEMA is a hash of everything that the numbers depend on apart from the data, KEY one of the contents of the day's
files and of the prompt versions whose digest has changed. A file appears when it is complete, so a job that is killed
leaves the days that it has finished. Files that no longer belong to the store are deleted: they sum up forgotten tips.
"""

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml.experiments.decisions import DAY_SECONDS, LoggedCandidate, LoggedDecision, NewestPrompts
from ml.experiments.policies import POLICIES
from ml.experiments.regression_statistics import (
    CANDIDATE_STEPS,
    CONTEXT_STEPS,
    MAX_ROWS,
    REWARD_STEPS,
    RegressionStatistics,
)
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.features.offline_store import OfflineFile, OfflineStore, date_of_day
from ml.pipelines.day_statistics import DayStatistics, day_statistics, statistics_of_days
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.registry.npz_archive import read_array, read_byte_row, read_members, write_archive

FOLDER = "stats"
FORMAT = 1
"""To be increased when the same decisions give other statistics, or another file."""
MIN_ROWS_PER_PROCESS = 50_000
"""With fewer rows to read, starting another process takes longer than reading them."""
_META, _XX, _XY = "meta.npy", "xx.npy", "xy.npy"


StoreStatistics = Callable[[OfflineDecisionLog, NewestPrompts, Mapping[int, str]], None]
"""Computes the statistics of days, and writes each to its path within the store of the log (`store_statistics`)."""


class _Meta(BaseModel):
    """The fields of `DayStatistics`, without arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    day: int
    versions: Annotated[tuple[str, ...], Field(strict=False)]
    n: Annotated[int, Field(ge=0, le=MAX_ROWS)]
    yy: Annotated[float, Field(allow_inf_nan=False)]
    first: Annotated[float, Field(allow_inf_nan=False)]
    last: Annotated[float, Field(allow_inf_nan=False)]
    left_out: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def cached_statistics(
    log: OfflineDecisionLog,
    newest: NewestPrompts,
    since: float,
    before: float,
    *,
    processes: int,
    compute: StoreStatistics | None = None,
) -> Iterator[DayStatistics]:
    """Yield the same as `statistics_of_days`; the statistics of whole days are read from the store, or stored there.

    So the period must not have days to which reactions are still to come. `processes`: those that compute days at the
    same time. `compute`: computes and stores the days that are missing, instead of these processes. Raises
    OfflineStoreUnavailable, and BrokenProcessPool if a process was killed.
    """
    folder = f"{FOLDER}/{_schema(log)}"
    days = log.days()
    paths = {day: _path(folder, day, files, newest) for day, files in days.items()}
    known = _delete_others(log.store, folder, paths)
    in_period = [day for day in days if _start(day) < before and _start(day + 1) > since]
    whole = [day for day in in_period if since <= _start(day) and _start(day + 1) <= before]
    missing = [day for day in whole if paths[day] not in known]
    if compute and missing:
        compute(log, newest, {day: paths[day] for day in missing})
        missing = []
    rows = sum(days[day][0].rows for day in missing)
    workers = min(processes, len(missing), rows // MIN_ROWS_PER_PROCESS)
    with _computing(log, newest, {day: paths[day] for day in missing}, workers) as futures:
        for day in in_period:
            if day not in whole:
                yield from statistics_of_days(log, newest, max(since, _start(day)), min(before, _start(day + 1)))
                continue
            if day in futures:
                futures.pop(day).result()
            yield _read(log.store, paths[day], day) or store_statistics(log, newest, day, paths[day])


def _schema(log: OfflineDecisionLog) -> str:
    """Return a short hash of everything that the statistics depend on, apart from the data."""
    content = [
        FORMAT,
        [log.seen_only, log.share],
        CONTEXT_ENCODER.columns,
        candidate_encoder(()).columns,
        [CONTEXT_STEPS, CANDIDATE_STEPS, REWARD_STEPS],
        sorted(name for name, policy in POLICIES.items() if not policy.selectable),
        [[field.name for field in fields(type_)] for type_ in (LoggedDecision, LoggedCandidate)],
    ]
    return _short_hash(content)


def _path(folder: str, day: int, files: Sequence[OfflineFile | None], newest: NewestPrompts) -> str:
    key = _short_hash([[file and file.sha256 for file in files], sorted(newest.digests.items())])
    return f"{folder}/day={date_of_day(day)}.{key}.npz"


def _short_hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _start(day: int) -> float:
    return day * DAY_SECONDS


def _delete_others(store: OfflineStore, folder: str, paths: Mapping[int, str]) -> set[str]:
    """Delete the statistics of days without a file, of files that were replaced, and of earlier releases.

    Returns the paths that exist. A hidden file is one that is being written.
    """
    found = store.paths(FOLDER)
    wanted = {*paths.values()}
    for path in found:
        if path.replace(f"{folder}/.", f"{folder}/") not in wanted:
            store.delete(path)
    return wanted.intersection(found)


@contextmanager
def _computing(
    log: OfflineDecisionLog, newest: NewestPrompts, paths: Mapping[int, str], workers: int
) -> Iterator[dict[int, Future[None]]]:
    """Compute days in `workers` processes; yields their futures. With fewer than two workers, nothing is computed."""
    if workers < 2:  # noqa: PLR2004 - one process is this one
        yield {}
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        with _one_blas_thread():
            futures = {day: pool.submit(_store_in_worker, log, newest, day, path) for day, path in paths.items()}
        yield futures
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let the processes that are started in the block use one thread each for products of matrices."""
    name = "OPENBLAS_NUM_THREADS"  # numpy's wheels have OpenBLAS, which reads it when it is loaded
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _prepare_worker() -> None:
    """Let the garbage collector run rarely: decisions are not cyclic, and it takes a third of the time to read them.

    The process ends with the one that started it: by itself, it would wait for work for ever if that is killed.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _store_in_worker(log: OfflineDecisionLog, newest: NewestPrompts, day: int, path: str) -> None:
    """Compute the statistics of a day, which the caller reads from the store: they take megabytes."""
    store_statistics(log, newest, day, path)


def store_statistics(log: OfflineDecisionLog, newest: NewestPrompts, day: int, path: str) -> DayStatistics:
    """Compute the statistics of a day, write them to a path within the store of the log, and return them."""
    of_day = day_statistics(day, log.decisions_of_day(day), newest)
    log.store.write(path, _to_bytes(of_day))
    return of_day


def _to_bytes(of_day: DayStatistics) -> bytes:
    statistics = of_day.statistics
    meta = _Meta(
        day=of_day.day,
        versions=of_day.versions,
        n=statistics.n,
        yy=statistics.yy,
        first=of_day.first,
        last=of_day.last,
        left_out=of_day.left_out,
        sha256=of_day.sha256,
    )
    return write_archive(
        {
            _META: np.frombuffer(meta.model_dump_json().encode(), np.uint8),
            _XX: statistics.xx[np.tril_indices(statistics.xy.size)],
            _XY: statistics.xy,
        }
    )


def _read(store: OfflineStore, path: str, day: int) -> DayStatistics | None:
    """Return the statistics in a file; None if there is none, or if it is not one of this day."""
    content = store.read(path)
    if content is None:
        return None
    try:
        members = read_members(content)
        meta = _Meta.model_validate_json(read_byte_row(members[_META]))
        context, candidate = CONTEXT_ENCODER.columns, candidate_encoder(meta.versions).columns
        d = (1 + len(context)) * (1 + len(candidate))
        xx = np.zeros((d, d))
        xx[np.tril_indices(d)] = read_array(members[_XX], (d * (d + 1) // 2,), "<f8")
        xx += np.tril(xx, -1).T
        xy = read_array(members[_XY], (d,), "<f8")
        statistics = RegressionStatistics(context, candidate, meta.n, xx, xy, meta.yy)
    except (ValueError, KeyError, ValidationError):
        return None
    if meta.day != day:
        return None
    return DayStatistics(day, meta.versions, statistics, meta.first, meta.last, meta.left_out, meta.sha256)
