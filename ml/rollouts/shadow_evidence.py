"""Evidence from the tips and the rankings of versions in shadow. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ml.experiments.ranking_evidence import RankingEvidence, ranking_evidence
from ml.experiments.shadow_pairs import ShadowPair
from ml.store.hours import hour_of
from ml.store.shadows import ShadowDecision, ShadowTip


def shadow_pair(tip: ShadowTip) -> ShadowPair:
    """Return the figures of a tip in shadow and of the live tip."""
    return ShadowPair(
        day=hour_of(tip.created_at) // 24,
        live_failed=tip.live_failed,
        live_ms=tip.live_ms,
        live_tokens=tip.live_tokens,
        failed=tip.failed,
        ms=tip.ms,
        tokens=tip.tokens,
    )


def evidence_of_rankings(decisions: Sequence[ShadowDecision]) -> RankingEvidence:
    """Return the evidence from the decisions at which the live policy could draw all that the shadow can draw.

    Which ones these are depends on the distributions only, so leaving out the others does not bias the gain. The
    probability of what it could not draw is that of all decisions.
    """
    width = max((len(each.candidates) for each in decisions), default=1)
    live, shadow = np.zeros((len(decisions), width)), np.zeros((len(decisions), width))
    for row, decision in enumerate(decisions):
        for column, candidate in enumerate(decision.candidates):
            live[row, column], shadow[row, column] = candidate.live_probability, candidate.probability
    unreachable = np.where(live > 0, 0.0, shadow).sum(axis=1)
    covered = unreachable == 0
    found = ranking_evidence(
        np.array([each.reward for each in decisions])[covered],
        live[covered],
        shadow[covered],
        np.array([each.chosen for each in decisions], np.int64)[covered],
    )
    return replace(found, unreachable=float(unreachable.mean()) if decisions else 0.0)
