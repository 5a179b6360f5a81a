"""Tip records and failures for the store, and a clock that tests set."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ml.store.failures import GenerationFailure
from ml.store.tip_records import TipRecord

NOW = datetime(2026, 1, 31, 21, 40, tzinfo=UTC)
WINDOW = timedelta(hours=24)
"""The reaction window of the stores."""

DIGEST = "a" * 64


class SetClock:
    """A clock that returns the time it is set to."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def go(self, **by: float) -> None:
        """Move the time by a timedelta of these arguments, forward or back."""
        self.now += timedelta(**by)


_TIP = TipRecord(
    tip_id=uuid.UUID(int=0),
    user_id="u-1",
    created_at=NOW,
    policy="uniform",
    policy_version="1",
    options={"v1": 0.5, "v2-mentor": 0.5},
    probability=0.5,
    prompt_version_asked="v1",
    generation_id="g-1",
    prompt_version="v1",
    prompt_digest=DIGEST,
    model="openai/good",
    fallback=False,
    signals={"mood": "low"},
    segments=("mood:low",),
    tip="Dim the lights now.",
    input_tokens=50,
    output_tokens=12,
    ms=900,
)


def a_tip(**fields: Any) -> TipRecord:
    """Return a tip record with a new id, and with these fields changed."""
    return replace(_TIP, **{"tip_id": uuid.uuid4(), **fields})


def a_failure(**fields: Any) -> GenerationFailure:
    """Return a failure with new ids, and with these fields changed."""
    usual: dict[str, Any] = {
        "tip_id": uuid.uuid4(),
        "decision_id": uuid.uuid4(),
        "user_id": "u-1",
        "created_at": NOW,
        "policy": "uniform",
        "policy_version": "1",
        "options": {"v1": 0.5, "v2-mentor": 0.5},
        "probability": 0.5,
        "prompt_version_asked": "v2-mentor",
        "error": "upstream-error",
        "segments": ("mood:low",),
    }
    return GenerationFailure(**usual | fields)
