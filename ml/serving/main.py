"""The serving program: `uvicorn ml.serving.main:app`, or `create_app` with settings of one's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from ml.background import beside
from ml.errors import NotReady
from ml.service import assembled, new_service, warn_if_open
from ml.serving.gateway import Gateway
from ml.serving.generate import Generator
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GENERATING_PATHS, State, router
from ml.settings import EMBEDDED_MODEL, ConfigurationError, ServingSettings
from ml.telemetry import Telemetry, tracer


def create_app(settings: ServingSettings) -> FastAPI:
    """Assemble the service. Raises ConfigurationError when the settings cannot work."""
    check(settings)
    telemetry = Telemetry(tracer(settings.otel_exporter_otlp_endpoint))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        warn_if_open(settings)
        async with running(settings, telemetry) as state:
            yield state

    return new_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[router],
        limited_paths=GENERATING_PATHS,
        most_in_flight=settings.most_in_flight,
    )


@asynccontextmanager
async def running(settings: ServingSettings, telemetry: Telemetry) -> AsyncIterator[State]:
    """Yield what the routes need, while it loads and until the block ends."""
    gateway, generator = assemble(settings, telemetry)

    async def ready() -> None:
        if gateway.loading:
            states = "; ".join(f"{what}: {state}" for what, state in gateway.loading.items())
            raise NotReady(f"Not ready. {states}", retry_after=5)

    default_first = sorted(PROMPTS.items(), key=lambda item: item[0] != settings.default_prompt_version)
    async with beside(gateway.warm([prompt.prefix for _, prompt in default_first])):
        yield {"serving_settings": settings, "generator": generator, "ready": [ready]}
    await gateway.close()


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
    """Assemble the service from the environment; raises ConfigurationError when that cannot work."""
    return create_app(ServingSettings.from_environment())


def __getattr__(name: str) -> Any:
    """Make `app` only for whoever asks for it (uvicorn): importing `create_app` reads no environment."""
    if name != "app":
        raise AttributeError(name)
    return assembled(app_from_environment)
