"""Both services in one process, for one machine: the recommender reaches serving through the same HTTP interface."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from ml.platform.app_factory import build_service, warn_if_unauthenticated
from ml.platform.clock import Clock
from ml.platform.middleware.in_flight_limit import InFlightLimit
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.recommender import app as recommender
from ml.recommender.routes import router as recommender_router
from ml.recommender.selection import REFRESH_SECONDS
from ml.recommender.serving_client import authorization, check_versions
from ml.recommender.settings import RecommenderSettings
from ml.rewards import pages
from ml.serving import app as serving
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GENERATION_PATHS, SCORE_LIMIT
from ml.serving.routes import router as serving_router
from ml.serving.settings import ServingSettings
from ml.standalone import playground
from ml.store.database import prepare_database


def create_app(
    settings: ServingSettings,
    recommender_settings: RecommenderSettings,
    *,
    clock: Clock = recommender.now,
    simulated: bool = False,
    refresh_seconds: float = REFRESH_SECONDS,
) -> FastAPI:
    """Assemble both services. `simulated`: the people do not exist, and the rows of their tips say so.

    `refresh_seconds`: how often a policy that learns looks at what versions have earned. Raises ConfigurationError when
    the settings cannot work.
    """
    check(settings, recommender_settings)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))
    scorer = serving.scorer_of(settings, telemetry)
    state: dict[str, Any] = {}

    async def in_process(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        warn_if_unauthenticated(settings)
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(in_process),
            base_url="http://serving",
            headers=authorization(next(iter(settings.api_keys), None)),
        )
        async with (
            serving.running(settings, telemetry, scorer) as of_serving,
            http,
            recommender.running(
                recommender_settings,
                telemetry,
                http,
                clock=clock,
                simulated=simulated,
                refresh_seconds=refresh_seconds,
            ) as of_recommender,
        ):
            state.update({**of_serving, **of_recommender, "ready": [*of_serving["ready"], *of_recommender["ready"]]})
            yield state

    app = build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[serving_router, recommender_router],
        open_routers=[
            pages.router(recommender_settings.admin_password),
            playground.router(recommender_settings.admin_password),
        ],
        open_paths=(*pages.PATHS, *playground.PATHS),
        limits=[InFlightLimit(GENERATION_PATHS | playground.GENERATING_PATHS, settings.most_in_flight), SCORE_LIMIT],
    )
    return app


def check(settings: ServingSettings, recommender_settings: RecommenderSettings) -> None:
    """Raise ConfigurationError for what only shows when settings are seen beside each other and the registry."""
    serving.check(settings)
    if recommender_settings.serving_url:
        raise ConfigurationError(
            "SERVING_URL: `tips serve` runs serving itself; `tips serve --only recommender` uses one elsewhere."
        )
    check_versions(tuple(version for version, _ in recommender_settings.tip_prompt_version), tuple(PROMPTS))


def app_from_environment() -> FastAPI:
    """Assemble both services from the environment, the database prepared; raises ConfigurationError."""
    settings, recommender_settings = ServingSettings.from_environment(), RecommenderSettings.from_environment()
    app = create_app(settings, recommender_settings)
    prepare_database(recommender_settings.database_url.get_secret_value())
    return app
