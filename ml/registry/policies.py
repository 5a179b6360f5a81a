"""Policies that rank candidates, loaded: from signals and candidates, as they are on the wire, to a ranking."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ml.experiments.exploration import Ranking
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder
from ml.registry.artifacts import RankingPolicy, UnusablePolicyError, read_artifact


class Ranker(Protocol):
    """Ranks candidates for a person."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:
        """Rank n >= 1 candidates for a person of whom these signals and aggregates are known."""


class UniformRanker:
    """The policy before anything was learned: equal probabilities, and the expected reward of the uniform prior."""

    name = "uniform"
    version = "1"

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:  # noqa: ARG002
        return Ranking(np.full(len(tips), 0.5), np.full(len(tips), 1 / len(tips)))


class LearnedPolicy:
    """A learned policy whose features are still defined here, and mean the same."""

    def __init__(self, policy: RankingPolicy) -> None:
        """Raises UnusablePolicyError for a policy that was made for other features."""
        card = policy.card
        self._candidates = candidate_encoder(card.versions)
        unknown = sorted(
            {*card.context}.difference(CONTEXT_ENCODER.columns) | {*card.candidate}.difference(self._candidates.columns)
        )
        if unknown:
            raise UnusablePolicyError(f"was made for other features, such as {unknown[0]}")
        # Columns that were added after the policy was trained are left out.
        self._in_context = [CONTEXT_ENCODER.columns.index(column) for column in card.context]
        self._in_candidates = [self._candidates.columns.index(column) for column in card.candidate]
        self._policy = policy

    @property
    def name(self) -> str:
        return self._policy.card.name

    @property
    def version(self) -> str:
        return self._policy.version

    @property
    def trained_until(self) -> float:
        """When the last decision that it has learned from was, in Unix seconds."""
        return self._policy.card.trained_until

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:
        context = CONTEXT_ENCODER.encode_rows([person])[0, self._in_context]
        return self._policy.rank(context, self._candidates.encode_rows(tips)[:, self._in_candidates])


def validate_policy_source(value: str) -> str:
    """Return a source of a learned policy unchanged: a file, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises ValueError, whose message is the end of a sentence, for anything else.
    """
    if value.startswith("models:/"):
        if not re.fullmatch(r"models:/[\w.-]+(@[\w-]+|/[0-9]+)", value):
            raise ValueError("should be models:/NAME@ALIAS, models:/NAME/VERSION or a file")
    elif not Path(value).is_file():
        raise ValueError("is neither a file that can be read, nor models:/NAME@ALIAS or models:/NAME/VERSION")
    return value


def load(source: str, tracking_uri: str) -> LearnedPolicy:
    """Load the policy that is in a file, or, as `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in MLflow's registry.

    Raises UnusablePolicyError.
    """
    if source.startswith("models:/"):
        from ml.registry.models import fetch  # MLflow takes seconds to import, and is an extra

        return LearnedPolicy(RankingPolicy.from_bytes(fetch(source, tracking_uri)))
    return LearnedPolicy(RankingPolicy.from_bytes(read_artifact(source)))
