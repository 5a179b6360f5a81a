"""Prompt policies: how the prompt version of a tip is chosen.

To add one, add an entry to `POLICIES`. The settings, the selection in the recommender, `tips evaluate`, the simulation,
the figures, the help texts and the training from the decision log read it from there: those that compare policies, from
`comparable_policies`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ml.experiments.assignment import Assignment, draw_sticky, draw_systematic, normalised
from ml.experiments.thompson import RewardHistory, thompson_distribution

MAX_WEIGHT = 1e6
MAX_VERSIONS = 20
"""The maximum number of prompt versions that one policy may choose among."""

SALT = "prompt-version"
"""Part of every hash here. Under `sticky` the version of each user depends on it: another salt reassigns nearly all."""

_VERSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """A method of choosing the prompt version of a tip.

    `summary`: one clause for help texts. `distribution`: returns the probability of each version, given its weight and
    the rewards known so far. `draw`: draws a version for each candidate of a decision, given that distribution, the
    user id and the ids of the candidates; the hash of the ids is the only source of randomness, so that a draw can be
    repeated from logged values. Whatever the position of a candidate, its version has the probability of the
    distribution. `version`: to be raised when the policy chooses differently. `learns`: the distribution depends on
    rewards. `per_user`: a version is drawn per user, not per tip, so the tips of one user are not independent.
    `per_decision`: all candidates of a decision have the same version, so the shown one represents its version however
    it was chosen. `from_rollouts`: the versions and their shares are those of the rollouts, not of TIP_PROMPT_VERSION.
    `needs_versions`, `max_versions`: the limits of the number of versions. `accepts_weights`: versions may have
    different weights. `selectable`: TIP_PROMPT_POLICY may name it. A policy that is not selectable draws no version, so
    its tips are left out of training and evaluation.
    """

    summary: str
    distribution: Callable[[Mapping[str, float], RewardHistory], Mapping[str, float]]
    draw: Callable[[Mapping[str, float], str, Sequence[str]], Sequence[Assignment]]
    version: str = "3"
    learns: bool = False
    per_user: bool = False
    per_decision: bool = False
    from_rollouts: bool = False
    needs_versions: int = 0
    max_versions: int = MAX_VERSIONS
    accepts_weights: bool = True
    selectable: bool = True


def _by_weight(weights: Mapping[str, float], history: RewardHistory) -> Mapping[str, float]:  # noqa: ARG001
    return normalised(weights) if weights else {}


def _by_probability_best(weights: Mapping[str, float], history: RewardHistory) -> Mapping[str, float]:
    return thompson_distribution([*weights], history)


def _draw_per_tip(
    distribution: Mapping[str, float],
    user_id: str,  # noqa: ARG001
    tip_ids: Sequence[str],
) -> Sequence[Assignment]:
    return draw_systematic(distribution, tip_ids, salt=SALT)


def _draw_per_user(distribution: Mapping[str, float], user_id: str, tip_ids: Sequence[str]) -> Sequence[Assignment]:
    return [draw_sticky(distribution, user_id, salt=SALT)] * len(tip_ids)


def _draw_per_decision(
    distribution: Mapping[str, float],
    user_id: str,  # noqa: ARG001
    tip_ids: Sequence[str],
) -> Sequence[Assignment]:
    return draw_systematic(distribution, [min(tip_ids)], salt=SALT) * len(tip_ids)


UNIFORM = "uniform"
PLAYGROUND = "playground"
ROLLOUT = "rollout"
HOLDOUT = "holdout"

POLICIES: Mapping[str, PromptPolicy] = MappingProxyType(
    {
        UNIFORM: PromptPolicy(
            summary="draws a version for each tip, by weight",
            distribution=_by_weight,
            draw=_draw_per_tip,
        ),
        "sticky": PromptPolicy(
            summary="draws a version for each user, by weight, and keeps it",
            distribution=_by_weight,
            draw=_draw_per_user,
            per_user=True,
            needs_versions=2,
        ),
        "thompson": PromptPolicy(
            summary="draws each version with the probability that it is the best (Thompson sampling)",
            distribution=_by_probability_best,
            draw=_draw_per_tip,
            learns=True,
            needs_versions=2,
            accepts_weights=False,
        ),
        ROLLOUT: PromptPolicy(
            summary="draws the champion or a canary for each tip, by the shares of the rollouts",
            distribution=_by_weight,
            draw=_draw_per_decision,
            accepts_weights=False,
            max_versions=1,
            per_decision=True,
            from_rollouts=True,
        ),
        HOLDOUT: PromptPolicy(
            summary="gives held-out users the control version, under rollout",
            distribution=_by_weight,
            draw=_draw_per_decision,
            per_user=True,
            per_decision=True,
            selectable=False,
        ),
        PLAYGROUND: PromptPolicy(
            summary="writes a tip with every version, on the start page",
            distribution=_by_weight,
            draw=_draw_per_tip,
            selectable=False,
        ),
    }
)


def selectable_policies() -> tuple[str, ...]:
    """Return the values of TIP_PROMPT_POLICY."""
    return tuple(name for name, policy in POLICIES.items() if policy.selectable)


def comparable_policies() -> tuple[str, ...]:
    """Return the policies that choose among any given versions, so that evaluation and simulation can compare them."""
    return tuple(name for name in selectable_policies() if not POLICIES[name].from_rollouts)


def is_version_name(text: str) -> bool:
    """Return whether a text can be the name of a prompt version."""
    return _VERSION_NAME.fullmatch(text) is not None


def parse_version_weights(text: str) -> tuple[tuple[str, float], ...]:
    """Parse one version, a list of versions, or weights: `v1`, `v1,v2-mentor`, `v1=90,v2-mentor=10`.

    Raises ValueError, whose message is the end of a sentence, for anything else.
    """
    items = [item.partition("=") for item in text.split(",")]
    try:
        weights = {name.strip(): float(weight if equals else 1) for name, equals, weight in items}
    except ValueError:
        weights = {}
    if (
        not 0 < len(weights) == len(items) <= MAX_VERSIONS
        or len({equals for _, equals, _ in items}) > 1
        or not all(is_version_name(name) and 0 < weight < MAX_WEIGHT for name, weight in weights.items())
    ):
        raise ValueError(
            "should be one prompt version, or different versions separated by commas, either all or none with a weight "
            "above zero, such as v1,v2-mentor or v1=90,v2-mentor=10"
        )
    return tuple(weights.items())


def check_policy_weights(name: str, weights: Mapping[str, float]) -> None:
    """Raise ValueError, whose message is the end of a sentence, if TIP_PROMPT_POLICY cannot be `name` with `weights`.

    `weights`: the weight of each version of TIP_PROMPT_VERSION; empty if serving's default is used.
    """
    if name not in selectable_policies():
        raise ValueError(f"should be one of {', '.join(selectable_policies())}")
    policy = POLICIES[name]
    if len(weights) < policy.needs_versions:
        raise ValueError(f"needs at least {policy.needs_versions} versions in TIP_PROMPT_VERSION")
    if len(weights) > policy.max_versions:
        raise ValueError("needs at most one version in TIP_PROMPT_VERSION, the first champion")
    if not policy.accepts_weights and any(weight != 1 for weight in weights.values()):
        raise ValueError("accepts no weights in TIP_PROMPT_VERSION: it determines them")
