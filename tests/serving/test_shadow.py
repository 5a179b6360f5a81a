"""A shadow that fails, or is slow, touches no answer."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from ml.experiments.exploration import Ranking
from ml.platform.telemetry import Telemetry
from ml.registry.policies import UniformRanker
from ml.serving import shadow as shadow_module
from ml.serving.score import ActivePolicies, Scorer
from tests.conftest import eventually

IDS, TIPS = ["a", "b"], [{"tip": "Dim."}, {"tip": "Walk."}]


class Failing:
    """Breaks, and its message quotes what nobody may read."""

    name, version = "failing", "1"

    def rank(self, person: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:
        raise RuntimeError(f"{person} {tips}")


class Slow:
    """Takes as long as the test wants."""

    name, version = "slow", "1"

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def rank(self, _: Mapping[str, Any], tips: Sequence[Mapping[str, Any]]) -> Ranking:
        self.go_on.wait(timeout=30)
        return Ranking(np.full(len(tips), 0.5), np.full(len(tips), 1 / len(tips)))


def outcomes(telemetry: Telemetry) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in telemetry.registry.collect()
        for sample in metric.samples
        if sample.name == "tips_shadow_scores_total"
    }


def test_a_failing_shadow_is_logged_without_its_message_and_the_answer_is_the_same() -> None:
    telemetry = Telemetry()
    scorer = Scorer(lambda: ActivePolicies(UniformRanker(), Failing()), None, telemetry)
    alone = Scorer(lambda: ActivePolicies(UniformRanker()), None, Telemetry())
    with capture_logs() as log:
        answer = asyncio.run(scorer.score(IDS, TIPS, {"goal": "private"}, event_id="d"))
        assert eventually(lambda: outcomes(telemetry) == {"failed": 1})
    assert answer.chosen == asyncio.run(alone.score(IDS, TIPS, {}, event_id="d")).chosen
    (failed,) = log
    assert (failed["event"], failed["event_id"]) == ("shadow_failed", "d")
    assert failed["exc_info"][0] is RuntimeError
    scorer.close()


def test_a_slow_shadow_delays_no_answer_and_misses_what_it_cannot_keep_up_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow_module, "MOST_WAITING", 3)
    telemetry, slow = Telemetry(), Slow()
    scorer = Scorer(lambda: ActivePolicies(UniformRanker(), slow), None, telemetry)

    async def ask() -> list[str]:
        return [(await scorer.score(IDS, TIPS, {}, event_id=f"d{number}")).chosen for number in range(10)]

    with capture_logs() as log:
        started = time.monotonic()
        assert len(asyncio.run(ask())) == 10
        assert time.monotonic() - started < 10  # the shadow would have taken 30 seconds for the first alone
        assert outcomes(telemetry) == {"dropped": 7}
        slow.go_on.set()
        assert eventually(lambda: outcomes(telemetry) == {"dropped": 7, "ok": 3})
    assert [line["event_id"] for line in log if line["event"] == "shadow_decision"] == ["d0", "d1", "d2"]
    scorer.close()
