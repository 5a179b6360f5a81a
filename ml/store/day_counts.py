"""The counts of a day: sums over the counters of its hours. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from ml.store.tip_dimensions import DrawOutcome


@dataclass(frozen=True, slots=True)
class DayCounts:
    """The counts of one day (since 1970); `mature`: of tips whose reaction window has ended, else of younger tips.

    `seen`: of tips whose exposure was received within the reaction window.
    """

    day: int
    prompt_version: str
    prompt_digest: str
    fallback: bool
    shown: bool
    dependent: bool
    seen: bool
    reaction: str
    mature: bool
    tips: int
    reward: float
    reward_squared: float
    input_tokens: int
    output_tokens: int
    ms: int
    simulated: int


@dataclass(frozen=True, slots=True)
class DrawCounts:
    """The draws of one day (since 1970) from one distribution, with one drawn version and digest, and one outcome.

    `options`: the distribution, the probability of each version. `prompt_version`: the version that was drawn; "" for a
    failure without one. `prompt_digest`: of the version that wrote the tip; "" for a failure. `seen`: the exposures
    were received within the reaction window. `mature`: the reaction windows of all tips have ended. `tips`: the number
    of draws. `reward` and `reward_squared`: sums over the rewards at the end of the reaction window; 0 for failures.
    """

    day: int
    options: Mapping[str, float]
    prompt_version: str
    prompt_digest: str
    outcome: DrawOutcome
    seen: bool
    mature: bool
    tips: int
    reward: float
    reward_squared: float


@dataclass(frozen=True, slots=True)
class RankingCounts:
    """The draws of one day (since 1970) of one ranking policy from one distribution over policies, with one outcome.

    As `DrawCounts`, of shown tips. `outcome`: `failed` if the policy did not answer.
    """

    day: int
    options: Mapping[str, float]
    policy_version: str
    outcome: DrawOutcome
    seen: bool
    mature: bool
    tips: int
    reward: float
    reward_squared: float
