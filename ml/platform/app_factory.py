"""The application factory of both services: middleware around routers, health, metrics, errors and OpenAPI."""

import gc
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.routing import BaseRoute

from ml.platform import api_docs
from ml.platform.dependencies import from_state
from ml.platform.head_requests import answer_head_requests
from ml.platform.middleware.bearer_keys import BearerKeyMiddleware
from ml.platform.middleware.body_limit import BodyLimitMiddleware
from ml.platform.middleware.disconnect import DisconnectMiddleware
from ml.platform.middleware.in_flight_limit import InFlightLimitMiddleware
from ml.platform.middleware.request_telemetry import RequestTelemetryMiddleware
from ml.platform.middleware.route_rules import NO_ROUTE, InFlightLimit, RouteRules, RouteRulesMiddleware
from ml.platform.middleware.server_limits import ServerLimitsMiddleware
from ml.platform.openapi import Tag, install_openapi
from ml.platform.problem_json import install_problem_handlers, problem_responses
from ml.platform.settings import ConfigurationError, ServiceSettings
from ml.platform.telemetry import Telemetry, configure_logging

log = structlog.get_logger()

MAX_BODY_BYTES = 64 * 1024

BODY_TIMEOUT_SECONDS = 10.0

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
    limits: Mapping[Callable[..., Any], InFlightLimit] | None = None,
    body_timeout: float = BODY_TIMEOUT_SECONDS,
) -> FastAPI:
    """Return an application with middleware around the routers.

    `lifespan` yields the state for handlers: a mapping in which `ready` is a sequence of ReadinessCheck.
    The routes of `open_routers` need no key. `limits`: from handlers to the limit of their routes; handlers may share
    one, and requests above it are answered with 503. `body_timeout`: in seconds.
    """
    app = FastAPIOffline(
        title="Tips",
        version=metadata.version("tip-service"),
        summary="Short, personal tips from a language model, each with the exact version of the prompt that wrote it.",
        lifespan=lifespan,
        docs_url=None,  # api_docs has a page of its own
        redoc_url=None,
        static_url=api_docs.STATIC_URL,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ml.platform.telemetry has its own
    )
    # Also the documents, health and metrics, for developers, load balancers and scrapers: there is no personal data.
    open_routers = [*open_routers, api_docs.router, _operations(telemetry)]
    open_routes = [*app.routes, *(route for router in open_routers for route in router.routes)]
    for router in (*routers, *open_routers):
        # Not include_router: it keeps routers nested, and matching through them takes 0.05 ms of each request.
        app.router.routes.extend(router.routes)
    answer_head_requests(app.router.routes)

    def rules(route: BaseRoute) -> RouteRules:
        endpoint: Any = getattr(route, "endpoint", None)
        return RouteRules(
            path=getattr(route, "path", NO_ROUTE.path),
            needs_key=not any(route is open_route for open_route in open_routes),
            limit=(limits or {}).get(endpoint),
        )

    def needs_key(path: str) -> bool:
        all_rules = [rules(route) for route in app.routes]
        return bool(settings.api_keys) and any(each.needs_key for each in all_rules if each.path == path)

    install_openapi(app, needs_key=needs_key)
    install_problem_handlers(app)
    # The middleware added last is the outermost.
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(InFlightLimitMiddleware)
    # Outside of the limit: a request takes a slot once it is complete, so that slow clients hold none.
    app.add_middleware(BodyLimitMiddleware, max_bytes=MAX_BODY_BYTES, timeout=body_timeout)
    app.add_middleware(BearerKeyMiddleware, keys=settings.api_keys)
    app.add_middleware(ServerLimitsMiddleware)
    app.add_middleware(RequestTelemetryMiddleware, telemetry=telemetry)
    app.add_middleware(RouteRulesMiddleware, routes=app.router.routes, rules=rules)
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
    router = APIRouter(tags=[Tag.OPERATIONS])

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
