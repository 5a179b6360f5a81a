"""The application factory for one machine: both services in one process.

The recommender calls serving through the same HTTP interface as a remote serving, but without a socket.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from ml.platform.app_factory import build_service, warn_if_unauthenticated
from ml.platform.clock import Clock, utc_now
from ml.platform.middleware.route_rules import InFlightLimit
from ml.platform.middleware.server_limits import SERVER_LIMITS, ServerLimit
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.recommender import app as recommender
from ml.recommender.live_rollouts import POLL_SECONDS
from ml.recommender.selection import REFRESH_SECONDS
from ml.recommender.serving_client import authorization
from ml.recommender.settings import RecommenderSettings
from ml.rollouts.aliases import set_mlflow_aliases
from ml.serving import app as serving
from ml.serving.prompts import PROMPTS
from ml.serving.routes import MAX_CONCURRENT_RANKINGS, generate, score
from ml.serving.routes import router as serving_router
from ml.serving.settings import ServingSettings
from ml.standalone import playground
from ml.store.recount import prepare_database


def create_app(
    settings: ServingSettings,
    recommender_settings: RecommenderSettings,
    *,
    clock: Clock = utc_now,
    simulated: bool = False,
    refresh_seconds: float = REFRESH_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> FastAPI:
    """Return an application with both services and the start page.

    `simulated`: the users are simulated, and their tips are stored as simulated. `refresh_seconds`: the interval at
    which a prompt policy that learns is updated. `poll_seconds`: the interval at which the state of rollouts is read.
    Raises ConfigurationError when the settings cannot work.
    """
    check_settings(settings, recommender_settings)
    sources = serving.load_policies(settings)
    recommender.warn_if_candidates_are_ranked(recommender_settings, sources.loaded.default.name)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))
    state: dict[str, Any] = {}

    async def call_in_process(scope: Scope, receive: Receive, send: Send) -> None:
        extensions = {SERVER_LIMITS: ServerLimit.NONE}
        await app({**scope, "state": dict(state), "extensions": extensions}, receive, send)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        warn_if_unauthenticated(settings)
        async with AsyncExitStack() as stack:
            serving_state = await stack.enter_async_context(
                serving.open_state(settings, telemetry, sources, clock=clock)
            )
            state.update(serving_state)
            http = await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(call_in_process),
                    base_url="http://serving",
                    headers=authorization(next(iter(settings.api_keys), None)),
                )
            )
            recommender_state = await stack.enter_async_context(
                recommender.open_state(
                    recommender_settings,
                    telemetry,
                    http,
                    clock=clock,
                    simulated=simulated,
                    refresh_seconds=refresh_seconds,
                    poll_seconds=poll_seconds,
                    set_aliases=set_mlflow_aliases(settings.mlflow_tracking_uri) if settings.uses_mlflow else None,
                )
            )
            ready = [*serving_state["ready"], *recommender_state["ready"]]
            state.update({**recommender_state, "ready": ready})
            yield state

    generation_limit = InFlightLimit(settings.generation_limit)
    app = build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[serving_router, *recommender.ROUTERS],
        open_routers=[
            *recommender.page_routers(recommender_settings.admin_password),
            playground.build_router(recommender_settings.admin_password),
        ],
        limits={
            generate: generation_limit,
            playground.stream_tip: generation_limit,
            score: InFlightLimit(MAX_CONCURRENT_RANKINGS),
        },
    )
    return app


def create_app_with_database(settings: ServingSettings, recommender_settings: RecommenderSettings) -> FastAPI:
    """Return both services; check the database and, if it is SQLite, migrate it. Raises ConfigurationError."""
    app = create_app(settings, recommender_settings)
    prepare_database(recommender_settings.database_url.get_secret_value(), recommender_settings.reaction_window)
    return app


def check_settings(settings: ServingSettings, recommender_settings: RecommenderSettings) -> None:
    """Raise ConfigurationError for settings that contradict each other or name an unknown prompt version."""
    serving.check_settings(settings)
    if recommender_settings.serving_url:
        raise ConfigurationError(
            "SERVING_URL: `tips serve` runs serving itself; `tips serve --only recommender` uses a serving elsewhere."
        )
    recommender.check_named_versions(recommender_settings, PROMPTS)
