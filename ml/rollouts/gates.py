"""The gates of rollouts: what has to hold before a version moves to its next stage. Pure.

Each gate is a function of the evidence about a rollout, and has an entry in `GATES`. A promotion needs all gates of its
step and of its kind. `GUARDRAILS` are those that take a canary out of use by themselves when they fail.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ml.experiments.failure_excess import FailureExcess
from ml.experiments.guardrails import RARE_HARM_ALPHA, OneSidedLimits
from ml.experiments.rollout_state import Kind
from ml.experiments.shadow_pairs import TOKEN_FACTOR
from ml.rollouts.evidence import Evidence
from ml.rollouts.gate_settings import GateSettings

Step = Literal["shadow", "canary", "ramp", "champion"]
"""The target of a promotion: a stage, or a larger share of a canary."""

_ALL_STEPS: frozenset[Step] = frozenset({"shadow", "canary", "ramp", "champion"})
_TO_CANARY: frozenset[Step] = frozenset({"canary"})
_OF_CANARY: frozenset[Step] = frozenset({"ramp", "champion"})
_TO_CHAMPION: frozenset[Step] = frozenset({"champion"})
_BOTH_KINDS: frozenset[Kind] = frozenset({"prompt", "policy"})
_PROMPTS: frozenset[Kind] = frozenset({"prompt"})
_POLICIES: frozenset[Kind] = frozenset({"policy"})


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a gate passes, its figure and its bound as text, and all of it as one sentence."""

    name: str
    passed: bool
    figure: str
    bound: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the check of a gate: whether it passes, and its figure and bound as text."""

    passed: bool
    figure: str
    bound: str


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition of a promotion.

    `steps`, `kinds`: of the promotions that need it. `summary`: the figure that it is about, as the subject of a
    sentence. `check`: a function of the evidence and the bounds.
    """

    steps: frozenset[Step]
    kinds: frozenset[Kind]
    summary: str
    check: Callable[[Evidence, GateSettings], Outcome]


UNKNOWN = "not known"
"""The figure of a gate without data."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _hours(value: float) -> str:
    return f"{value:.3g} hours"


def _at_most(limits: OneSidedLimits | None, bound: float) -> Outcome:
    """Pass if a difference is known to be at most `bound`."""
    figure = UNKNOWN if limits is None else f"{_points(limits.estimate)}, at most {_points(limits.high)}"
    return Outcome(limits is not None and limits.high <= bound, figure, f"at most {_points(bound)}")


def _no_excess(limits: OneSidedLimits | None, excess: FailureExcess | None, bound: float) -> Outcome:
    """Pass unless such tips are known to be more frequent, and the estimated difference is above `bound`.

    The test alone would fail for a difference that is far below the bound, once there are enough tips.
    """
    condition = f"at most {_points(bound)}, or a p-value of at least {RARE_HARM_ALPHA:g}"
    if limits is None or excess is None:
        return Outcome(True, UNKNOWN, condition)
    passed = limits.estimate <= bound or excess.p_value >= RARE_HARM_ALPHA
    return Outcome(passed, f"{_points(limits.estimate)}, with a p-value of {excess.p_value:.2g}", condition)


def _card(evidence: Evidence, _: GateSettings) -> Outcome:
    missing = evidence.card_missing
    figure = "no card" if missing is None else f"missing: {'; '.join(missing)}" if missing else "complete"
    return Outcome(missing == (), figure, "complete")


def _listed(evidence: Evidence, _: GateSettings) -> Outcome:
    figure = "listed" if evidence.listed else "not listed, or with another digest"
    return Outcome(evidence.listed, figure, "listed by serving")


def _not_paused(evidence: Evidence, _: GateSettings) -> Outcome:
    return Outcome(not evidence.paused, "paused" if evidence.paused else "not paused", "not paused")


def _shadow_decisions(evidence: Evidence, settings: GateSettings) -> Outcome:
    bound = settings.min_shadow_decisions
    return Outcome(evidence.shadow_decisions >= bound, f"{evidence.shadow_decisions:,}", f"at least {bound:,}")


def _shadow_days(evidence: Evidence, settings: GateSettings) -> Outcome:
    bound = settings.min_shadow_days
    return Outcome(evidence.shadow_days >= bound, f"{evidence.shadow_days:,}", f"at least {bound:,}")


def _latency(evidence: Evidence, settings: GateSettings) -> Outcome:
    outcome = _at_most(evidence.slow, settings.max_slow)
    if evidence.slow_is_unknowable:
        return Outcome(True, "not comparable with the embedded model, until the version is a canary", outcome.bound)
    return outcome


def _tokens(evidence: Evidence, settings: GateSettings) -> Outcome:
    limits, bound = evidence.tokens, settings.max_excess_tokens
    figure = UNKNOWN if limits is None else f"{_times(limits.estimate)}, at most {_times(limits.high)}"
    return Outcome(limits is not None and limits.high <= bound, figure, f"at most {_times(bound)}")


def _times(excess: float) -> str:
    """Return a relative excess of tokens (`excess_tokens`) as a multiple of the champion's tokens."""
    factor = 1 + excess if excess < 0 else 1 / max(1 - excess, 1e-9)
    return f"{TOKEN_FACTOR * factor:,.2f} times"


