"""Events and shadows of rollouts for tests."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from ml.experiments.rollout_state import Action, Kind, Stage
from ml.store.rollouts import NewRolloutEvent
from ml.store.shadows import ShadowRanking, ShadowTip
from tests.example_tips import DIGEST, NOW

_STAGES: dict[Action, tuple[Stage, Stage]] = {
    "initial": ("registered", "champion"),
    "start": ("registered", "shadow"),
    "rollback": ("canary", "registered"),
    "ramp": ("canary", "canary"),
}


def a_move(action: Action, version: str = "v2-mentor", *, kind: Kind = "prompt", **fields: Any) -> NewRolloutEvent:
    """Return an event to append: of this action, with the usual stages, and with these fields changed."""
    from_stage, to_stage = _STAGES.get(action, ("shadow", "canary"))
    usual: dict[str, Any] = {
        "at": NOW,
        "kind": kind,
        "version": version,
        "digest": DIGEST,
        "action": action,
        "from_stage": from_stage,
        "to_stage": to_stage,
        "actor": "operator",
        "reason": "a test",
    }
    return NewRolloutEvent(**usual | fields)


def a_shadow_tip(tip_id: UUID, **fields: Any) -> ShadowTip:
    """Return what the shadow of rollout 2 wrote for a tip or failure, with these fields changed."""
    usual: dict[str, Any] = {
        "tip_id": tip_id,
        "rollout": 2,
        "user_id": "u-1",
        "created_at": NOW,
        "prompt_version": "v3-few-shot",
        "prompt_digest": DIGEST,
        "model": "openai/good",
        "tip": "Open a window now.",
        "failed": False,
        "error": None,
        "ms": 700,
        "tokens": 80,
        "live_version": "v1",
        "live_failed": False,
        "live_ms": 900,
        "live_tokens": 62,
    }
    return ShadowTip(**usual | fields)


def a_shadow_ranking(decision_id: UUID, probabilities: Mapping[str, float] | None, **fields: Any) -> ShadowRanking:
    """Return the ranking of a decision by the shadow of rollout 3, with these fields changed."""
    usual: dict[str, Any] = {
        "decision_id": decision_id,
        "rollout": 3,
        "user_id": "u-1",
        "created_at": NOW,
        "policy_version": "abc",
        "probabilities": probabilities,
        "scores": probabilities and dict.fromkeys(probabilities, 0.5),
        "error": None if probabilities else "upstream-error",
        "ms": 4,
    }
    return ShadowRanking(**usual | fields)
