"""People who do not exist ask for tips and react, through the real HTTP interface.

Only the model and the clock are not real: each day's requests carry that day's time. The rows say that they are
simulated.
"""

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ml.platform.settings import ConfigurationError
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from ml.simulation.people import Progress, Visit, visits
from ml.standalone.app import create_app
from ml.store.tips import open_tip_store

_AT_ONCE = 8
_HOUR = timedelta(hours=1)
_A_DAY = 24
"""Hours."""

_REFRESH_SECONDS = 0.25
"""A day goes by in about a second, and a policy that learns should do so many times a day."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """How much was simulated."""

    tips: int
    reactions: int


def simulate(
    settings: RecommenderSettings, *, users: int, days: int, end: datetime, seed: int, progress: Progress
) -> Simulated:
    """Let `users` people live through the `days` days before `end`; the same seed gives the same people and tastes.

    The versions are those of the settings, all of them if those name none. Raises ConfigurationError when the database
    holds the tips of real people, or cannot be used.
    """
    asyncio.run(_refuse_real_people(settings, end))
    crowd = _Crowd(seed, clock=end)
    with listening(_model()) as model:
        versions = settings.tip_prompt_version or tuple((version, 1.0) for version in PROMPTS)
        app = create_app(
            ServingSettings(
                tip_model="openai/simulated",
                tip_model_api_base=f"{model}/v1",
                tip_model_fallbacks=(),
                embedded_model_path=None,
                api_keys=(),
                otel_exporter_otlp_endpoint=None,
            ),
            settings.model_copy(update={"tip_prompt_version": versions, "serving_url": None, "api_keys": ()}),
            clock=lambda: crowd.clock,
            simulated=True,
            refresh_seconds=_REFRESH_SECONDS,
        )
        with listening(app) as service:
            return asyncio.run(crowd.live(service, users, days, progress))


async def _refuse_real_people(settings: RecommenderSettings, now: datetime) -> None:
    async with open_tip_store(settings.database_url.get_secret_value(), lambda: now) as store:
        if await store.holds_real_tips():
            raise ConfigurationError(
                "DATABASE_URL: holds the tips of real people; name another database to simulate into."
            )


@dataclass(slots=True)
class _Crowd:
    """Everybody, and the time that it is for them."""

    seed: int
    clock: datetime
    later: list[tuple[datetime, dict[str, Any]]] = field(default_factory=list)
    tips: int = 0
    reactions: int = 0

    async def live(self, service: str, users: int, days: int, progress: Progress) -> Simulated:
        """Ask and react, hour by hour, until it is the end again."""
        end = self.clock
        start = end - timedelta(days=days)
        async with httpx.AsyncClient(base_url=service, timeout=60) as http:
            for hour in progress(range(days * _A_DAY)):
                if hour % _A_DAY == 0:
                    today = visits(users, hour // _A_DAY, self.seed)
                self.clock = min(end, start + (hour + 1) * _HOUR)
                now = [visit for visit in today if visit.time // _HOUR == hour % _A_DAY]
                await self._all(self._visit(http, visit) for visit in now)
                due = [body for at, body in self.later if at <= self.clock]
                self.later = [(at, body) for at, body in self.later if at > self.clock]
                await self._all(self._react(http, body) for body in due)
        return Simulated(self.tips, self.reactions)

    async def _all(self, coroutines: Iterable[Any]) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(coroutine: Any) -> None:
            async with limit:
                await coroutine

        await asyncio.gather(*(one(coroutine) for coroutine in coroutines))

    async def _visit(self, http: httpx.AsyncClient, visit: Visit) -> None:
        answer = await http.post("/tips", json={"user_id": visit.user_id, "signals": visit.signals})
        tip = answer.raise_for_status().json()
        self.tips += 1
        reaction = visit.reaction(tip["prompt_version"])
        if reaction:
            when = self.clock + reaction.after
            body = {"tip_id": tip["tip_id"], "reaction": reaction.kind, "at": when.isoformat()}
            self.later += [(when, body)] * reaction.times

    async def _react(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        answer = await http.post("/reactions", json=body)
        self.reactions += answer.raise_for_status().json()["outcome"] == "recorded"


def _model() -> Starlette:
    """An OpenAI-compatible model that always says the same."""

    async def complete(request: Request) -> Response:
        body = await request.json()
        words = sum(len(message["content"].split()) for message in body["messages"])
        message = {"role": "assistant", "content": "Take three slow breaths before the next thing you do."}
        return JSONResponse(
            {
                "id": "simulated",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": words, "completion_tokens": 12, "total_tokens": words + 12},
            }
        )

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port of this machine, in a thread, until the block ends; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