def _off_policy_gain(evidence: Evidence, settings: GateSettings) -> Outcome:
    gain = evidence.ranking and evidence.ranking.gain
    figure = f"{_points(gain.estimate)}, at least {_points(gain.low)}" if gain else UNKNOWN
    return Outcome(bool(gain and gain.low > -settings.margin), figure, f"above {_points(-settings.margin)}")


def _support(evidence: Evidence, settings: GateSettings) -> Outcome:
    size = evidence.ranking.effective_sample_size if evidence.ranking else 0.0
    bound = settings.min_effective_sample_size
    return Outcome(size >= bound, f"{size:,.0f}", f"at least {bound:,.0f}")


def _unreachable(evidence: Evidence, settings: GateSettings) -> Outcome:
    ranking, bound = evidence.ranking, settings.max_unreachable
    passed = ranking is not None and ranking.unreachable <= bound
    return Outcome(passed, _percent(ranking.unreachable) if ranking else UNKNOWN, f"at most {_percent(bound)}")


def _agreement(evidence: Evidence, settings: GateSettings) -> Outcome:
    ranking, bound = evidence.ranking, settings.min_agreement
    passed = ranking is not None and ranking.agreement >= bound
    return Outcome(passed, f"{ranking.agreement:.2f}" if ranking else UNKNOWN, f"at least {bound:.2f}")


def _no_loss(evidence: Evidence, _: GateSettings) -> Outcome:
    limits = evidence.reward
    figure = UNKNOWN if limits is None else f"{_points(limits.estimate)}, at most {_points(limits.high)}"
    return Outcome(limits is None or limits.high >= 0, figure, "not known to be below +0.0 points")


def _reward(evidence: Evidence, settings: GateSettings) -> Outcome:
    limits = evidence.reward
    bound = 0.0 if settings.criterion == "better" else -settings.margin
    figure = UNKNOWN if limits is None else f"{_points(limits.estimate)}, at least {_points(limits.low)}"
    return Outcome(limits is not None and limits.low > bound, figure, f"above {_points(bound)} ({settings.criterion})")


def _alarms(evidence: Evidence, _: GateSettings) -> Outcome:
    return Outcome(not evidence.alarms, "; ".join(evidence.alarms) or "none", "none")


def _slices(evidence: Evidence, settings: GateSettings) -> Outcome:
    harmed = [each.name for each in evidence.slices if each.status == "harmed"]
    unknown = [each.name for each in evidence.slices if each.status == "unknown"]
    found = [f"harmed: {', '.join(harmed)}"] if harmed else []
    found += [f"unknown, with too few tips: {', '.join(unknown)}"] if unknown else []
    figure = "; ".join(found) or (f"none of {len(evidence.slices)}" if evidence.slices else "no slices")
    return Outcome(not harmed, figure, f"none harmed (a loss below {_percent(settings.slice_margin)} is no harm)")


def _step_tips(evidence: Evidence, settings: GateSettings) -> Outcome:
    bound = settings.min_step_tips
    return Outcome(evidence.step_tips >= bound, f"{evidence.step_tips:,}", f"at least {bound:,}")


def _step_hours(evidence: Evidence, settings: GateSettings) -> Outcome:
    bound = settings.min_step_hours
    bound = evidence.reaction_window_hours if bound is None else bound
    return Outcome(evidence.step_hours >= bound, _hours(evidence.step_hours), f"at least {_hours(bound)}")


GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "card": Gate(_ALL_STEPS, _BOTH_KINDS, "The model card", _card),
        "listed": Gate(_ALL_STEPS, _BOTH_KINDS, "The version in serving", _listed),
        "not_paused": Gate(_ALL_STEPS - {"shadow"}, _BOTH_KINDS, "The state of the rollout", _not_paused),
        "shadow_decisions": Gate(
            _TO_CANARY, _BOTH_KINDS, "The number of decisions that the version has shadowed", _shadow_decisions
        ),
        "shadow_days": Gate(_TO_CANARY, _BOTH_KINDS, "The number of days that the version has shadowed", _shadow_days),
        "unusable": Gate(
            _TO_CANARY,
            _BOTH_KINDS,
            "The share of unusable answers in shadow, minus the champion's",
            lambda evidence, settings: _at_most(evidence.unusable, settings.max_unusable),
        ),
        "latency": Gate(
            _TO_CANARY,
            _PROMPTS,
            "The share of slow tips in shadow, minus the champion's",
            _latency,
        ),
        "tokens": Gate(_TO_CANARY, _PROMPTS, "The tokens of a tip in shadow, relative to the champion's", _tokens),
        "off_policy_gain": Gate(
            _TO_CANARY, _POLICIES, "The off-policy gain over the live policy in shadow", _off_policy_gain
        ),
        "support": Gate(_TO_CANARY, _POLICIES, "The effective sample size of the decisions in shadow", _support),
        "unreachable": Gate(
            _TO_CANARY, _POLICIES, "The probability of choices that the live policy cannot make", _unreachable
        ),
        "agreement": Gate(_TO_CANARY, _POLICIES, "The agreement with the live policy", _agreement),
        "no_loss": Gate(_OF_CANARY, _BOTH_KINDS, "The mean reward, minus the champion's", _no_loss),
        "no_excess_unusable": Gate(
            _OF_CANARY,
            _BOTH_KINDS,
            "The share of unusable tips, minus the champion's",
            lambda evidence, settings: _no_excess(
                evidence.live_unusable, evidence.unusable_excess, settings.max_unusable
            ),
        ),
        "no_excess_latency": Gate(
            _OF_CANARY,
            _PROMPTS,
            "The share of slow tips, minus the champion's",
            lambda evidence, settings: _no_excess(evidence.live_slow, evidence.slow_excess, settings.max_slow),
        ),
        "alarms": Gate(_OF_CANARY, _BOTH_KINDS, "The alarms of the sample ratio and of exposures", _alarms),
        "slices": Gate(_OF_CANARY, _BOTH_KINDS, "The slices of the traffic", _slices),
        "step_tips": Gate(
            _OF_CANARY, _BOTH_KINDS, "The number of mature tips since the share was last changed", _step_tips
        ),
        "step_hours": Gate(_OF_CANARY, _BOTH_KINDS, "The time since the share was last changed", _step_hours),
        "reward": Gate(_TO_CHAMPION, _BOTH_KINDS, "The mean reward, minus the champion's", _reward),
        "live_unusable": Gate(
            _TO_CHAMPION,
            _BOTH_KINDS,
            "The share of unusable tips, minus the champion's",
            lambda evidence, settings: _at_most(evidence.live_unusable, settings.max_unusable),
        ),
        "live_latency": Gate(
            _TO_CHAMPION,
            _PROMPTS,
            "The share of slow tips, minus the champion's",
            lambda evidence, settings: _at_most(evidence.live_slow, settings.max_slow),
        ),
    }
)
"""All gates by name, in the order in which they are shown."""

GUARDRAILS = ("no_loss", "no_excess_unusable", "no_excess_latency")
"""The gates that roll a canary back when they fail.

At all looks together, the first one is wrong with probability at most `HARM_ALPHA`, the others `RARE_HARM_ALPHA`. The
bounds of unusable and slow tips are above 0 in addition, so an equal version is hardly ever rolled back by them.
"""


def check_gates(evidence: Evidence, step: Step, settings: GateSettings) -> list[GateResult]:
    """Return the results of all gates that a step of this kind of rollout needs, in the order of `GATES`."""
    return [
        _result(name, evidence, settings)
        for name, gate in GATES.items()
        if step in gate.steps and evidence.kind in gate.kinds
    ]


def check_guardrails(evidence: Evidence, settings: GateSettings) -> list[GateResult]:
    """Return the results of the guardrails of this kind of rollout."""
    return [_result(name, evidence, settings) for name in GUARDRAILS if evidence.kind in GATES[name].kinds]


def _result(name: str, evidence: Evidence, settings: GateSettings) -> GateResult:
    outcome = GATES[name].check(evidence, settings)
    verb = "passes" if outcome.passed else "fails"
    sentence = f"The gate {name} {verb}. {GATES[name].summary}: {outcome.figure}; the bound is: {outcome.bound}."
    return GateResult(name, outcome.passed, outcome.figure, outcome.bound, sentence)
