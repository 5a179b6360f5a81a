"""A simulation of users who request tips and react to them, through the HTTP interface of both services.

Only the model and the clock are replaced: the clock advances hour by hour through the simulated days. The tips are
stored as simulated in a temporary database, which is copied to that of the settings when the simulation is complete. It
begins with the log of rollouts of that database, so that simulated tips follow the same rollouts.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import stamina
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ml.experiments.policies import POLICIES
from ml.platform.errors import RolloutConflict
from ml.platform.http_protocol import LimitedHttpProtocol
from ml.platform.settings import ConfigurationError
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from ml.simulation.people import Progress, Visit, visits
from ml.simulation.scenarios import PLAIN, SCENARIOS, Scenario
from ml.standalone.app import create_app
from ml.store.database import migrate_database
from ml.store.tips import open_tip_store
from ml.store.transfer import copy_rollouts, copy_tips

_CONCURRENT_REQUESTS = 8
_HOUR = timedelta(hours=1)
_HOURS_PER_DAY = 24

_OVERLOADED = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_ATTEMPTS, _MAX_WAIT_SECONDS = 30, 5.0
"""Of one request, while this machine is overloaded: about two minutes."""

_REFRESH_SECONDS = 0.25
"""A simulated day takes about a second, and a prompt policy that learns should be updated several times in it."""


class SimulationFailed(Exception):
    """A request failed for good; the message is a sentence. Nothing is stored."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The numbers of stored tips, exposures and reactions."""

    tips: int
    exposures: int
    reactions: int


def simulate(
    settings: RecommenderSettings,
    *,
    users: int,
    days: int,
    end: datetime,
    seed: int,
    progress: Progress,
    scenario: Scenario = SCENARIOS[PLAIN],
) -> SimulationResult:
    """Simulate `users` users during the `days` days before `end`; the same seed gives the same users and visits.

    The prompt versions are those of the settings; if these name none, all versions; with a prompt policy that follows
    rollouts, those of the rollouts. Weights and prompt policy are those of the scenario, if it has any; when weights
    change, both services are started again on the same database. All tips, exposures and reactions are stored in one
    transaction at the end, with the events of rollouts that their services added, or none. Raises ConfigurationError
    when the database contains tips of real users or the settings name too few versions, SimulationFailed when a
    request fails repeatedly or somebody changes a rollout meanwhile, and StorageUnavailable when the database cannot be
    used.
    """
    database_url = settings.database_url.get_secret_value()
    policy = scenario.policy or settings.tip_prompt_policy
    from_rollouts = POLICIES[policy].from_rollouts
    versions = () if from_rollouts else settings.tip_prompt_version
    versions = versions or tuple((version, 1.0) for version in PROMPTS)
    if len(versions) < scenario.min_versions:
        raise ConfigurationError(f"TIP_PROMPT_VERSION: this scenario needs {scenario.min_versions} versions.")
    asyncio.run(_require_no_real_tips(settings, end))
    simulation = _Simulation(seed, end, days, [version for version, _ in versions], scenario)
    with TemporaryDirectory(prefix="tips-simulation-") as directory, listening(_model()) as model_url:
        own_database_url = f"sqlite+aiosqlite:///{directory}/tips.db"
        migrate_database(own_database_url)
        last_event = asyncio.run(copy_rollouts(database_url, own_database_url))
        hours = iter(progress(range(days * _HOURS_PER_DAY)))
        serving_settings = ServingSettings(
            tip_model="openai/simulated",
            tip_model_api_base=f"{model_url}/v1",
            tip_model_fallbacks=(),
            embedded_model_path=None,
            api_keys=(),
            otel_exporter_otlp_endpoint=None,
        )
        for period, weights in scenario.periods(days):
            app = create_app(
                serving_settings,
                settings.model_copy(
                    update={
                        "database_url": SecretStr(own_database_url),
                        "tip_prompt_version": settings.tip_prompt_version
                        if from_rollouts
                        else tuple(zip(simulation.versions, map(float, weights), strict=False)) or versions,
                        "tip_prompt_policy": policy,
                        "serving_url": None,
                        "api_keys": (),
                    }
                ),
                clock=lambda: simulation.now,
                simulated=True,
                refresh_seconds=_REFRESH_SECONDS,
            )
            with listening(app) as url:
                asyncio.run(simulation.run(url, users, islice(hours, len(period) * _HOURS_PER_DAY)))
        next(hours, None)  # ends the display of progress
        try:
            asyncio.run(copy_tips(own_database_url, database_url, settings.reaction_window, last_event=last_event))
        except RolloutConflict:
            raise SimulationFailed(
                "A rollout in the database was changed during the simulation, so nothing is stored; simulate again."
            ) from None
    return SimulationResult(simulation.tips, simulation.exposures, simulation.reactions)


