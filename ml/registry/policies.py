"""Ranking policies in use: they rank candidates, as rows of features, for the context of a user."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ml.experiments.exploration import Ranking
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.platform.settings import is_file
from ml.registry.artifacts import (
    PolicyCard,
    RankingPolicy,
    UnusablePolicyError,
    artifact_revision,
    read_artifact,
)


class Ranker(Protocol):
    """A policy that ranks candidates for a user."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def rank(self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Ranking:
        """Rank n >= 1 candidates. `context`: signals and aggregates by name. `candidates`: see `candidate_row`."""


class UniformRanker:
    """The policy without training: equal probabilities, and the expected reward of a uniform prior."""

    name = "uniform"
    version = "uniform"

    def rank(self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Ranking:  # noqa: ARG002
        return Ranking(np.full(len(candidates), 0.5), np.full(len(candidates), 1 / len(candidates)))


class LearnedPolicy:
    """A learned policy whose columns are all among those of the current feature definitions."""

    def __init__(self, policy: RankingPolicy) -> None:
        """Raises UnusablePolicyError for a policy that was trained with other features."""
        card = policy.card
        self._candidate_encoder = candidate_encoder(card.versions)
        candidate_columns = self._candidate_encoder.columns
        unknown = sorted({*card.context} - {*CONTEXT_ENCODER.columns} | {*card.candidate} - {*candidate_columns})
        if unknown:
            raise UnusablePolicyError(f"was made for other features, such as {unknown[0]}")
        # Columns that were added after the policy was trained are left out.
        self._context_indices = [CONTEXT_ENCODER.columns.index(column) for column in card.context]
        self._candidate_indices = [candidate_columns.index(column) for column in card.candidate]
        self._policy = policy

    @property
    def name(self) -> str:
        return self._policy.card.name

    @property
    def version(self) -> str:
        return self._policy.version

    @property
    def card(self) -> PolicyCard:
        """The description in its file."""
        return self._policy.card

    @property
    def trained_until(self) -> float:
        """The time of the last decision that the policy was trained on, in Unix seconds."""
        return self._policy.card.trained_until

    def rank(self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Ranking:
        context_values = CONTEXT_ENCODER.encode_rows([context])[0, self._context_indices]
        candidate_values = self._candidate_encoder.encode_rows(candidates)[:, self._candidate_indices]
        return self._policy.rank(context_values, candidate_values)

    def rank_each(
        self, contexts: Sequence[Mapping[str, Any]], candidates: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[Ranking]:
        """Return what `rank` returns for each context and its candidates, equal to the last bit, but in less time."""
        if not contexts:
            return []
        context_values = CONTEXT_ENCODER.encode_rows(contexts)[:, self._context_indices]
        rows = [row for of_context in candidates for row in of_context]
        candidate_values = self._candidate_encoder.encode_rows(rows)[:, self._candidate_indices]
        sizes = np.array([len(of_context) for of_context in candidates])
        starts = sizes.cumsum() - sizes
        rankings: dict[int, Ranking] = {}
        # A product of matrices is equal to the last bit only for equal shapes, so none is padded.
        for size in np.unique(sizes).tolist():
            indices = np.flatnonzero(sizes == size)
            of_size = candidate_values[starts[indices][:, None] + np.arange(size)]
            ranked = self._policy.rank_each(context_values[indices], of_size)
            rankings.update(zip(indices.tolist(), map(Ranking, *ranked), strict=True))
        return [rankings[index] for index in range(len(contexts))]


def validate_policy_source(value: str) -> str:
    """Return the source of a learned policy unchanged: a file, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises ValueError, whose message is the end of a sentence, for any other value.
    """
    if value.startswith("models:/"):
        if not re.fullmatch(r"models:/[\w.-]+(@[\w-]+|/[0-9]+)", value):
            raise ValueError("should be models:/NAME@ALIAS, models:/NAME/VERSION or a file")
    elif not is_file(value):
        raise ValueError("is neither a file that can be read, nor models:/NAME@ALIAS or models:/NAME/VERSION")
    return value


def load_policy(source: str, tracking_uri: str) -> LearnedPolicy:
    """Load a policy from a file, or from MLflow's registry (`models:/NAME@ALIAS` or `models:/NAME/VERSION`).

    Raises UnusablePolicyError.
    """
    return LearnedPolicy(RankingPolicy.from_bytes(read_policy(source, tracking_uri)))


def read_policy(source: str, tracking_uri: str) -> bytes:
    """Return the file of the policy at a source. Raises UnusablePolicyError if it cannot be read."""
    if source.startswith("models:/"):
        from ml.registry.models import fetch  # MLflow takes seconds to import, and is an extra

        return fetch(source, tracking_uri)
    return read_artifact(source)


def policy_revision(source: str, tracking_uri: str) -> str | None:
    """Return a text that changes with the policy at a source, without reading the policy; None if it is not known.

    Raises UnusablePolicyError if the source cannot be reached.
    """
    if source.startswith("models:/"):
        from ml.registry.models import revision  # as above

        return revision(source, tracking_uri)
    return artifact_revision(source)
