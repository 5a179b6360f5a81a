"""The evidence about a rollout, which its gates are functions of. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from ml.experiments.failure_excess import FailureExcess
from ml.experiments.guardrails import OneSidedLimits, SliceResult
from ml.experiments.ranking_evidence import RankingEvidence
from ml.experiments.rollout_state import Catalogue, Kind
from ml.registry.cards import ModelCard, missing


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """The draws of a version in the evidence window, for the funnel. `mature`: usable ones whose reward is known.

    `usable`: written by the model itself, and ranked by the policy itself. `seen`: of the usable ones. `reward`: the
    sum of the rewards of the mature ones.
    """

    version: str
    drawn: int = 0
    failed: int = 0
    fallback: int = 0
    usable: int = 0
    seen: int = 0
    mature: int = 0
    reward: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The figures about a rollout at a time; None where nothing is known.

    `baseline`: the champion's version. `since`: the beginning of the evidence window, in Unix seconds. `listed`:
    whether serving has the version. `card_missing`: what its model card lacks; None without a card.

    In shadow: `shadow_decisions`, `shadow_days`; and `unusable`, `slow`, `tokens`: shadow minus champion.
    `slow_is_unknowable`: the embedded model wrote all tips in shadow, which takes longer in the background.

    As a canary, minus the champion: `reward`, over `reward_tips` mature tips of both; `live_unusable`, `live_slow`.
    `unusable_excess`, `slow_excess`: tests whether it has such tips more often, which need fewer tips than the limits.
    `latency_limit_ms`: above it a tip is slow. `slices`: the rewards by slice. `alarms`: what makes a comparison
    invalid, each a sentence. `step_tips`, `step_hours`: the mature tips of the canary, and the time, since its share
    was last changed. `reaction_window_hours`: of the store. `funnel`: the draws of the champion, and of this version.
    `baseline_reward`: the mean reward of the champion's mature tips in the window.
    """

    kind: Kind
    version: str
    baseline: str = ""
    since: float = 0.0
    listed: bool = False
    card_missing: tuple[str, ...] | None = None
    paused: bool = False
    shadow_decisions: int = 0
    shadow_days: int = 0
    unusable: OneSidedLimits | None = None
    slow: OneSidedLimits | None = None
    slow_is_unknowable: bool = False
    tokens: OneSidedLimits | None = None
    ranking: RankingEvidence | None = None
    reward: OneSidedLimits | None = None
    reward_tips: int = 0
    live_unusable: OneSidedLimits | None = None
    live_slow: OneSidedLimits | None = None
    unusable_excess: FailureExcess | None = None
    slow_excess: FailureExcess | None = None
    latency_limit_ms: int | None = None
    slices: tuple[SliceResult, ...] = ()
    alarms: tuple[str, ...] = ()
    step_tips: int = 0
    step_hours: float = 0.0
    reaction_window_hours: float = 24.0
    funnel: tuple[VersionCounts, ...] = ()
    baseline_reward: float | None = None


def standing(
    kind: Kind, version: str, digest: str, catalogue: Catalogue | None, cards: Iterable[ModelCard]
) -> Evidence:
    """Return the evidence about a version without any traffic: whether serving has it, and what its card lacks."""
    card = next((card for card in cards if (card.kind, card.version) == (kind, version)), None)
    return Evidence(
        kind,
        version,
        listed=catalogue is not None and catalogue.lists(kind, version, digest),
        card_missing=None if card is None else missing(card),
    )
