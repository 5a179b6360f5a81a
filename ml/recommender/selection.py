"""The selection of the prompt version of each tip, by TIP_PROMPT_VERSION and TIP_PROMPT_POLICY."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from ml.experiments.policies import POLICIES, UNIFORM
from ml.experiments.statistics import Sample
from ml.experiments.thompson import RewardHistory
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.platform.errors import StorageUnavailable, TipsError
from ml.recommender.serving_client import ServingClient
from ml.store.hours import hour_of
from ml.store.tips import TipStore

log = structlog.get_logger()

REFRESH_SECONDS = 60.0
"""The interval at which a policy that learns looks for new rewards."""


@dataclass(frozen=True, slots=True)
class PromptSelection:
    """A prompt version that was drawn, the policy that drew it, and the distribution it was drawn from.

    `prompt_version` is None, and `options` is empty, when serving's default is used. With rollouts: `event`: the id of
    the event that decided the options. `digest`: that of the version; serving must write with no other one.
    """

    prompt_version: str | None
    policy: str
    policy_version: str
    options: Mapping[str, float]
    probability: float = 1.0
    event: int | None = None
    digest: str | None = None


class VersionSelector(Protocol):
    """A way to draw the prompt versions of a decision."""

    def select(self, user_id: str, tip_ids: Sequence[str], segments: Collection[str] = ()) -> list[PromptSelection]:
        """Draw the prompt version of each candidate of a decision, in the order of the ids.

        `segments`: of the user. The same ids, in any order, give the same versions while the distribution is the same.
        """

    def champion(self) -> PromptSelection | None:
        """Return the selection that replaces one whose version serving does not know; None without rollouts."""


class PromptSelector:
    """Draws a prompt version for each candidate of a decision, from the versions of TIP_PROMPT_VERSION.

    Each draw is a function of the distribution and of ids, so it can be repeated from the stored rows of the decision.
    """

    def __init__(self, weights: Mapping[str, float], policy: str = UNIFORM) -> None:
        """`weights`: the weight of each version; empty if serving's default is used. `policy`: a name in `POLICIES`."""
        self._weights = weights
        self._policy = POLICIES[policy]
        self._logged_policy = policy if policy != UNIFORM else _logged_uniform_policy(weights)
        self._distribution = self._policy.distribution(weights, RewardHistory())

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions to choose among, in the order of TIP_PROMPT_VERSION."""
        return tuple(self._weights)

    @property
    def learns(self) -> bool:
        """Whether the distribution depends on rewards."""
        return self._policy.learns

    def learn(self, history: RewardHistory) -> None:
        """Update the distribution by the rewards of each version; a missing version has no rewards yet."""
        self._distribution = self._policy.distribution(self._weights, history)

    def champion(self) -> None:
        """Return None: there are no rollouts."""

    def select(
        self,
        user_id: str,
        tip_ids: Sequence[str],
        segments: Collection[str] = (),  # noqa: ARG002
    ) -> list[PromptSelection]:
        """Draw the prompt version of each candidate of a decision, whatever the segments of the user."""
        logged = self._logged_policy, self._policy.version
        if not self._weights:
            return [PromptSelection(None, *logged, {})] * len(tip_ids)
        drawn = self._policy.draw(self._distribution, user_id, tip_ids)
        return [PromptSelection(one.option, *logged, one.distribution, one.probability) for one in drawn]


def _logged_uniform_policy(weights: Mapping[str, float]) -> str:
    """Return the name under which draws of `uniform` are logged: it depends on the number of versions and weights."""
    if len(weights) <= 1:
        return "single" if weights else "serving-default"
    return "weighted" if len({*weights.values()}) > 1 else UNIFORM


@asynccontextmanager
async def keep_learning(
    selector: PromptSelector,
    tip_store: TipStore,
    serving: ServingClient,
    *,
    reaction_window: timedelta,
    half_life_days: float,
    seen_only: bool,
    clock: Clock,
    every: float,
    background: BackgroundTasks,
) -> AsyncIterator[None]:
    """Update a selector that learns: at once, and then whenever there is something new, until the block ends.

    `half_life_days`: of the rewards. `seen_only`: only tips count whose exposure was reported.

    Every `every` seconds it looks whether another hour of tips is mature, or serving has other prompt digests; only
    then are the rewards read. So there are few different distributions, each of which has its own hourly counts.
    Rewards count for a version only under its current prompt digest. If serving does not answer, the digests of its
    last answer are used; before its first answer, nothing is learned. Raises StorageUnavailable when the rewards cannot
    be read the first time; later, the distribution stays as it is until they can be read.
    """
    digests: Mapping[str, str] = {}
    learned_from: tuple[int, Mapping[str, str]] | None = None

    async def learn() -> None:
        nonlocal digests, learned_from
        try:
            digests = await serving.prompt_digests()
        except TipsError as error:
            log.warning("prompts_not_read", outcome=error.slug, reason="the digests of the last answer are used")
        # Only mature tips. Of younger tips only those with a reaction could count, and a version that is new or drawn
        # increasingly often has more young tips, so it would seem better than it is.
        mature_before = hour_of(clock() - reaction_window)
        if learned_from == (mature_before, digests):
            return
        rewards = await tip_store.counts.daily_rewards(mature_before, seen_only=seen_only)
        history = RewardHistory(
            {day: _rewards_of_current_digests(of_day, digests) for day, of_day in rewards.items()},
            today=mature_before // 24,
            half_life_days=half_life_days,
        )
        # In a thread, since it takes 10 ms for twenty versions.
        await asyncio.to_thread(selector.learn, history)
        learned_from = mature_before, digests

    async def learn_repeatedly() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await learn()
            except StorageUnavailable:
                log.warning("rewards_not_read", reason="the distribution of the versions stays as it is")

    if not selector.learns:
        yield
        return
    await learn()
    async with background.run("learning", learn_repeatedly()):
        yield


def _rewards_of_current_digests(
    rewards: Mapping[tuple[str, str], Sample], digests: Mapping[str, str]
) -> dict[str, Sample]:
    """Return the rewards of each version under its current digest: those under earlier digests do not count."""
    return {version: rewards[version, digest] for version, digest in digests.items() if (version, digest) in rewards}
