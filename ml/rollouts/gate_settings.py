"""The settings of the gates: their bounds."""

from dataclasses import dataclass
from typing import Literal

Criterion = Literal["non-inferior", "better"]


@dataclass(frozen=True, slots=True)
class GateSettings:
    """The bounds of the gates. Shares and rewards are in [0, 1]: 0.03 are 3 points.

    `margin`: the loss of mean reward that is accepted. `criterion`: whether a champion must be no more than the margin
    worse than the last one, or better. `min_shadow_decisions`, `min_shadow_days`: the decisions in shadow, and the days
    (UTC) that they are from. `max_unusable`, `max_slow`: by how much the share of tips that are unusable, or slow, may
    be higher than the champion's. `max_excess_tokens`: of `excess_tokens`; 0 is 1.5 times the tokens. For policies:
    `min_effective_sample_size`, `max_unreachable`, `min_agreement`: of `RankingEvidence`. `slice_margin`: the loss of
    mean reward in one slice that is accepted. `min_step_tips`: the mature tips of the canary since its share was last
    changed. `min_step_hours`: the time since then; None for the reaction window.
    """

    margin: float = 0.03
    criterion: Criterion = "non-inferior"
    min_shadow_decisions: int = 500
    min_shadow_days: int = 2
    max_unusable: float = 0.05
    max_slow: float = 0.10
    max_excess_tokens: float = 0.0
    min_effective_sample_size: float = 200
    max_unreachable: float = 0.05
    min_agreement: float = 0.2
    slice_margin: float = 0.10
    min_step_tips: int = 100
    min_step_hours: float | None = None
