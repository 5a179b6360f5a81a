"""Policies that rank candidates, deployed: from signals and candidates, as they are on the wire, to a ranking."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ml.experiments.ranking import Ranking, RankingPolicy, UnusablePolicy
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder


class Policy(Protocol):
    """Ranks candidates for a person."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:
        """Rank n >= 1 candidates for somebody of whom these signals and aggregates are known."""


class Uniform:
    """Nothing was learned yet: each candidate is as likely, and its expected reward that of the uniform prior."""

    name = "uniform"
    version = "1"

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:  # noqa: ARG002
        return Ranking(np.full(len(tips), 0.5), np.full(len(tips), 1 / len(tips)))


class Learned:
    """A policy that was learned from features that are known here still, and mean the same."""

    def __init__(self, policy: RankingPolicy) -> None:
        """Raises UnusablePolicy for a policy that was made for other features."""
        card = policy.card
        self._candidates = candidate_encoder(card.versions)
        unknown = sorted(
            {*card.context}.difference(CONTEXT_ENCODER.columns) | {*card.candidate}.difference(self._candidates.columns)
        )
        if unknown:
            raise UnusablePolicy(f"was made for other features, such as {unknown[0]}")
        # A column that came after the policy is none of its business.
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
        context = CONTEXT_ENCODER.of_rows([person])[0, self._in_context]
        return self._policy.rank(context, self._candidates.of_rows(tips)[:, self._in_candidates])


def load(source: str, tracking_uri: str) -> Learned:
    """Load the policy that is in a file, or, as `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in MLflow's registry.

    Raises UnusablePolicy.
    """
    if source.startswith("models:/"):
        from ml.registry.models import fetch  # MLflow takes seconds to import, and is an extra

        return Learned(RankingPolicy.load(fetch(source, tracking_uri)))
    try:
        blob = Path(source).read_bytes()
    except OSError:
        raise UnusablePolicy("is not a file that can be read") from None
    return Learned(RankingPolicy.load(blob))
