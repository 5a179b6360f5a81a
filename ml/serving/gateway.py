"""The gateway to language models: fallback models, retries, one deadline, and the errors of this service.

The entry points are `complete` and `stream`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import stamina
import structlog

from ml.platform.background import run_in_daemon_thread
from ml.platform.errors import (
    Busy,
    ContentRefused,
    DeadlineExceeded,
    NotReady,
    TipsError,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamUnreachable,
)
from ml.serving.completion import Completion, CompletionRequest, CompletionStream, with_deadline
from ml.serving.hosted_model import HostedModel
from ml.serving.litellm_adapter import LiteLLM, import_litellm
from ml.serving.prompts import Message
from ml.serving.providers import missing_key
from ml.serving.settings import EMBEDDED_MODEL, NO_EMBEDDED_MODEL

T = TypeVar("T")

log = structlog.get_logger()

ATTEMPTS = 2
"""The number of calls to one model after transient errors, before the next model is tried."""

_TRANSIENT = (UpstreamFailed, UpstreamOverloaded, UpstreamUnreachable)


class Gateway:
    """Calls language models, in the order in which they are configured."""

    def __init__(
        self, models: Sequence[str], *, api_base: str | None = None, embedded_path: Path | None = None
    ) -> None:
        """Take LiteLLM model ids, the preferred one first; `api_base` is the address of the first one only."""
        self._models = tuple(models)
        self._api_base = api_base
        self._embedded_path = embedded_path
        self._missing_keys = [self._missing_key(position) for position in range(len(models))]
        self._litellm: asyncio.Task[LiteLLM]
        self._hosted: list[HostedModel] = []
        self._embedded: asyncio.Task[Any] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Load what the models need, in the background, and close the connections when the block ends.

        A request that arrives while a model loads waits for it; if the loading fails, the request gets that error.
        """
        self._litellm = asyncio.create_task(self._load_litellm())
        if EMBEDDED_MODEL in self._models:
            self._embedded = asyncio.create_task(self._load_embedded())
        try:
            yield self
        finally:
            loading = [task for task in (self._litellm, self._embedded) if task]
            for task in loading:
                task.cancel()
            await asyncio.wait(loading)
            if not self._litellm.cancelled() and not self._litellm.exception():
                await self._litellm.result().aclose()

    @property
    def missing(self) -> dict[str, str]:
        """The state of each part that a first tip needs and that is not loaded; empty when all are loaded."""
        needed: dict[str, asyncio.Task[Any]] = {"litellm": self._litellm}
        if self._embedded and len(self._models) == 1:
            needed["embedded model"] = self._embedded
        states = {name: state for name, task in needed.items() if (state := _loading_state(task))}
        return states | {
            model: reason for model, reason in zip(self._models, self._missing_keys, strict=True) if reason
        }

    async def warm_up(self, prefixes: Sequence[Sequence[Message]]) -> None:
        """Wait until all parts are loaded; the embedded model, if configured, then reads these prompt prefixes."""
        for reason in filter(None, self._missing_keys):
            log.error("model_not_ready", reason=reason)
        if all(self._missing_keys):
            return
        try:
            await self._litellm
            embedded_model = self._embedded and await self._embedded
        except NotReady as error:
            log.error("model_not_ready", reason=error.detail)
            return
        log.info("model_ready", models=list(self._models))
        if embedded_model:
            await embedded_model.warm_up(prefixes)
            log.info("model_warm")

    async def complete(self, request: CompletionRequest, deadline: float) -> Completion:
        """Return a whole completion before `deadline` (in the event loop's time).

        Raises the last model's error when none of the models answers.
        """
        return await self._try_models(self._complete, request, deadline)

    async def stream(self, request: CompletionRequest, deadline: float) -> CompletionStream:
        """Return a completion stream whose first text has arrived; the rest arrives before `deadline`.

        Raises what `complete` raises.
        """

        return await self._try_models(self._start, request, deadline)

    async def _try_models(
        self, call: Callable[[int, CompletionRequest, float], Awaitable[T]], request: CompletionRequest, deadline: float
    ) -> T:
        """Return what `call` returns for the first model that answers.

        Each model gets an equal share of the remaining time, so that one that hangs leaves time for the next.
        """
        for position, model in enumerate(self._models):
            now = asyncio.get_running_loop().time()
            model_deadline = now + (deadline - now) / (len(self._models) - position)
            try:
                await self._wait_until_loaded(position, model_deadline)
                return await with_deadline(
                    model_deadline,
                    _with_retries(lambda at=position: call(at, request, deadline)),  # type: ignore[misc]
                )
            except (Busy, ContentRefused):  # not a failure of the model
                raise
            except TipsError as error:
                log.warning("model_failed", model=model, error=error.slug)
                if position == len(self._models) - 1:
                    raise
        raise AssertionError("the last model answers or raises")

    async def _wait_until_loaded(self, position: int, deadline: float) -> None:
        if reason := self._missing_keys[position]:
            raise NotReady(reason)
        task = self._embedded if self._models[position] == EMBEDDED_MODEL and self._embedded else self._litellm
        try:
            await with_deadline(deadline, asyncio.shield(task))
        except DeadlineExceeded:
            raise NotReady("The model is still loading.", retry_after=5) from None

    async def _complete(self, position: int, request: CompletionRequest, deadline: float) -> Completion:
        stream = self._open(position, request, deadline, stream=False)
        try:
            return await stream.read()
        finally:
            await stream.aclose()

    async def _start(self, position: int, request: CompletionRequest, deadline: float) -> CompletionStream:
        stream = self._open(position, request, deadline, stream=True)
        try:
            return await stream.start()
        except BaseException:
            await stream.aclose()
            raise

    def _open(self, position: int, request: CompletionRequest, deadline: float, *, stream: bool) -> CompletionStream:
        chunks = self._litellm.result().chunks(self._hosted[position], request, stream=stream)
        return CompletionStream(self._models[position], position > 0, chunks, deadline)

    async def _load_litellm(self) -> LiteLLM:
        litellm = await run_in_daemon_thread(import_litellm)
        for position, model in enumerate(self._models):
            address = None if position else self._api_base
            key = os.environ.get("OPENAI_API_KEY", "")
            self._hosted.append(HostedModel.of(model, litellm.module.model_cost, address, key))
        return litellm

    def _missing_key(self, position: int) -> str:
        """Return a sentence for the operator if the key for a model is missing; otherwise an empty text."""
        model = self._models[position]
        if position == 0 and self._api_base and model.startswith("openai/"):
            return ""  # the operator's own server need not have keys
        variable = missing_key(model, os.environ)
        return variable and f"{variable} is not set, and {model} needs it."

    async def _load_embedded(self) -> Any:
        litellm = await asyncio.shield(self._litellm)
        try:
            # Heavy and in an extra: imported only when the embedded model is configured.
            from ml.serving import embedded, weights
        except ModuleNotFoundError as error:
            raise NotReady(NO_EMBEDDED_MODEL) from error
        file = await run_in_daemon_thread(lambda: weights.find_weights(self._embedded_path))
        model = await run_in_daemon_thread(lambda: embedded.EmbeddedModel.load(file))
        provider = {"provider": embedded.PROVIDER, "custom_handler": embedded.EmbeddedProvider(model)}
        litellm.module.custom_provider_map = [provider]
        return model


async def _with_retries(call: Callable[[], Awaitable[T]]) -> T:
    """Call one model, and once more after a transient error."""
    async for attempt in stamina.retry_context(
        on=_TRANSIENT, attempts=ATTEMPTS, timeout=None, wait_initial=0.1, wait_max=1, wait_jitter=0.1
    ):
        with attempt:
            return await call()
    raise AssertionError("the last attempt returns or raises")


def _loading_state(task: asyncio.Task[Any]) -> str:
    if not task.done():
        return "loading"
    return str(error) if not task.cancelled() and (error := task.exception()) else ""
