"""The application factory of the recommender, and the resources that it opens and closes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import structlog
from fastapi import FastAPI

from ml.experiments.policies import POLICIES, UNIFORM
from ml.platform.app_factory import build_service, warn_if_unauthenticated
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock, utc_now
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.recommender import start_page
from ml.recommender.recommend import Recommender
from ml.recommender.routes import RecommenderState, router
from ml.recommender.selection import REFRESH_SECONDS, PromptSelector, keep_learning
from ml.recommender.serving_client import (
    ServingClient,
    authorization,
    check_versions,
    fetch_policy_name,
    fetch_prompt_digests,
)
from ml.recommender.settings import RecommenderSettings
from ml.rewards import pages
from ml.rewards.report import RewardReporter
from ml.rewards.routes import router as rewards_router
from ml.store.recount import prepare_database
from ml.store.tips import open_tip_store

log = structlog.get_logger()


def create_app(
    settings: RecommenderSettings, *, clock: Clock = utc_now, refresh_seconds: float = REFRESH_SECONDS
) -> FastAPI:
    """Return the recommender for a serving at SERVING_URL. Raises ConfigurationError when the settings cannot work.

    `refresh_seconds`: the interval at which a prompt policy that learns looks for new rewards.
    """
    check_settings(settings)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))

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
            open_state(settings, telemetry, http, clock=clock, refresh_seconds=refresh_seconds) as state,
        ):
            yield state

    return build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[router, rewards_router],
        open_routers=[pages.build_router(settings.admin_password), start_page.build_router(settings.admin_password)],
    )


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
) -> AsyncIterator[RecommenderState]:
    """Open the store and start learning, yield the state for the routes, and close everything when the block ends.

    `http`: an HTTP client with serving's address and key. `simulated`: the users are simulated, and the rows of their
    tips are marked as such. Raises StorageUnavailable or ConfigurationError when the database cannot be used; then
    everything opened before is closed.
    """
    selector = PromptSelector(settings.version_weights, settings.tip_prompt_policy)
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
        recommender = Recommender(
            selector,
            serving,
            tip_store,
            telemetry,
            clock=clock,
            candidate_count=settings.tip_candidates,
            simulated=simulated,
        )
        yield {
            "recommender": recommender,
            "tip_store": tip_store,
            "reporter": RewardReporter(
                tip_store, versions=selector.versions, exposure_reported=settings.exposure_reported
            ),
            "clock": clock,
            "telemetry": telemetry,
            "ready": [tip_store.database.ping, background.check_ready],
        }


def check_settings(settings: RecommenderSettings) -> None:
    """Raise ConfigurationError if SERVING_URL is unset, or serving does not know a version of TIP_PROMPT_VERSION.

    If serving does not answer, the versions are checked by the first tip instead.
    """
    if not settings.serving_url:
        raise ConfigurationError("SERVING_URL: must be the address of serving; `tips serve` runs both in one process.")
    if not settings.version_weights:
        return
    digests = fetch_prompt_digests(settings.serving_url, settings.serving_api_key)
    if digests is None:
        log.warning("serving_does_not_answer", reason="TIP_PROMPT_VERSION is checked by the first tip")
    else:
        check_versions(settings.version_weights, digests)
    if _learns_from_several_candidates(settings):
        warn_if_candidates_are_ranked(settings, fetch_policy_name(settings.serving_url, settings.serving_api_key))


def warn_if_candidates_are_ranked(settings: RecommenderSettings, ranking_policy: str | None) -> None:
    """Log a warning if the prompt policy would learn from tips that a learned policy chose among several candidates.

    `ranking_policy`: the name of the live policy of /score; None if it is not known.
    """
    if _learns_from_several_candidates(settings) and ranking_policy not in {None, UNIFORM}:
        log.warning(
            "learning_from_ranked_tips",
            policy=ranking_policy,
            reason=f"{settings.tip_prompt_policy} learns how good the best of {settings.tip_candidates} candidates is; "
            "set TIP_PROMPT_POLICY to uniform, or TIP_CANDIDATES to 1",
        )


def _learns_from_several_candidates(settings: RecommenderSettings) -> bool:
    return POLICIES[settings.tip_prompt_policy].learns and settings.tip_candidates > 1
