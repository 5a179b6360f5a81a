"""The recommender: `uvicorn ml.recommender.main:app`, or `create_app` with settings of one's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog
from fastapi import FastAPI

from ml.recommender import pages
from ml.recommender.database import prepare
from ml.recommender.learning import REFRESH_SECONDS, learning
from ml.recommender.recommend import Recommender
from ml.recommender.rewards import Rewards
from ml.recommender.rotation import Rotation
from ml.recommender.routes import State, router
from ml.recommender.serving_client import ServingClient, authorization, check_versions, known_versions
from ml.recommender.tip_scores import Clock, open_tip_scores
from ml.service import assembled, new_service, warn_if_open
from ml.settings import ConfigurationError, RecommenderSettings
from ml.telemetry import Telemetry, tracer

log = structlog.get_logger()


def now() -> datetime:
    """Tell the time, in UTC."""
    return datetime.now(UTC)


def create_app(
    settings: RecommenderSettings, *, clock: Clock = now, refresh_seconds: float = REFRESH_SECONDS
) -> FastAPI:
    """Assemble the recommender beside a serving elsewhere. Raises ConfigurationError when the settings cannot work.

    `refresh_seconds`: how often a policy that learns looks at what versions have earned.
    """
    check(settings)
    telemetry = Telemetry(tracer(settings.otel_exporter_otlp_endpoint))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        warn_if_open(settings)
        http = httpx.AsyncClient(
            base_url=settings.serving_url or "",
            headers=authorization(settings.serving_api_key),
            transport=httpx.AsyncHTTPTransport(retries=1),
            limits=httpx.Limits(max_connections=None),
        )
        at_work = running(settings, telemetry, http, clock=clock, refresh_seconds=refresh_seconds)
        async with http, at_work as state:
            yield state

    return new_service(
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
    clock: Clock = now,
    simulated: bool = False,
    refresh_seconds: float = REFRESH_SECONDS,
) -> AsyncIterator[State]:
    """Yield what the routes need until the block ends; `http` reaches serving."""
    rotation = Rotation(settings.tip_prompt_version, settings.tip_prompt_policy)
    reaction_window = timedelta(hours=settings.reaction_window_hours)
    async with (
        open_tip_scores(settings.database_url.get_secret_value(), clock) as tip_scores,
        learning(rotation, tip_scores, reaction_window=reaction_window, clock=clock, every=refresh_seconds),
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
            "rewards": Rewards(tip_scores, reaction_window=reaction_window, versions=rotation.versions),
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
    prepare(settings.database_url.get_secret_value())
    return app


def __getattr__(name: str) -> Any:
    """Make `app` only for whoever asks for it (uvicorn): importing `create_app` reads no environment."""
    if name != "app":
        raise AttributeError(name)
    return assembled(app_from_environment)
