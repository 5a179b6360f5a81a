"""What every program of ours is put together with: guards around routes, health, metrics, errors and the document."""

import gc
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from ml.platform.middleware.bearer_keys import BearerKeyMiddleware
from ml.platform.middleware.body_limit import BodyLimitMiddleware
from ml.platform.middleware.in_flight_limit import InFlightLimit, InFlightLimitMiddleware
from ml.platform.middleware.request_telemetry import RequestTelemetryMiddleware
from ml.platform.problem_json import install_problem_handlers, problem_responses
from ml.platform.settings import ConfigurationError, ServiceSettings
from ml.platform.telemetry import Telemetry, configure_logging

log = structlog.get_logger()

MAX_BODY_BYTES = 64 * 1024
"""Bytes."""

OPEN_PATHS = ("/health", "/metrics", "/docs", "/openapi.json")
"""Reachable without a key: what a load balancer, a metrics scraper and a developer need, and nothing personal."""

ReadinessCheck = Callable[[], Awaitable[None]]
"""Raises NotReady, or another error with status 503, as long as a part of the service cannot do its work."""


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
    """Put the guards around the routers.

    `lifespan` yields the state that handlers ask for: a mapping, with the sequence `ready` of Readiness in it.
    `open_routers` need no key on `open_paths`; what goes beyond one of the `limits` is turned away.
    """
    app = FastAPIOffline(
        title="Tips",
        summary="Short, personal tips from a language model, each with the exact version of the prompt that wrote it.",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",  # the page works without any outside address
    )
    # The key is checked before any route is reached; this tells of it in the document.
    key = [Depends(HTTPBearer(auto_error=False))] if settings.api_keys else []
    for router in routers:
        app.include_router(router, dependencies=key)
    for router in (*open_routers, _operations(telemetry)):
        app.include_router(router)
    install_problem_handlers(app)
    # The last one added is the first one passed.
    app.add_middleware(BodyLimitMiddleware, longest=MAX_BODY_BYTES)
    for limit in limits:
        app.add_middleware(InFlightLimitMiddleware, limit=limit)
    app.add_middleware(BearerKeyMiddleware, keys=settings.api_keys, open_paths=(*OPEN_PATHS, *open_paths))
    app.add_middleware(RequestTelemetryMiddleware, telemetry=telemetry)
    return app


def warn_if_unauthenticated(settings: ServiceSettings) -> None:
    """Say it in the log when there are no keys."""
    if not settings.api_keys:
        log.warning("open_to_everyone", reason="API_KEYS is not set, so whoever reaches this service may use it")


def freeze_gc() -> None:
    """Take what is there by now, mostly libraries, out of garbage collection: it stays, and need not be looked through.

    For entry points, before they serve: each full collection would stop the service for some 90 ms.
    """
    gc.collect()
    gc.freeze()


def build_app_or_exit(assemble: Callable[[], FastAPI]) -> FastAPI:
    """Assemble the app of an entry point; end the program with one plain sentence if that cannot work."""
    configure_logging()
    try:
        app = assemble()
    except ConfigurationError as error:
        sys.exit(str(error))
    freeze_gc()
    return app


def from_state(name: str) -> Any:
    """Return the dependency on what the lifespan yielded under `name`."""

    async def value(request: Request) -> Any:  # a plain function would be run in a thread
        return getattr(request.state, name)

    return Depends(value)


class Health(BaseModel):
    """What the service can do: be reached (`live`), or do its work (`ready`)."""

    status: Literal["live", "ready"]


def _operations(telemetry: Telemetry) -> APIRouter:
    router = APIRouter()

    @router.get("/health/live", summary="The process answers")
    async def live() -> Health:
        """Answer as long as the process runs."""
        return Health(status="live")

    @router.get("/health/ready", summary="The service can do its work", responses=problem_responses(503))
    async def ready(checks: Annotated[Sequence[ReadinessCheck], from_state("ready")]) -> Health:
        """Answer 200 when the service can do its work; else 503, with what is still loading or missing."""
        for check in checks:
            await check()
        return Health(status="ready")

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Show the counters and histograms of this process, in Prometheus' text format."""
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    return router
