"""The serving program: `uvicorn ml.serving.main:app`, or `create_app` with settings of one's own."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from fastapi import FastAPI

from ml.experiments.ranking import UnusablePolicy
from ml.features.online_store import OnlineStoreUnavailable, SQLiteOnlineStore
from ml.platform.app_factory import build_app_or_exit, build_service, warn_if_unauthenticated
from ml.platform.background import run_in_background
from ml.platform.errors import NotReady, PolicyReloadFailed
from ml.platform.middleware.in_flight_limit import InFlightLimit
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.registry.policies import Policy, Uniform, load
from ml.serving.gateway import Gateway
from ml.serving.generate import TipGenerator
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GENERATION_PATHS, SCORE_LIMIT, ServingState, router
from ml.serving.score import ActivePolicies, Scorer
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings


def create_app(settings: ServingSettings) -> FastAPI:
    """Assemble the service. Raises ConfigurationError when the settings cannot work."""
    check(settings)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))
    scorer = scorer_of(settings, telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[ServingState]:
        warn_if_unauthenticated(settings)
        async with running(settings, telemetry, scorer) as state:
            yield state

    return build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[router],
        limits=[InFlightLimit(GENERATION_PATHS, settings.most_in_flight), SCORE_LIMIT],
    )


@asynccontextmanager
async def running(settings: ServingSettings, telemetry: Telemetry, scorer: Scorer) -> AsyncIterator[ServingState]:
    """Yield what the routes need, while it loads and until the block ends."""
    gateway, generator = assemble(settings, telemetry)

    async def ready() -> None:
        if gateway.loading:
            states = "; ".join(f"{what}: {state}" for what, state in gateway.loading.items())
            raise NotReady(f"Not ready. {states}", retry_after=5)

    default_first = sorted(PROMPTS.items(), key=lambda item: item[0] != settings.default_prompt_version)
    with _reloading_on_hangup(scorer):
        async with run_in_background(gateway.warm([prompt.prefix for _, prompt in default_first])):
            yield {"serving_settings": settings, "generator": generator, "scorer": scorer, "ready": [ready]}
    scorer.close()
    await gateway.close()


def assemble(settings: ServingSettings, telemetry: Telemetry) -> tuple[Gateway, TipGenerator]:
    """Return what writes tips, without HTTP around it; it begins to load, so there must be an event loop."""
    gateway = Gateway(settings.models, api_base=settings.tip_model_api_base, embedded_path=settings.embedded_model_path)
    generator = TipGenerator(
        gateway,
        telemetry,
        default_version=settings.default_prompt_version,
        timeout=settings.generate_timeout_seconds,
    )
    return gateway, generator


def scorer_of(settings: ServingSettings, telemetry: Telemetry) -> Scorer:
    """Return what ranks candidates, its policies loaded. Raises ConfigurationError when one of them cannot be used."""

    def policy(setting: str, source: str | None) -> Policy | None:
        try:
            return load(source, settings.mlflow_tracking_uri) if source else None
        except UnusablePolicy as error:
            raise ConfigurationError(f"{setting}: the policy {error}.") from None

    def deployed() -> ActivePolicies:
        return ActivePolicies(
            policy("SCORE_POLICY", settings.score_policy) or Uniform(),
            policy("SCORE_POLICY_SHADOW", settings.score_policy_shadow),
        )

    try:
        store = SQLiteOnlineStore.open(settings.online_store_url) if settings.online_store_url else None
    except OnlineStoreUnavailable as error:
        raise ConfigurationError(f"ONLINE_STORE_URL: the file {error}.") from None
    return Scorer(deployed, store, telemetry)


@contextmanager
def _reloading_on_hangup(scorer: Scorer) -> Iterator[None]:
    """Load the policies anew on SIGHUP, where there is such a signal and this is the thread that gets it."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(PolicyReloadFailed):  # it is in the log
            await scorer.reload()

    def begin() -> None:
        task = loop.create_task(reload())
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    loop.add_signal_handler(hangup, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)


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
    return build_app_or_exit(app_from_environment)
