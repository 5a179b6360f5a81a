"""The shadow policy: its failures and its slowness do not affect answers."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from ml.experiments.exploration import Ranking
from ml.features.online_store import EmptyOnlineStore
from ml.platform.telemetry import Telemetry
from ml.registry.policies import Ranker, UniformRanker
from ml.serving import shadow as shadow_module
from ml.serving.score import ActivePolicies, Scorer
from tests.conftest import eventually

IDS, CANDIDATES = ["a", "b"], [{"tip": "Dim."}, {"tip": "Walk."}]


class FailingRanker:
    """A policy that raises an error whose message contains the signals."""

    name, version = "failing", "1"

    def rank(self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Ranking:
        raise RuntimeError(f"{context} {candidates}")


class WaitingRanker:
    """A policy that ranks once the test sets `released`."""

    name, version = "waiting", "1"

    def __init__(self) -> None:
        self.released = threading.Event()

    def rank(self, _: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Ranking:
        self.released.wait(timeout=300)
        return Ranking(np.full(len(candidates), 0.5), np.full(len(candidates), 1 / len(candidates)))


def scorer(shadow: Ranker | None, telemetry: Telemetry) -> Scorer:
    policies = ActivePolicies(UniformRanker(), shadow)
    return Scorer(policies, lambda: policies, EmptyOnlineStore(), telemetry)


def outcomes(telemetry: Telemetry) -> dict[str, float]:
    """Return the number of shadow decisions by outcome."""
    return {
        sample.labels["outcome"]: sample.value
        for metric in telemetry.registry.collect()
        for sample in metric.samples
        if sample.name == "tips_shadow_scores_total"
    }


def test_a_failing_shadow_policy_is_logged_without_its_message_and_does_not_change_the_answer() -> None:
    telemetry = Telemetry()
    with (
        capture_logs() as log,
        scorer(FailingRanker(), telemetry) as with_shadow,
        scorer(None, Telemetry()) as without_shadow,
    ):
        answer = asyncio.run(with_shadow.score(IDS, CANDIDATES, {"goal": "private"}, event_id="d"))
        assert eventually(lambda: outcomes(telemetry) == {"failed": 1})
        assert answer.chosen == asyncio.run(without_shadow.score(IDS, CANDIDATES, {}, event_id="d")).chosen
    (failed,) = log
    assert (failed["event"], failed["event_id"]) == ("shadow_failed", "d")
    assert failed["exc_info"][0] is RuntimeError


def test_a_slow_shadow_policy_delays_no_answer_and_drops_decisions_above_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow_module, "MAX_WAITING", 3)
    telemetry, shadow = Telemetry(), WaitingRanker()

    async def score_ten_times(scorer: Scorer) -> list[str]:
        return [(await scorer.score(IDS, CANDIDATES, {}, event_id=f"d{number}")).chosen for number in range(10)]

    with capture_logs() as log, scorer(shadow, telemetry) as with_shadow:
        answers = asyncio.run(score_ten_times(with_shadow))
        # All answers are there while the shadow policy has not finished a single ranking.
        assert (len(answers), outcomes(telemetry)) == (10, {"dropped": 7})
        shadow.released.set()
        assert eventually(lambda: outcomes(telemetry) == {"dropped": 7, "ok": 3})
    assert [line["event_id"] for line in log if line["event"] == "shadow_decision"] == ["d0", "d1", "d2"]