async def _require_no_real_tips(settings: RecommenderSettings, now: datetime) -> None:
    url, window = settings.database_url.get_secret_value(), settings.reaction_window
    async with open_tip_store(url, lambda: now, reaction_window=window) as store:
        if await store.holds_real_tips():
            raise ConfigurationError(
                "DATABASE_URL: contains tips of real users; name another database for the simulation."
            )


@dataclass(slots=True)
class _Simulation:
    """The visits and reactions of all users, the present time in the simulation, and the counts of the result.

    `now`: the present time; when created, the end of the simulation, `days` days after its start. `versions`: the
    prompt versions in the order of the settings. `pending`: reactions that have not been sent yet, each with the time
    to send it and its request body.
    """

    seed: int
    now: datetime
    days: int
    versions: Sequence[str]
    scenario: Scenario = SCENARIOS[PLAIN]
    pending: list[tuple[datetime, dict[str, Any]]] = field(default_factory=list)
    tips: int = 0
    exposures: int = 0
    reactions: int = 0
    _end: datetime = field(init=False)

    def __post_init__(self) -> None:
        self._end = self.now
        self.now -= timedelta(days=self.days)

    async def run(self, url: str, users: int, hours: Iterable[int]) -> None:
        """Send the requests of each of these hours since the start, which follow on those of the run before."""
        start = self._end - timedelta(days=self.days)
        visits_today: list[Visit] = []
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for hour in hours:
                if hour % _HOURS_PER_DAY == 0:
                    visits_today = visits(users, hour // _HOURS_PER_DAY, self.seed, self.scenario)
                self.now = min(self._end, start + (hour + 1) * _HOUR)
                visits_now = [visit for visit in visits_today if visit.time // _HOUR == hour % _HOURS_PER_DAY]
                await _gather_limited(self._request_tip(http, visit) for visit in visits_now)
                due = [body for at, body in self.pending if at <= self.now]
                self.pending = [(at, body) for at, body in self.pending if at > self.now]
                await _gather_limited(self._send_reaction(http, body) for body in due)

    async def _request_tip(self, http: httpx.AsyncClient, visit: Visit) -> None:
        tip = await _post(http, "/tips", {"user_id": visit.user_id, "signals": visit.signals})
        self.tips += 1
        if not visit.is_seen(self.scenario.unseen_share(self.versions.index(tip["prompt_version"]))):
            return
        exposure = await _post(http, "/exposures", {"tip_id": tip["tip_id"], "at": self.now.isoformat()})
        self.exposures += exposure["outcome"] == "recorded"
        simulated = visit.reaction(tip["prompt_version"])
        if simulated:
            at = self.now + simulated.delay
            body = {"tip_id": tip["tip_id"], "reaction": simulated.reaction, "at": at.isoformat()}
            self.pending += [(at, body)] * simulated.times

    async def _send_reaction(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        result = await _post(http, "/reactions", body)
        self.reactions += result["outcome"] == "recorded"


async def _post(http: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> Any:
    """Return the JSON answer to a request; repeat the request while the service is overloaded."""
    try:
        async for attempt in stamina.retry_context(
            on=_is_overloaded, attempts=_ATTEMPTS, timeout=None, wait_max=_MAX_WAIT_SECONDS
        ):
            with attempt:
                response = await http.post(path, json=body)
                return response.raise_for_status().json()
    except httpx.HTTPStatusError as error:
        detail = error.response.json().get("detail", "")
        raise SimulationFailed(f"POST {path} was answered with {error.response.status_code}: {detail}") from None
    raise AssertionError("the last attempt returns or raises")


def _is_overloaded(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _OVERLOADED


async def _gather_limited(requests: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all requests, at most `_CONCURRENT_REQUESTS` of them at a time."""
    limit = asyncio.Semaphore(_CONCURRENT_REQUESTS)

    async def send(request: Coroutine[Any, Any, None]) -> None:
        async with limit:
            await request

    await asyncio.gather(*(send(request) for request in requests))


def _model() -> Starlette:
    """Return an OpenAI-compatible model that always writes the same tip."""

    async def complete(request: Request) -> Response:
        body = await request.json()
        prompt_tokens = sum(len(message["content"].split()) for message in body["messages"])
        message = {"role": "assistant", "content": "Take three slow breaths before the next thing you do."}
        return JSONResponse(
            {
                "id": "simulated",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": 12,
                    "total_tokens": prompt_tokens + 12,
                },
            }
        )

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


@contextmanager
def listening(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve `app` on a free port of this machine, in a thread, until the block ends; yield its address.

    `options`: further options of uvicorn.
    """
    options = {"http": LimitedHttpProtocol, "ws": "none", "timeout_graceful_shutdown": 5, **options}
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, **options))
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
