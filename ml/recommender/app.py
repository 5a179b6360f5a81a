"""The recommender: `uvicorn ml.recommender.main:app`, or `create_app` with settings of one's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog
from fastapi import FastAPI

from ml.platform.app_factory import build_app_or_exit, build_service, warn_if_unauthenticated
from ml.platform.clock import Clock
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.recommender.recommend import Recommender
from ml.recommender.routes import RecommenderState, router
from ml.recommender.selection import REFRESH_SECONDS, PromptSelector, keep_learning
from ml.recommender.serving_client import ServingClient, authorization, check_versions, known_versions
from ml.recommender.settings import RecommenderSettings
from ml.rewards import pages
from ml.rewards.report import RewardReporter
from ml.store.database import prepare_database
from ml.store.tips import open_tip_store

log = structlog.get_logger()


def utc_now() -> datetime:
    """Tell the time, in UTC."""
    return datetime.now(UTC)


def create_app(
    settings: RecommenderSettings, *, clock: Clock = utc_now, refresh_seconds: float = REFRESH_SECONDS
) -> FastAPI:
    """Assemble the recommender beside a serving elsewhere. Raises ConfigurationError when the settings cannot work.

    `refresh_seconds`: how often a policy that learns looks at what versions have earned.
    """
    check(settings)
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
        at_work = running(settings, telemetry, http, clock=clock, refresh_seconds=refresh_seconds)
        async with http, at_work as state:
            yield state

    return build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[router],
        open_routers=[pages.router(settings.admin_password)],
        open_paths=pages.PATHS,
    )


@asynccontextmanager
async def running(
    settings: RecommenderSettings,
    telemetry: Telemetry,
    http: httpx.AsyncClient,
    *,
    clock: Clock = utc_now,
    simulated: bool = False,
    refresh_seconds: float = REFRESH_SECONDS,
) -> AsyncIterator[RecommenderState]:
    """Yield what the routes need until the block ends; `http` reaches serving."""
    rotation = PromptSelector(settings.tip_prompt_version, settings.tip_prompt_policy)
    reaction_window = timedelta(hours=settings.reaction_window_hours)
    async with (
        open_tip_store(settings.database_url.get_secret_value(), clock) as tip_scores,
        keep_learning(rotation, tip_scores, reaction_window=reaction_window, clock=clock, every=refresh_seconds),
    ):
        serving = ServingClient(http, timeout=settings.generate_timeout_seconds)
        yield {
            "recommender": Recommender(
                rotation,
                serving,
                tip_scores,
                telemetry,
                clock=clock,
                candidates=settings.tip_candidates,
                simulated=simulated,
            ),
            "tip_scores": tip_scores,
            "rewards": RewardReporter(tip_scores, reaction_window=reaction_window, versions=rotation.versions),
            "clock": clock,
            "telemetry": telemetry,
            "ready": [tip_scores.database.ping],
        }


def check(settings: RecommenderSettings) -> None:
    """Raise ConfigurationError for what only shows beside serving: its address, and the versions it knows.

    A serving that does not answer is no mistake; then the first tip finds out.
    """
    if not settings.serving_url:
        raise ConfigurationError("SERVING_URL: must say where serving is; `tips serve` runs both in one process.")
    versions = tuple(version for version, _ in settings.tip_prompt_version)
    known = known_versions(settings.serving_url, settings.serving_api_key) if versions else ()
    if known is None:
        log.warning("serving_does_not_answer", reason="whether it knows all of TIP_PROMPT_VERSION will show")
    else:
        check_versions(versions, known)


def app_from_environment() -> FastAPI:
    """Assemble the recommender from the environment, its database prepared; raises ConfigurationError."""
    settings = RecommenderSettings.from_environment()
    app = create_app(settings)
    prepare_database(settings.database_url.get_secret_value())
    return app


def __getattr__(name: str) -> Any:
    """Make `app` only for whoever asks for it (uvicorn): importing `create_app` reads no environment."""
    if name != "app":
        raise AttributeError(name)
    return build_app_or_exit(app_from_environment)
