"""The operations on rollouts by the settings of the recommender: for the service itself, and for commands."""

from collections.abc import Awaitable, Callable, Sequence

from ml.experiments.rollout_state import Catalogue
from ml.platform.clock import Clock
from ml.recommender.settings import RecommenderSettings
from ml.registry.cards import ModelCard
from ml.rollouts.operations import Rollouts
from ml.store.tips import TipStore


def build_rollouts(
    settings: RecommenderSettings,
    tip_store: TipStore,
    *,
    catalogue: Callable[[], Awaitable[Catalogue]],
    cards: Callable[[], Awaitable[Sequence[ModelCard]]],
    clock: Clock,
) -> Rollouts:
    """Return the operations on the rollouts of a store. `catalogue`, `cards`: ask serving; they may raise TipsError."""
    return Rollouts(
        tip_store,
        catalogue=catalogue,
        cards=cards,
        clock=clock,
        exposure_reported=settings.exposure_reported,
        settings=settings.gates,
        notify=settings.rollout_webhook_url is not None,
        prompt_policy=settings.tip_prompt_policy,
        prompt_versions=tuple(settings.version_weights),
    )
