"""The application factory of the recommender, and the resources that it opens and closes."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import httpx
import structlog
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from ml.experiments.policies import POLICIES, UNIFORM
from ml.platform.app_factory import build_service, warn_if_unauthenticated
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock, utc_now
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.recommender import start_page
from ml.recommender.candidates import CandidateWriter
from ml.recommender.drift_metrics import keep_drift_metrics
from ml.recommender.live_rollouts import POLL_SECONDS, LiveRollouts
from ml.recommender.ranking import CandidateRanker
from ml.recommender.recommend import Recommender
from ml.recommender.rollout_operations import build_rollouts
from ml.recommender.rollout_selection import Holdout, RolloutSelector
from ml.recommender.routes import RecommenderState, router
from ml.recommender.selection import REFRESH_SECONDS, PromptSelector, keep_learning
from ml.recommender.serving_client import ServingClient, authorization, check_versions, fetch_catalogue
from ml.recommender.settings import RecommenderSettings
from ml.recommender.shadow_runner import ShadowRunner
from ml.rewards import pages as reward_pages
from ml.rewards.report import RewardReporter
from ml.rewards.routes import router as rewards_router
from ml.rollouts import card_pages, webhook
from ml.rollouts import pages as rollout_pages
from ml.rollouts.aliases import SetAliases, set_mlflow_aliases
from ml.rollouts.cards import CardReader, CardStore
from ml.rollouts.holdout import HoldoutReader
from ml.rollouts.monitor import Monitor, keep_monitoring
from ml.rollouts.routes import router as rollouts_router
from ml.rollouts.webhook import deliver_events
from ml.store.recount import prepare_database
from ml.store.rollouts import RolloutLog
from ml.store.shadows import Shadows
from ml.store.tips import open_tip_store

log = structlog.get_logger()

ROUTERS = (router, rewards_router, rollouts_router)
"""The routes that need a key."""


def create_app(
    settings: RecommenderSettings,
    *,
    clock: Clock = utc_now,
    refresh_seconds: float = REFRESH_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> FastAPI:
    """Return the recommender for a serving at SERVING_URL. Raises ConfigurationError when the settings cannot work.

    `refresh_seconds`: the interval at which a prompt policy that learns looks for new rewards. `poll_seconds`: the
    interval at which the state of rollouts is read.
    """
    check_settings(settings)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))
    set_aliases = set_mlflow_aliases(settings.mlflow_tracking_uri) if settings.mirrors_stages else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[RecommenderState]:
        warn_if_unauthenticated(settings)
        http = httpx.AsyncClient(
            base_url=settings.serving_url or "",
            headers=authorization(settings.serving_api_key),
            transport=httpx.AsyncHTTPTransport(retries=1),
            limits=httpx.Limits(max_connections=None),
        )
        async with (
            http,
            open_state(
                settings,
                telemetry,
                http,
                clock=clock,
                refresh_seconds=refresh_seconds,
                poll_seconds=poll_seconds,
                set_aliases=set_aliases,
            ) as state,
        ):
            yield state

    return build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=ROUTERS,
        open_routers=[*page_routers(settings.admin_password), start_page.build_router(settings.admin_password)],
    )


def page_routers(password: SecretStr | None) -> list[APIRouter]:
    """Return the routes of all admin pages."""
    return [pages.build_router(password) for pages in (reward_pages, rollout_pages, card_pages)]


def create_app_with_database(settings: RecommenderSettings) -> FastAPI:
    """Return the recommender, its database checked and, for SQLite, migrated. Raises ConfigurationError."""
    app = create_app(settings)
    prepare_database(settings.database_url.get_secret_value(), settings.reaction_window)
    return app


@asynccontextmanager
async def open_state(
    settings: RecommenderSettings,
    telemetry: Telemetry,
    http: httpx.AsyncClient,
    *,
    clock: Clock = utc_now,
    simulated: bool = False,
    refresh_seconds: float = REFRESH_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    set_aliases: SetAliases | None = None,
) -> AsyncIterator[RecommenderState]:
    """Open the store, start learning and following rollouts, yield the state for the routes, and close everything.

    `http`: an HTTP client with serving's address and key. `simulated`: the users are simulated, and the rows of their
    tips are marked as such. `refresh_seconds`: also the interval at which rollouts are checked. `set_aliases`: of
    MLflow's registry, if policies come from it. Raises StorageUnavailable or ConfigurationError when the database
    cannot be used; then everything opened before is closed.
    """
    selector = PromptSelector(settings.version_weights, _drawing_policy(settings))
    reaction_window = settings.reaction_window
    serving = ServingClient(http, timeout=settings.generate_timeout_seconds)
    background = BackgroundTasks(telemetry.background_task_failures)
    async with AsyncExitStack() as stack:
        database_url = settings.database_url.get_secret_value()
        tip_store = await stack.enter_async_context(
            open_tip_store(database_url, clock, background, reaction_window=reaction_window)
        )
        await stack.enter_async_context(
            keep_learning(
                selector,
                tip_store,
                serving,
                reaction_window=reaction_window,
                half_life_days=settings.thompson_half_life_days,
                seen_only=settings.exposure_reported,
                clock=clock,
                every=refresh_seconds,
                background=background,
            )
        )
        await stack.enter_async_context(
            deliver_events(
                settings.rollout_webhook_url,
                settings.rollout_webhook_secret,
                tip_store.database,
                clock=clock,
                deliveries=telemetry.webhook_deliveries,
                background=background,
                every=min(refresh_seconds, webhook.POLL_SECONDS),
            )
        )
        live = LiveRollouts(
            RolloutLog(tip_store.database),
            serving,
            decides_prompts=settings.follows_rollouts,
            first_champion=next(iter(settings.version_weights), None),
            clock=clock,
        )
        await stack.enter_async_context(live.keep_current(background, every=poll_seconds))
        shadows = ShadowRunner(
            live,
            serving,
            Shadows(tip_store.database),
            telemetry,
            share=settings.rollout_shadow_share,
            limit=settings.rollout_shadow_limit,
        )
        await stack.enter_async_context(shadows.run(background))
        version_selector = (
            RolloutSelector(live, selector, _holdout(settings)) if settings.follows_rollouts else selector
        )
        recommender = Recommender(
            CandidateWriter(version_selector, serving, clock=clock, count=settings.tip_candidates),
            CandidateRanker(live, serving),
            serving,
            tip_store,
            shadows=shadows,
            telemetry=telemetry,
            clock=clock,
            simulated=simulated,
        )
        rollouts = build_rollouts(settings, tip_store, catalogue=serving.catalogue, cards=serving.cards, clock=clock)
        monitor = Monitor(
            rollouts,
            tip_store.database,
            holder=uuid4().hex,
            clock=clock,
            transitions=telemetry.rollout_transitions,
            auto_ramp=settings.auto_ramp,
            set_aliases=set_aliases,
        )
        await stack.enter_async_context(keep_monitoring(monitor, background, every=refresh_seconds))
        await stack.enter_async_context(
            keep_drift_metrics(tip_store.database, telemetry, background, every=refresh_seconds)
        )
        yield {
            "recommender": recommender,
            "tip_store": tip_store,
            "reporter": RewardReporter(
                tip_store, versions=selector.versions, exposure_reported=settings.exposure_reported
            ),
            "rollouts": rollouts,
            "holdout": HoldoutReader(tip_store.database, reaction_window, settings.exposure_reported, clock),
            "cards": CardReader(
                serving.cards,
                CardStore(tip_store.database, reaction_window, settings.exposure_reported),
                clock,
            ),
            "clock": clock,
            "telemetry": telemetry,
            "ready": [tip_store.database.ping, background.check_ready],
        }


def _holdout(settings: RecommenderSettings) -> Holdout | None:
    control = settings.rollout_control
    return Holdout(settings.rollout_holdout, control) if control and settings.rollout_holdout else None


def _drawing_policy(settings: RecommenderSettings) -> str:
    """Return the policy that draws from TIP_PROMPT_VERSION: with rollouts, until the first champion is known."""
    return UNIFORM if settings.follows_rollouts else settings.tip_prompt_policy


def check_settings(settings: RecommenderSettings) -> None:
    """Raise ConfigurationError if SERVING_URL is unset, or serving does not know a version that the settings name.

    If serving does not answer, the versions are checked by the first tip instead.
    """
    if not settings.serving_url:
        raise ConfigurationError("SERVING_URL: must be the address of serving; `tips serve` runs both in one process.")
    if not settings.version_weights and not settings.rollout_control:
        return
    catalogue = fetch_catalogue(settings.serving_url, settings.serving_api_key)
    if catalogue is None:
        log.warning("serving_does_not_answer", reason="prompt versions are checked by the first tip")
    else:
        check_named_versions(settings, catalogue.prompts)
        warn_if_candidates_are_ranked(settings, catalogue.policies[catalogue.default_policy])


def check_named_versions(settings: RecommenderSettings, known: Iterable[str]) -> None:
    """Raise ConfigurationError if a setting names a prompt version that is not one of these of serving."""
    known = tuple(known)
    check_versions(settings.version_weights, known)
    if settings.rollout_control:
        check_versions([settings.rollout_control], known, setting="ROLLOUT_CONTROL")


def warn_if_candidates_are_ranked(settings: RecommenderSettings, ranking_policy: str) -> None:
    """Log a warning if the prompt policy would learn from tips that a learned policy chose among several candidates.

    `ranking_policy`: the name of the default policy of /score.
    """
    if _learns_from_several_candidates(settings) and ranking_policy != UNIFORM:
        log.warning(
            "learning_from_ranked_tips",
            policy=ranking_policy,
            reason=f"{settings.tip_prompt_policy} learns how good the best of {settings.tip_candidates} candidates is; "
            "set TIP_PROMPT_POLICY to uniform, or TIP_CANDIDATES to 1",
        )


def _learns_from_several_candidates(settings: RecommenderSettings) -> bool:
    return POLICIES[settings.tip_prompt_policy].learns and settings.tip_candidates > 1
