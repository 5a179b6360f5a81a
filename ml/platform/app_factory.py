"""The application factory of both services: middleware around routers, health, metrics, errors and OpenAPI."""

import gc
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from ml.platform.dependencies import from_state
from ml.platform.head_requests import answer_head_requests
from ml.platform.middleware.bearer_keys import BearerKeyMiddleware, is_open
from ml.platform.middleware.body_limit import BodyLimitMiddleware
from ml.platform.middleware.in_flight_limit import InFlightLimit, InFlightLimitMiddleware
from ml.platform.middleware.request_telemetry import RequestTelemetryMiddleware
from ml.platform.openapi import install_openapi
from ml.platform.problem_json import install_problem_handlers, problem_responses
from ml.platform.settings import ConfigurationError, ServiceSettings
from ml.platform.telemetry import Telemetry, configure_logging

log = structlog.get_logger()

MAX_BODY_BYTES = 64 * 1024

OPEN_PATHS = ("/health", "/metrics", "/docs", "/openapi.json")
"""The paths that need no key: for load balancers, metrics scrapers and developers. They serve no personal data."""

GC_THRESHOLD = 20_000
"""New objects before a collection: by default 700, so that each request would cause some."""

ReadinessCheck = Callable[[], Awaitable[None]]
"""A check that raises NotReady, or another error with status 503, while a part of the service is not usable."""


def build_service(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]],
    *,
    settings: ServiceSettings,
    telemetry: Telemetry,
    routers: Sequence[APIRouter],
    open_routers: Sequence[APIRouter] = (),
    open_paths: Collection[str] = (),
    limits: Sequence[InFlightLimit] = (),
) -> FastAPI:
    """Return an application with middleware around the routers.

    `lifespan` yields the state for handlers: a mapping in which `ready` is a sequence of ReadinessCheck.
    `open_routers` need no key on `open_paths`. Requests beyond one of the `limits` are answered with 503.
    """
    app = FastAPIOffline(
        title="Tips",
        summary="Short, personal tips from a language model, each with the exact version of the prompt that wrote it.",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",  # /docs loads nothing from other hosts
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ml.platform.telemetry has its own
    )
    for router in (*routers, *open_routers, _operations(telemetry)):
        # Not include_router: it keeps routers nested, and matching through them takes 0.05 ms of each request.
        app.router.routes.extend(router.routes)
    answer_head_requests(app.router.routes)
    all_open_paths = (*OPEN_PATHS, *open_paths)
    install_openapi(app, needs_key=lambda path: bool(settings.api_keys) and not is_open(path, all_open_paths))
    install_problem_handlers(app)
    # The middleware added last is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_bytes=MAX_BODY_BYTES)
    for limit in limits:
        app.add_middleware(InFlightLimitMiddleware, limit=limit)
    app.add_middleware(BearerKeyMiddleware, keys=settings.api_keys, open_paths=all_open_paths)
    app.add_middleware(RequestTelemetryMiddleware, telemetry=telemetry)
    return app


def warn_if_unauthenticated(settings: ServiceSettings) -> None:
    """Log a warning when there are no keys."""
    if not settings.api_keys:
        log.warning("open_to_everyone", reason="API_KEYS is not set, so everyone who can reach this service may use it")


def freeze_gc() -> None:
    """Exclude all existing objects, mostly imported libraries, from garbage collection.

    Entry points call it before they serve: each full collection would otherwise pause the service for about 90 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def freeze_gc_again() -> None:
    """Exclude what was loaded since as well, if an entry point has called `freeze_gc`."""
    if gc.get_freeze_count():
        freeze_gc()


def build_app_or_exit(build: Callable[[], FastAPI]) -> FastAPI:
    """Build the app of an entry point; on a ConfigurationError, exit with its sentence and a non-zero status."""
    configure_logging()
    try:
        app = build()
    except ConfigurationError as error:
        sys.exit(str(error))
    freeze_gc()
    return app


class Health(BaseModel):
    """The state of the service: `live` (the process answers) or `ready` (every part is usable)."""

    status: Literal["live", "ready"]


def _operations(telemetry: Telemetry) -> APIRouter:
    router = APIRouter()

    @router.get("/health/live", summary="The process answers")
    async def live() -> Health:
        """Answer while the process runs."""
        return Health(status="live")

    @router.get("/health/ready", summary="The service is ready for requests", responses=problem_responses(503))
    async def ready(checks: Annotated[Sequence[ReadinessCheck], from_state("ready")]) -> Health:
        """Answer 200 when the service is ready for requests; otherwise 503, naming the parts that are not."""
        for check in checks:
            await check()
        return Health(status="ready")

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the counters and histograms of this process in Prometheus' text format."""
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    return router
