"""The application factory of serving, and the resources that live as long as the application runs."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

from fastapi import FastAPI

from ml.features.online_store import OnlineStoreUnavailable, check_online_store, open_online_store
from ml.platform import api_docs
from ml.platform.app_factory import build_service, freeze_gc_again, warn_if_unauthenticated
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock, utc_now
from ml.platform.errors import NotReady, PolicyReloadFailed
from ml.platform.middleware.route_rules import InFlightLimit
from ml.platform.settings import ConfigurationError
from ml.platform.telemetry import Telemetry, build_tracer
from ml.serving.gateway import Gateway
from ml.serving.generate import TipGenerator
from ml.serving.policies import REFRESH_SECONDS, ActivePolicies, PolicySources
from ml.serving.prompts import PROMPTS
from ml.serving.routes import MAX_CONCURRENT_RANKINGS, ServingState, generate, router, score
from ml.serving.score import Scorer
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings


def create_app(settings: ServingSettings) -> FastAPI:
    """Return the serving application. Raises ConfigurationError when the settings cannot work."""
    check_settings(settings)
    sources = load_policies(settings)
    telemetry = Telemetry(build_tracer(settings.otel_exporter_otlp_endpoint))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[ServingState]:
        warn_if_unauthenticated(settings)
        async with open_state(settings, telemetry, sources) as state:
            yield state

    return build_service(
        lifespan,
        settings=settings,
        telemetry=telemetry,
        routers=[router],
        open_routers=[api_docs.start_router],
        limits={generate: InFlightLimit(settings.generation_limit), score: InFlightLimit(MAX_CONCURRENT_RANKINGS)},
    )


@asynccontextmanager
async def open_state(
    settings: ServingSettings, telemetry: Telemetry, sources: PolicySources, *, clock: Clock = utc_now
) -> AsyncIterator[ServingState]:
    """Open the resources that the routes need; close them when the block ends, also if opening one of them fails.

    `clock`: by which aggregates are too old.
    """
    background = BackgroundTasks(telemetry.background_task_failures)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(build_gateway(settings).running())
        online_store = await stack.enter_async_context(open_online_store(settings.online_store_url))
        policies = ActivePolicies(sources)
        stack.enter_context(_reload_on_hangup(policies))
        if sources:
            refresh = policies.keep_current(every=REFRESH_SECONDS)
            await stack.enter_async_context(background.run("policies", refresh))
        default_first = sorted(PROMPTS.items(), key=lambda item: item[0] != settings.default_prompt_version)

        async def warm_up() -> None:
            await gateway.warm_up([prompt.prefix for _, prompt in default_first])
            freeze_gc_again()  # LiteLLM is large, and is loaded after the start

        await stack.enter_async_context(background.run("warm-up", warm_up(), endless=False))

        async def check_ready() -> None:
            if gateway.missing:
                states = "; ".join(f"{name}: {state}" for name, state in gateway.missing.items())
                raise NotReady(f"Not ready. {states}", retry_after=5)

        yield {
            "serving_settings": settings,
            "generator": build_generator(settings, gateway, telemetry),
            "scorer": Scorer(policies, online_store, telemetry, clock),
            "policies": policies,
            "ready": [check_ready, background.check_ready],
        }


def check_settings(settings: ServingSettings) -> None:
    """Raise ConfigurationError for settings that contradict each other or name an unknown prompt version."""
    if settings.default_prompt_version not in PROMPTS:
        raise ConfigurationError(
            f"DEFAULT_PROMPT_VERSION: {settings.default_prompt_version!r} is not a prompt version; "
            f"the known ones are {', '.join(PROMPTS)}."
        )
    if settings.tip_model_api_base and settings.tip_model == EMBEDDED_MODEL:
        raise ConfigurationError(
            "TIP_MODEL_API_BASE: needs TIP_MODEL to name a model at that address, such as openai/my-model."
        )
    if settings.embedded_model_path and EMBEDDED_MODEL not in settings.models:
        raise ConfigurationError(
            f"EMBEDDED_MODEL_PATH: needs {EMBEDDED_MODEL}, but neither TIP_MODEL nor TIP_MODEL_FALLBACKS names it."
        )
    if settings.online_store_url:
        try:
            check_online_store(settings.online_store_url)
        except OnlineStoreUnavailable as error:
            raise ConfigurationError(f"ONLINE_STORE_URL: {error}.") from None


def load_policies(settings: ServingSettings) -> PolicySources:
    """Load the ranking policies that the settings name. Raises ConfigurationError when one cannot be used."""
    sources = PolicySources(settings.score_policy, settings.score_policies, settings.mlflow_tracking_uri)
    sources.load()
    return sources


def build_gateway(settings: ServingSettings) -> Gateway:
    """Return the gateway to the models that the settings name."""
    return Gateway(settings.models, api_base=settings.tip_model_api_base, embedded_path=settings.embedded_model_path)


def build_generator(settings: ServingSettings, gateway: Gateway, telemetry: Telemetry) -> TipGenerator:
    """Return a generator that writes tips through `gateway`."""
    return TipGenerator(
        gateway,
        telemetry,
        default_prompt_version=settings.default_prompt_version,
        timeout=settings.generate_timeout_seconds,
    )


@contextmanager
def _reload_on_hangup(policies: ActivePolicies) -> Iterator[None]:
    """Reload the policies on SIGHUP, if the platform has that signal and this is the main thread, which receives it."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        with suppress(PolicyReloadFailed):  # it is logged
            await policies.reload()

    def start_reload() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(hangup, start_reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)
