"""Rows of what is known, as rows of numbers: the one way from features to what policies learn from and choose by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from ml.features.definitions import AGGREGATES, CANDIDATE, SIGNALS
from ml.features.feature_types import FeatureType, Floats, PromptVersion, Values


@dataclass(frozen=True)
class FeatureEncoder:
    """Features, each by its name, that become columns of numbers side by side."""

    kinds: Mapping[str, FeatureType]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column for name, kind in self.kinds.items() for column in kind.columns(name))

    @cached_property
    def _places(self) -> Mapping[str, slice]:
        """Where the columns of each feature are that has any."""
        widths = {name: len(kind.columns(name)) for name, kind in self.kinds.items()}
        ends = dict(zip(widths, accumulate(widths.values()), strict=True))
        return {name: slice(ends[name] - width, ends[name]) for name, width in widths.items() if width}

    def encode_columns(self, values: Mapping[str, Values]) -> Floats:
        """Make n rows into numbers, shape (n, number of columns); NaN is missing.

        `values`: at least one of the features, each a column of shape (n,); the ones that are left out are missing.
        Raises KeyError for another name.
        """
        if unknown := values.keys() - self.kinds.keys():
            raise KeyError(*sorted(unknown))
        numbers = np.full((len(next(iter(values.values()))), len(self.columns)), np.nan)
        for name, place in self._places.items():
            if name in values:
                numbers[:, place] = self.kinds[name].numbers(values[name])
        return numbers

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Make rows into numbers, shape (number of rows, number of columns); what a row does not say is missing."""
        there = set().union(*rows) & self._places.keys() or {next(iter(self._places))}
        return self.encode_columns(
            {name: _column([candidate_row.get(name) for candidate_row in rows]) for name in there}
        )


CONTEXT_ENCODER = FeatureEncoder(
    {name: signal.type for name, signal in SIGNALS.items()}
    | {name: aggregate.type for name, aggregate in AGGREGATES.items()}
)
"""What is known of a person."""


def candidate_encoder(versions: Sequence[str]) -> FeatureEncoder:
    """Return what is known of a candidate, by a policy that knows these prompt versions."""
    return FeatureEncoder({**CANDIDATE, "prompt_version": PromptVersion(tuple(versions))})


def candidate_row(prompt_version: str | None, tip: str | None) -> dict[str, Any]:
    """Return what is known of a candidate as a row of `candidates`."""
    return {"prompt_version": prompt_version, "tip": tip}


def _column(values: Sequence[Any]) -> Values:
    return np.fromiter(values, object, len(values))  # as they are: np.array would make a matrix of sequences
