"""`LearnedPolicy` ranks the decisions of a log as it ranks requests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ml.experiments.decisions import InMemoryDecisionLog, LoggedDecision
from ml.features.encoder import candidate_row
from ml.pipelines.training import train
from ml.registry.artifacts import RankingPolicy
from ml.registry.policies import LearnedPolicy
from tests.pipelines.logs import ranked_log_of


@pytest.fixture(scope="module")
def learned() -> LearnedPolicy:
    return LearnedPolicy(RankingPolicy.from_bytes(train(InMemoryDecisionLog(ranked_log_of(600, k=4)))))


def requests_of(decisions: Sequence[LoggedDecision]) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Return a random context and the candidates of each decision, as those of a request to `/score`."""
    rng = np.random.default_rng(2)
    return [
        (
            {
                **decision.signals,
                "stress": int(rng.integers(1, 6)),
                "local_time": f"{rng.integers(24):02}:30",
                **({"reward_rate_30d": float(rng.random()), "tips_7d": int(rng.integers(9))} if index % 3 else {}),
            },
            [candidate_row(each.prompt_version, each.tip if index % 2 else None) for each in decision.candidates],
        )
        for index, decision in enumerate(decisions)
    ]


@pytest.mark.parametrize("n", [1, 2, 700])
def test_decisions_of_a_log_are_ranked_as_requests_are_to_the_last_bit(learned: LearnedPolicy, n: int) -> None:
    requests = requests_of(ranked_log_of(n, k=12, seed=5))
    rankings = learned.rank_each([context for context, _ in requests], [candidates for _, candidates in requests])
    assert len(rankings) == n
    for ranking, (context, candidates) in zip(rankings, requests, strict=True):
        alone = learned.rank(context, candidates)
        assert ranking.scores.tolist() == alone.scores.tolist()
        assert ranking.probabilities.tolist() == alone.probabilities.tolist()


def test_no_decisions_have_no_rankings(learned: LearnedPolicy) -> None:
    assert learned.rank_each([], []) == []
