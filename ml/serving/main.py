"""The serving program: `uvicorn ml.serving.main:app`, or `create_app` with settings of one's own."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from ml.errors import install_problem_handlers
from ml.guards import BearerKeys, InFlightLimit, RequestTelemetry, WholeBody
from ml.serving.background import beside
from ml.serving.gateway import Gateway
from ml.serving.generate import Generator
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GENERATING_PATHS, OPEN_PATHS, State, open_router, router
from ml.settings import EMBEDDED_MODEL, ConfigurationError, ServingSettings
from ml.telemetry import Telemetry, configure_logging, tracer

log = structlog.get_logger()

LONGEST_BODY = 64 * 1024
"""Bytes."""


def create_app(settings: ServingSettings) -> FastAPI:
    """Assemble the service. Raises ConfigurationError when the settings cannot work."""
    check(settings)
    telemetry = Telemetry(tracer(settings.otel_exporter_otlp_endpoint))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        if not settings.api_keys:
            log.warning("open_to_everyone", reason="API_KEYS is not set, so whoever reaches this service may use it")
        gateway, generator = assemble(settings, telemetry)
        default_first = sorted(PROMPTS.items(), key=lambda item: item[0] != settings.default_prompt_version)
        async with beside(gateway.warm([prompt.prefix for _, prompt in default_first])):
            yield {"settings": settings, "telemetry": telemetry, "gateway": gateway, "generator": generator}
        await gateway.close()

    app = FastAPIOffline(
        title="Tips",
        summary="Short, personal tips from a language model, each with the exact version of the prompt that wrote it.",
        lifespan=lifespan,
        redoc_url=None,
        static_url="/docs/static",  # the page works without any outside address
    )
    # The key is checked before any route is reached; this tells of it in the document.
    app.include_router(router, dependencies=[Depends(HTTPBearer(auto_error=False))] if settings.api_keys else [])
    app.include_router(open_router)
    install_problem_handlers(app)
    # The last one added is the first one passed.
    app.add_middleware(WholeBody, longest=LONGEST_BODY)
    app.add_middleware(InFlightLimit, most=settings.most_in_flight, paths=GENERATING_PATHS)
    app.add_middleware(BearerKeys, keys=settings.api_keys, open_paths=OPEN_PATHS)
    app.add_middleware(RequestTelemetry, telemetry=telemetry)
    return app


def assemble(settings: ServingSettings, telemetry: Telemetry) -> tuple[Gateway, Generator]:
    """Return what writes tips, without HTTP around it; it begins to load, so there must be an event loop."""
    gateway = Gateway(settings.models, api_base=settings.tip_model_api_base, embedded_path=settings.embedded_model_path)
    generator = Generator(
        gateway,
        telemetry,
        default_version=settings.default_prompt_version,
        timeout=settings.generate_timeout_seconds,
    )
    return gateway, generator


def check(settings: ServingSettings) -> None:
    """Raise ConfigurationError for what only shows when settings are seen beside each other and the registry."""
    if settings.default_prompt_version not in PROMPTS:
        raise ConfigurationError(
            f"DEFAULT_PROMPT_VERSION: there is no such prompt version; the known ones are {', '.join(PROMPTS)}."
        )
    if settings.tip_model_api_base and settings.tip_model == EMBEDDED_MODEL:
        raise ConfigurationError("TIP_MODEL_API_BASE: needs TIP_MODEL to name a model there, such as openai/my-model.")
    if settings.embedded_model_path and EMBEDDED_MODEL not in settings.models:
        raise ConfigurationError(f"EMBEDDED_MODEL_PATH: is for {EMBEDDED_MODEL}, which is not among the models.")


def app_from_environment() -> FastAPI:
    """Assemble the service from the environment; end the program with one plain sentence if that cannot work."""
    configure_logging()
    try:
        return create_app(ServingSettings.from_environment())
    except ConfigurationError as error:
        sys.exit(str(error))


def __getattr__(name: str) -> Any:
    """Make `app` only for whoever asks for it (uvicorn): importing `create_app` reads no environment."""
    if name != "app":
        raise AttributeError(name)
    return app_from_environment()
