"""Train a ranking policy on the log of decisions."""

from collections.abc import Sequence

import numpy as np

from ml.experiments.decisions import LoggedDecision, with_newest_prompts
from ml.experiments.linear import RegressionStatistics, fit
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.registry.artifacts import PolicyCard, RankingPolicy

CHUNK_DECISIONS = 4_096
"""Decisions whose columns are in memory at a time."""


def shown_versions(decisions: Sequence[LoggedDecision]) -> list[str]:
    """Return the prompt versions of the tips that were shown, sorted."""
    return sorted({decision.candidates[decision.chosen].prompt_version for decision in decisions})


def statistics_of(decisions: Sequence[LoggedDecision], versions: Sequence[str]) -> RegressionStatistics:
    """Return the sufficient statistics of the tips that were shown, by a policy that knows these prompt versions.

    Statistics of parts, such as days, add up to those of the whole, to the last bit; the order does not matter.
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


def policy_of(
    statistics: RegressionStatistics, *, name: str, versions: Sequence[str], trained_until: float
) -> RankingPolicy:
    """Return the policy that is fitted to statistics, of at least one decision.

    `versions`: the prompt versions among their columns. `trained_until`: when the last decision was, in Unix seconds.
    Raises ValueError (pydantic's, for a name that a policy cannot have).
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


def train(decisions: Sequence[LoggedDecision], *, name: str = "tips") -> bytes:
    """Return a policy trained on each tip that was shown, as the bytes of a file.

    Decisions with an earlier digest of a prompt version are left out (`with_newest_prompts`). The same decisions, in any
    order, give the same bytes. Raises ValueError for none.
    """
    decisions = with_newest_prompts(decisions)
    if not decisions:
        raise ValueError("there are no decisions to learn from")
    versions = shown_versions(decisions)
    until = max(decision.at for decision in decisions)
    policy = policy_of(statistics_of(decisions, versions), name=name, versions=versions, trained_until=until)
    return policy.to_bytes()
