"""Rows of what is known, as rows of numbers: the one way from features to what policies learn from and choose by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ml.features.definitions import AGGREGATES, CANDIDATE, SIGNALS
from ml.features.kinds import Floats, Kind, Values, Version


@dataclass(frozen=True)
class Space:
    """Features, each by its name, that become columns of numbers side by side."""

    kinds: Mapping[str, Kind]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column for name, kind in self.kinds.items() for column in kind.columns(name))

    @cached_property
    def _numbered(self) -> Mapping[str, Kind]:
        return {name: kind for name, kind in self.kinds.items() if kind.columns(name)}

    def of_columns(self, values: Mapping[str, Values]) -> Floats:
        """Make n rows into numbers, shape (n, number of columns); NaN is missing.

        `values`: at least one of the features, each a column of shape (n,); the ones that are left out are missing.
        Raises KeyError for another name.
        """
        if unknown := values.keys() - self.kinds.keys():
            raise KeyError(*sorted(unknown))
        n = len(next(iter(values.values())))
        nothing: Values = np.full(n, None, object)
        return np.concatenate(
            [kind.numbers(values.get(name, nothing)) for name, kind in self._numbered.items()], axis=1
        )

    def of_rows(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Make rows into numbers, shape (number of rows, number of columns); what a row does not say is missing."""
        columns = {name: _column([row.get(name) for row in rows]) for name in self._numbered}
        return self.of_columns(columns)


CONTEXT = Space(
    {name: signal.kind for name, signal in SIGNALS.items()}
    | {name: aggregate.kind for name, aggregate in AGGREGATES.items()}
)
"""What is known of a person."""


def candidates(versions: Sequence[str]) -> Space:
    """Return what is known of a candidate, by a policy that knows these prompt versions."""
    return Space({**CANDIDATE, "prompt_version": Version(tuple(versions))})


def row(prompt_version: str | None, tip: str | None) -> dict[str, Any]:
    """Return what is known of a candidate as a row of `candidates`."""
    return {"prompt_version": prompt_version, "tip": tip}


def _column(values: Sequence[Any]) -> Values:
    return np.fromiter(values, object, len(values))  # as they are: np.array would make a matrix of sequences
