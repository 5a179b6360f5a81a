"""The selection of the prompt version of each tip, by TIP_PROMPT_VERSION and TIP_PROMPT_POLICY."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from ml.experiments.policies import POLICIES, UNIFORM
from ml.experiments.statistics import Sample
from ml.platform.background import run_in_background
from ml.platform.clock import Clock
from ml.platform.errors import StorageUnavailable, TipsError
from ml.recommender.serving_client import ServingClient
from ml.store.rollup import hour_of
from ml.store.tips import TipStore

log = structlog.get_logger()

REFRESH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PromptSelection:
    """A prompt version that was drawn, the policy that drew it, and the distribution it was drawn from.

    `prompt_version` is None, and `options` empty, where serving's default is used.
    """

    prompt_version: str | None
    policy: str
    policy_version: str
    options: Mapping[str, float]
    probability: float = 1.0


class PromptSelector:
    """Draws a prompt version for each tip.

    Each draw is a function of the distribution and of ids, so it can be repeated from the row of its tip.
    """

    def __init__(self, weights: Mapping[str, float], policy: str = UNIFORM) -> None:
        """Take the weight of each version (none: serving's default is used) and the name of one of `POLICIES`."""
        self._weights = weights
        self._policy = POLICIES[policy]
        self._name = policy if policy != UNIFORM else _uniform_name(weights)
        self._distribution = self._policy.distribution(weights, {})

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions to choose among, in the operator's order."""
        return tuple(self._weights)

    @property
    def learns(self) -> bool:
        """Whether the distribution depends on rewards."""
        return self._policy.learns

    def learn(self, rewards: Mapping[str, Sample]) -> None:
        """Update the distribution by the rewards of each version; a version that is missing has none yet."""
        self._distribution = self._policy.distribution(self._weights, rewards)

    def select(self, user_id: str, tip_id: str) -> PromptSelection:
        """Draw the prompt version of a tip; the same ids give the same version while the distribution is the same."""
        if not self._weights:
            return PromptSelection(None, self._name, self._policy.version, {})
        drawn = self._policy.draw(self._distribution, user_id, tip_id)
        return PromptSelection(drawn.option, self._name, self._policy.version, drawn.distribution, drawn.probability)


def _uniform_name(weights: Mapping[str, float]) -> str:
    """Return the name under which draws of `uniform` are logged: it says whether there was a choice, and weights."""
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
    clock: Clock,
    every: float,
) -> AsyncIterator[None]:
    """Update a selector that learns: at once, and then every `every` seconds until the block ends.

    Raises StorageUnavailable when the rewards cannot be read at first; later, the last distribution stays.
    """
    digests: Mapping[str, str] | None = None

    async def learn() -> None:
        nonlocal digests
        try:
            digests = await serving.prompt_digests()
        except TipsError as error:
            log.warning("prompts_not_read", outcome=error.slug, reason="the digests known already are used")
        # Only mature tips: of younger ones only those with a reaction would count, and a version that is new or drawn
        # more and more often has more of them, so it would seem better than it is.
        rewards = await tip_store.counts.rewards(hour_of(clock() - reaction_window))
        # In a thread: for twenty versions it takes 40 ms.
        await asyncio.to_thread(selector.learn, _rewards_of_present_texts(rewards, digests))

    async def learn_repeatedly() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await learn()
            except StorageUnavailable:
                log.warning("rewards_not_read", reason="versions are drawn by the rewards known already")

    if not selector.learns:
        yield
        return
    await learn()
    async with run_in_background(learn_repeatedly()):
        yield


def _rewards_of_present_texts(
    rewards: Mapping[tuple[str, str], Sample], digests: Mapping[str, str] | None
) -> dict[str, Sample]:
    """Return the rewards of each version under its present digest: earlier texts of a version do not count.

    While serving has never answered (`digests` is None) nothing is known about the present texts.
    """
    return {
        version: rewards[version, digest] for version, digest in (digests or {}).items() if (version, digest) in rewards
    }
