"""A store with rollouts, and the traffic that a test gives them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from ml.experiments.rollout_state import Catalogue, Kind, RolloutEvent
from ml.registry.cards import CalibrationBin, CardInput, Metric, ModelCard, Slice, Training
from ml.rollouts.gate_settings import GateSettings
from ml.rollouts.operations import Rollouts
from ml.store.exposures import Exposure
from ml.store.failures import GenerationFailure
from ml.store.reactions import Reaction
from ml.store.shadows import ShadowRanking, Shadows, ShadowTip
from ml.store.tips import TipStore, open_tip_store
from tests.databases import Database
from tests.example_tips import NOW, WINDOW, SetClock, a_tip

DIGESTS = {"v1": "1" * 64, "v2-mentor": "2" * 64, "v3-few-shot": "3" * 64}
LEARNED = "0123456789ab"
CATALOGUE = Catalogue(
    model="openai/good",
    default_prompt_version="v1",
    prompts=DIGESTS,
    default_policy="uniform",
    policies={"uniform": "uniform", LEARNED: "tips"},
)
OPERATOR: dict[str, Any] = {"actor": "ada", "reason": "It reads better."}
FORCED = {**OPERATOR, "force": True}

LENIENT = GateSettings(
    margin=0.3,
    min_shadow_decisions=40,
    min_shadow_days=2,
    max_unusable=0.3,
    max_slow=0.6,
    min_effective_sample_size=20,
    slice_margin=0.5,
    min_step_tips=20,
)
"""Bounds that a hundred tips can meet."""

LEARNED_FIGURES: dict[str, Any] = {
    "training": Training(
        since=NOW, until=NOW, decisions=1_000, learned_from=1_000, dataset_sha256="0" * 64, window_days=7
    ),
    "metrics": (Metric(name="gain", value=0.03, low=-0.01, high=0.07, n=900, source="held-out days"),),
    "calibration": (CalibrationBin(predicted=0.2, observed=0.25, low=0.1, high=0.4, n=900),),
    "slices": (Slice(name="mood:low", n=90, value=0.01, low=-0.1, high=0.2, status="unknown"),),
}
"""The fields that the card of a learned policy has in addition."""


def a_card(kind: Kind, version: str, **fields: Any) -> ModelCard:
    """Return a complete card."""
    complete: dict[str, Any] = {
        "name": version,
        "kind": kind,
        "version": version,
        "digest": DIGESTS.get(version, version),
        "purpose": "Writes tips.",
        "inputs": (CardInput(name="mood", type="string", range="good, low"),),
        "limits": ("It may be wrong.",),
        "safety": ("Every tip is checked.",),
        "licence": "apache-2.0",
        "contact": "ml@example.org",
    }
    if version == LEARNED:
        complete |= LEARNED_FIGURES
    return ModelCard(**complete | fields)


@dataclass
class Scenario:
    """A store, its clock, what serving answers, and the traffic so far."""

    store: TipStore
    clock: SetClock
    catalogue: Catalogue = CATALOGUE
    cards: list[ModelCard] = field(
        default_factory=lambda: [*(a_card("prompt", version) for version in DIGESTS), a_card("policy", LEARNED)]
    )
    settings: GateSettings = LENIENT
    exposure_reported: bool = False
    serving_error: Exception | None = None

    @property
    def rollouts(self) -> Rollouts:
        """The operations under test."""
        return self.rollouts_with()

    def rollouts_with(self, **arguments: Any) -> Rollouts:
        """Return the operations under test with other arguments."""
        usual: dict[str, Any] = {
            "catalogue": self._catalogue,
            "cards": self._cards,
            "clock": self.clock,
            "exposure_reported": self.exposure_reported,
            "settings": self.settings,
        }
        return Rollouts(self.store, **usual | arguments)

    async def _catalogue(self) -> Catalogue:
        if self.serving_error:
            raise self.serving_error
        return self.catalogue

    async def _cards(self) -> Sequence[ModelCard]:
        if self.serving_error:
            raise self.serving_error
        return self.cards

    async def shadow_tips(self, event: RolloutEvent, n: int, **fields: Any) -> None:
        """Let a prompt version in shadow write `n` tips now; each live tip is stored, too."""
        shadows = Shadows(self.store.database)
        live = [a_tip(created_at=self.clock(), prompt_digest=DIGESTS["v1"], ms=1_000) for _ in range(n)]
        await self.store.add(*live)
        for tip in live:
            usual = ShadowTip(
                tip_id=tip.tip_id,
                rollout=event.rollout,
                user_id=tip.user_id,
                created_at=tip.created_at,
                prompt_version=event.version,
                prompt_digest=event.digest,
                model="openai/good",
                tip="Stand up now.",
                failed=False,
                error=None,
                ms=1_000,
                tokens=62,
                live_version="v1",
                live_failed=False,
                live_ms=1_000,
                live_tokens=62,
            )
            await shadows.add_tip(replace(usual, **fields))

    async def shadow_rankings(
        self,
        event: RolloutEvent,
        n: int,
        chosen: int = 0,
        *,
        live: Sequence[float],
        shadow: Sequence[float] | None,
        rewards: float,
    ) -> None:
        """Let a policy in shadow rank the two candidates of `n` decisions now, of which the one at `chosen` was shown.

        `live`, `shadow`: the probabilities; None if the policy does not answer. `rewards`: the share with reward 1.
        """
        decisions = [sorted((uuid4(), uuid4())) for _ in range(n)]
        await self.store.add(
            *(
                a_tip(
                    tip_id=each,
                    created_at=self.clock(),
                    decision_id=ids[0],
                    candidates=[str(one) for one in ids],
                    score_policy="uniform",
                    score=0.5,
                    score_probability=live[index],
                    shown=index == chosen,
                )
                for ids in decisions
                for index, each in enumerate(ids)
            )
        )
        await self._react([ids[chosen] for ids in decisions[: round(rewards * n)]])
        for ids in decisions:
            names = [str(each) for each in ids]
            ranking = ShadowRanking(
                decision_id=ids[0],
                rollout=event.rollout,
                user_id="u-1",
                created_at=self.clock(),
                policy_version=event.version,
                probabilities=dict(zip(names, shadow, strict=True)) if shadow else None,
                scores=dict.fromkeys(names, 0.5) if shadow else None,
                error=None if shadow else "busy",
                ms=10,
            )
            await Shadows(self.store.database).add_ranking(ranking)

    async def tips(
        self,
        version: str,
        n: int,
        rewarded: int = 0,
        *,
        options: dict[str, float] | None = None,
        seen: bool = True,
        **fields: Any,
    ) -> None:
        """Store `n` tips of a prompt version that was drawn now, and reward the first ones with 1."""
        drawn = {"options": options or {"v1": 0.5, "v2-mentor": 0.5}, "prompt_version_asked": version}
        at: dict[str, Any] = {"created_at": self.clock(), "prompt_version": version, "prompt_digest": DIGESTS[version]}
        tips = [a_tip(**{"policy": "rollout", "user_id": uuid4().hex, **drawn, **at, **fields}) for _ in range(n)]
        await self.store.add(*tips)
        await self._react([tip.tip_id for tip in tips[:rewarded]])
        if seen and self.exposure_reported:
            await self.store.expose([Exposure(tip.tip_id) for tip in tips])

    async def ranked_tips(self, policy: str, n: int, rewarded: int = 0, **fields: Any) -> None:
        """Store `n` tips that a ranking policy, which was drawn now, has chosen, and reward the first ones with 1."""
        options = {"uniform": 0.5, LEARNED: 0.5}
        drawn = {"policy_asked": policy, "policy_options": options, "score_policy": "tips"}
        usual: dict[str, Any] = {"created_at": self.clock(), "prompt_digest": DIGESTS["v1"], **drawn}
        tips = [a_tip(**usual | fields) for _ in range(n)]
        await self.store.add(*tips)
        await self._react([tip.tip_id for tip in tips[:rewarded]])

    async def failures(self, version: str, n: int, **fields: Any) -> None:
        """Store `n` draws of a version for which no tip was written."""
        failures = [a_failure(version, uuid4(), self.clock()) for _ in range(n)]
        await self.store.add_failures([replace(failure, **fields) for failure in failures])

    async def _react(self, tip_ids: Sequence[UUID]) -> None:
        if tip_ids:
            await self.store.react([Reaction(tip_id, "helpful", self.clock()) for tip_id in tip_ids])


def a_failure(version: str, tip_id: UUID, at: datetime) -> GenerationFailure:
    """Return a draw for which no tip was written."""
    return GenerationFailure(
        tip_id=tip_id,
        decision_id=tip_id,
        user_id="u-1",
        created_at=at,
        policy="rollout",
        policy_version="3",
        options={"v1": 0.5, "v2-mentor": 0.5},
        probability=0.5,
        prompt_version_asked=version,
        error="upstream-error",
        segments=("mood:low",),
    )


@asynccontextmanager
async def opened(database: Database, window: timedelta = WINDOW, **fields: Any) -> AsyncIterator[Scenario]:
    """Open a scenario on a database."""
    clock = SetClock()
    async with open_tip_store(database.url, clock, reaction_window=window) as store:
        yield Scenario(store, clock, **fields)


async def start(scenario: Scenario, version: str = "v2-mentor", segment: str = "") -> RolloutEvent:
    return await scenario.rollouts.start("prompt", version, segment=segment, **OPERATOR)
