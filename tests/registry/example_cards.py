"""Complete model cards."""

from datetime import UTC, datetime, timedelta
from typing import Any

from ml.registry.cards import CalibrationBin, CardInput, Metric, ModelCard, RolloutEntry, Slice, Training

AT = datetime(2026, 1, 31, 21, 40, tzinfo=UTC)


def card(**fields: Any) -> ModelCard:
    """Return a complete card of a learned policy, with these fields replaced."""
    complete: dict[str, Any] = {
        "name": "tips",
        "kind": "policy",
        "version": "0123456789ab",
        "digest": "0123456789ab",
        "purpose": "Ranks tips.",
        "inputs": (CardInput(name="mood", type="string", range="good, low"),),
        "training": Training(
            since=AT - timedelta(days=9),
            until=AT,
            decisions=1_234,
            learned_from=987,
            dataset_sha256="0" * 64,
            window_days=7,
        ),
        "metrics": (Metric(name="gain", value=0.03, low=-0.01, high=0.07, n=900, source="held-out days"),),
        "calibration": (CalibrationBin(predicted=0.2, observed=0.25, low=0.1, high=0.4, n=900),),
        "slices": (Slice(name="mood:low", n=90, value=0.01, low=-0.1, high=0.2, status="unknown"),),
        "limits": ("Linear.",),
        "safety": ("Every tip is checked.",),
        "licence": "apache-2.0",
        "contact": "ml@example.org",
    }
    return ModelCard(**complete | fields)


EVENT = RolloutEntry(
    at=AT,
    actor="ada",
    action="promote",
    from_stage="shadow",
    to_stage="canary",
    share=0.1,
    reason="All gates pass.",
    event=7,
)
