"""The statistics of each day of a decision log that a ranking policy is trained with.

They are sums over the tips that were shown, so they are equal to the last bit for any chunks of the log. A day's
columns are those of the prompt versions that were shown on it; statistics of several days get the columns of all.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter

import numpy as np

from ml.experiments.decisions import DecisionLog, LoggedCandidate, LoggedDecision, NewestPrompts
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row

CHUNK_DECISIONS = 4_096
"""Decisions whose columns are in memory at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class DayStatistics:
    """The statistics of one day.

    `day`: since 1970 (UTC). `versions`: the prompt versions of the tips that were shown, sorted. `statistics`: over
    these tips. `first`, `last`: the times of the first and the last decision, in Unix seconds; 0 without any.
    `left_out`: the number of decisions that are left out because of an earlier digest of a prompt version. `sha256`:
    the digest of the decisions, see `dataset_digest`.
    """

    day: int
    versions: tuple[str, ...]
    statistics: RegressionStatistics
    first: float
    last: float
    left_out: int
    sha256: str


StatisticsOfDays = Callable[[NewestPrompts, float, float], Iterator[DayStatistics]]
"""Yields the statistics of days from a time to another one, in Unix seconds, in the order of days."""


def statistics_of_days(log: DecisionLog, newest: NewestPrompts, since: float, before: float) -> Iterator[DayStatistics]:
    """Yield the statistics of each day of a period that has decisions, in the order of days.

    Decisions that `newest` leaves out are only counted.
    """
    parts = (
        (day, [*decisions])
        for chunk in log.chunks(since, before)
        for day, decisions in groupby(chunk, key=lambda decision: decision.day)
    )
    for day, of_day in groupby(parts, key=lambda part: part[0]):
        yield day_statistics(day, (decisions for _, decisions in of_day), newest)


def day_statistics(day: int, chunks: Iterable[Sequence[LoggedDecision]], newest: NewestPrompts) -> DayStatistics:
    """Return the statistics of a day, whose decisions are given in the order of (`at`, `id`), in any chunks."""
    versions: tuple[str, ...] = ()
    statistics = sum_statistics((), versions)
    digest, first, last, left_out = hashlib.sha256(b"["), 0.0, 0.0, 0
    for decisions, n in _chunks_of_size(chunks, newest):
        left_out += n - len(decisions)
        if not decisions:
            continue
        if unknown := {*shown_versions(decisions)} - {*versions}:
            versions = tuple(sorted({*versions} | unknown))
            statistics = statistics.with_columns(CONTEXT_ENCODER.columns, candidate_encoder(versions).columns)
        digest.update(b"," if statistics.n else b"")
        digest.update(_canonical_json(decisions)[1:-1])
        first, last = (first if statistics.n else decisions[0].at), decisions[-1].at
        statistics += sum_statistics(decisions, versions)
    digest.update(b"]")
    return DayStatistics(day, versions, statistics, first, last, left_out, digest.hexdigest())


def dataset_digest(days: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of decisions from those of their days, in the order of days.

    The digest of a day is that of a JSON array, in ASCII, without spaces and with sorted keys, of its decisions in the
    order of (`at`, `id`). A decision is an array of the fields of `LoggedDecision` in their order, and a candidate one
    of those of `LoggedCandidate`. The digests of the days, in hex, are joined and hashed.
    """
    return hashlib.sha256("".join(days).encode()).hexdigest()


def shown_versions(decisions: Iterable[LoggedDecision]) -> list[str]:
    """Return the prompt versions of the tips that were shown, sorted."""
    return sorted({decision.candidates[decision.chosen].prompt_version for decision in decisions})


def sum_statistics(decisions: Sequence[LoggedDecision], versions: Sequence[str]) -> RegressionStatistics:
    """Return the regression statistics of the tips that were shown, with columns for these prompt versions.

    Statistics of parts, such as days, add up to those of the whole, to the last bit, in any order.
    """
    encoder = candidate_encoder(versions)
    shown = [decision.candidates[decision.chosen] for decision in decisions]
    return RegressionStatistics.from_rows(
        CONTEXT_ENCODER.columns,
        encoder.columns,
        CONTEXT_ENCODER.encode_rows([{**decision.signals, **decision.aggregates} for decision in decisions]),
        encoder.encode_rows([candidate_row(candidate.prompt_version, candidate.tip) for candidate in shown]),
        np.array([decision.reward for decision in decisions]),
    )


def _chunks_of_size(
    chunks: Iterable[Sequence[LoggedDecision]], newest: NewestPrompts
) -> Iterator[tuple[Sequence[LoggedDecision], int]]:
    """Yield about `CHUNK_DECISIONS` decisions at a time that are not left out, and the number with those that are."""
    waiting: list[LoggedDecision] = []
    n = 0
    for chunk in chunks:
        waiting += newest.kept(chunk)
        n += len(chunk)
        if n >= CHUNK_DECISIONS:
            yield waiting, n
            waiting, n = [], 0
    yield waiting, n


def _canonical_json(decisions: Sequence[LoggedDecision]) -> bytes:
    return _CANONICAL.encode(decisions).encode()


_GETTERS = {type_: attrgetter(*(field.name for field in fields(type_))) for type_ in (LoggedDecision, LoggedCandidate)}
_CANONICAL = json.JSONEncoder(default=lambda value: _GETTERS[type(value)](value), separators=(",", ":"), sort_keys=True)
