"""Training of a ranking policy from the decision log."""

from collections.abc import Sequence

import numpy as np

from ml.experiments.decisions import LoggedDecision, with_newest_prompts
from ml.experiments.linear import fit
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.registry.artifacts import PolicyCard, RankingPolicy

CHUNK_DECISIONS = 4_096
"""Decisions whose columns are in memory at a time."""


def train(decisions: Sequence[LoggedDecision], *, name: str = "tips") -> bytes:
    """Return a policy that is trained on the tips that were shown, as the content of its file.

    Decisions with an earlier digest of a prompt version are left out (`with_newest_prompts`). The same decisions, in
    any order, give the same bytes. Raises ValueError without decisions, and (pydantic's) for a name that a policy
    cannot have.
    """
    decisions = with_newest_prompts(decisions)
    if not decisions:
        raise ValueError("there are no decisions to learn from")
    versions = shown_versions(decisions)
    trained_until = max(decision.at for decision in decisions)
    statistics = sum_statistics(decisions, versions)
    return fit_policy(statistics, name=name, versions=versions, trained_until=trained_until).to_bytes()


def shown_versions(decisions: Sequence[LoggedDecision]) -> list[str]:
    """Return the prompt versions of the tips that were shown, sorted."""
    return sorted({decision.candidates[decision.chosen].prompt_version for decision in decisions})


def sum_statistics(decisions: Sequence[LoggedDecision], versions: Sequence[str]) -> RegressionStatistics:
    """Return the regression statistics of the tips that were shown, with columns for these prompt versions.

    Statistics of parts, such as days, add up to those of the whole, to the last bit, in any order.
    """
    encoder = candidate_encoder(versions)
    statistics = RegressionStatistics.empty(CONTEXT_ENCODER.columns, encoder.columns)
    for start in range(0, len(decisions), CHUNK_DECISIONS):
        chunk = decisions[start : start + CHUNK_DECISIONS]
        shown = [decision.candidates[decision.chosen] for decision in chunk]
        statistics += RegressionStatistics.from_rows(
            CONTEXT_ENCODER.columns,
            encoder.columns,
            CONTEXT_ENCODER.encode_rows([{**decision.signals, **decision.aggregates} for decision in chunk]),
            encoder.encode_rows([candidate_row(candidate.prompt_version, candidate.tip) for candidate in shown]),
            np.array([decision.reward for decision in chunk]),
        )
    return statistics


def fit_policy(
    statistics: RegressionStatistics, *, name: str, versions: Sequence[str], trained_until: float
) -> RankingPolicy:
    """Return the policy that is fitted to the statistics of at least one decision.

    `versions`: the prompt versions among the columns. `trained_until`: the time of the last decision, in Unix seconds.
    Raises ValueError (pydantic's) for a name that a policy cannot have.
    """
    card = PolicyCard(
        name=name,
        context=statistics.context,
        candidate=statistics.candidate,
        versions=tuple(versions),
        learned_from=statistics.n,
        trained_until=trained_until,
    )
    return RankingPolicy(card, fit(statistics))
