"""The encoder: features to the columns of numbers that ranking policies are trained and evaluated on, and rank by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from ml.features.definitions import AGGREGATES, CANDIDATE, SIGNALS
from ml.features.feature_types import FeatureType, Floats, PromptVersion, ScaledNumber, Values, scaled_numbers


@dataclass(frozen=True)
class FeatureEncoder:
    """Encodes the features in `feature_types` (name to type) as the columns of one matrix."""

    feature_types: Mapping[str, FeatureType]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column for name, type_ in self.feature_types.items() for column in type_.columns(name))

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Encode rows, shape (number of rows, number of columns); a feature that a row does not have is missing."""
        # At least one feature, because its column also carries the number of rows.
        present = set().union(*rows) & self._slices.keys() or {next(iter(self._slices))}
        return self.encode_columns({name: [row.get(name) for row in rows] for name in present})

    def encode_columns(self, values: Mapping[str, Values]) -> Floats:
        """Encode n rows that are given as columns, shape (n, number of columns); NaN is missing.

        `values`: at least one of the features, each with n values; features that are left out are missing. Raises
        KeyError for an unknown name.
        """
        if unknown := values.keys() - self.feature_types.keys():
            raise KeyError(*sorted(unknown))
        numbers = np.empty((len(next(iter(values.values()))), len(self.columns)))
        numbers.fill(np.nan)
        scaled = [name for name in self._scaled if name in values]
        if scaled:
            columns = [self._slices[name].start for name in scaled]
            numbers[:, columns] = scaled_numbers(
                [values[name] for name in scaled], [self._scaled[name] for name in scaled]
            )
        for name in self._slices.keys() & values.keys() - self._scaled.keys():
            numbers[:, self._slices[name]] = self.feature_types[name].numbers(values[name])
        return numbers

    @cached_property
    def _scaled(self) -> Mapping[str, ScaledNumber]:
        """The types of the features that are scaled numbers."""
        return {name: type_ for name, type_ in self.feature_types.items() if isinstance(type_, ScaledNumber)}

    @cached_property
    def _slices(self) -> Mapping[str, slice]:
        """The slice of columns of each feature that has any."""
        widths = {name: len(type_.columns(name)) for name, type_ in self.feature_types.items()}
        ends = dict(zip(widths, accumulate(widths.values()), strict=True))
        return {name: slice(ends[name] - width, ends[name]) for name, width in widths.items() if width}


CONTEXT_ENCODER = FeatureEncoder(
    {name: signal.type for name, signal in SIGNALS.items()}
    | {name: aggregate.type for name, aggregate in AGGREGATES.items()}
)
"""Encodes the context of a request: signals and aggregates."""


def candidate_encoder(versions: Sequence[str]) -> FeatureEncoder:
    """Return the encoder of candidates for a policy that knows these prompt versions."""
    return FeatureEncoder({**CANDIDATE, "prompt_version": PromptVersion(tuple(versions))})


def candidate_row(prompt_version: str | None, tip: str | None) -> dict[str, Any]:
    """Return the features of a candidate as a row of a `candidate_encoder`."""
    return {"prompt_version": prompt_version, "tip": tip}
