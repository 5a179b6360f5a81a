"""The cost of a version in shadow for the requests that it does not get.

    python -m tests.bench.shadow [--pairs 2000]

Everything runs on this machine: a model that answers at once, in a process of its own, and both services in this
process, with keys, on SQLite, with that model as a hosted one and under TIP_PROMPT_POLICY=rollout. Requests for tips
are sent one after the other, alternately without and with a version in shadow, and in a random order within each pair,
so that other load on the machine affects both alike. The version in shadow is that of a cohort, to which the measured
requests do not belong. A few requests of the cohort, which are not measured, check that it is at work.

The CPU time of a request is that of this process, with all its threads, from the request to the end of the response and
of what follows it; the services are called without HTTP, which would make both figures larger. The program prints the
medians, and the ratio of the means without the largest tenth of either, with the standard error from 20 parts of the
run. It exits with an error if an answer is not 200, if a version in shadow ends with another outcome than a tip, or if
the ratio is above 1.02 by more than two standard errors.
"""

import asyncio
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import aiohttp
import typer
import uvloop
from fastapi import FastAPI
from pydantic import SecretStr

from ml.experiments.rollout_state import RolloutState
from ml.platform.app_factory import freeze_gc
from ml.platform.errors import NotReady
from ml.platform.telemetry import configure_logging
from ml.recommender.live_rollouts import LiveRollouts
from ml.recommender.settings import RecommenderSettings
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from ml.standalone.app import create_app
from ml.store.database import migrate_database
from ml.store.shadows import Shadows
from ml.store.tips import TipStore
from tests.bench.figures import machine
from tests.bench.generate import upstream
from tests.bench.open_loop import must_answer, session
from tests.bench.server import KEY, BenchmarkFailed, run, start_server, wait_until_working
from tests.rollout_events import append, move

PARTS = 20
SHADOWED_EVERY = 100
"""The pairs after which one request of the cohort is sent."""

WARM_UP = 100
MAX_RATIO = 1.02
LIVE, SHADOW, COHORT = "v1", "v2-mentor", "de"
SIGNALS = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}
HEADERS = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]

Pair = tuple[float, float]
"""The CPU time of a request without and with a version in shadow, in ms."""


async def request_tip(app: FastAPI, state: Any, locale: str | None) -> float:
    """Request a tip; return the CPU time until everything that follows from it has ended, in ms."""
    signals = SIGNALS | ({"locale": locale} if locale else {})
    body, sent = json.dumps({"user_id": "u-1", "signals": signals}).encode(), False
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 200))

    scope = {"type": "http", "method": "POST", "path": "/tips", "raw_path": b"/tips", "query_string": b""}
    started = time.process_time()
    await app({**scope, "headers": HEADERS, "state": {**state}, "client": ("127.0.0.1", 1)}, receive, send)
    if {*statuses} != {200}:
        raise BenchmarkFailed(f"a request was answered with {statuses[0]}")
    return (time.process_time() - started) * 1000


async def becomes_ready(state: Any) -> None:
    """Wait until LiteLLM is loaded."""
    while True:
        try:
            for check in state["ready"]:
                await check()
            return
        except NotReady:
            await asyncio.sleep(0.2)


async def states(tip_store: TipStore, live: LiveRollouts) -> tuple[RolloutState, RolloutState]:
    """Append a version in shadow to the log; return the state without it, and with it."""
    fields = {"at": datetime.now(UTC), "digest": PROMPTS[SHADOW].digest, "segment": f"locale:{COHORT}"}
    (event,) = await append(tip_store.database, move(SHADOW, "shadow", action="start", **fields))
    while live.state.event != event.id:  # noqa: ASYNC110 - another task reads the log
        await asyncio.sleep(0.05)
    return replace(live.state, prompt=replace(live.state.prompt, positions=MappingProxyType({}))), live.state


async def measure(app: FastAPI, state: Any, pairs: int) -> list[Pair]:
    """Send the requests; check that each one of the cohort gets a shadow."""
    tip_store: TipStore = state["tip_store"]
    live: LiveRollouts = state["recommender"]._shadows._live
    without, with_shadow = await states(tip_store, live)
    rollout = with_shadow.prompt.shadows[0].rollout
    figures: list[Pair] = []
    rng = random.Random(1)
    for number in range(pairs + WARM_UP):
        costs: dict[bool, float] = {}
        for is_shadowed in rng.sample((False, True), 2):
            live.state = with_shadow if is_shadowed else without
            costs[is_shadowed] = await request_tip(app, state, None)
        figures.append((costs[False], costs[True]))
        if number % SHADOWED_EVERY == 0:
            live.state = with_shadow
            await request_tip(app, state, COHORT)
            async with asyncio.timeout(30):
                while await Shadows(tip_store.database).count(rollout) <= number // SHADOWED_EVERY:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    ended = {labels["outcome"] for labels in outcomes(state)}
    if ended != {"ok"}:
        raise BenchmarkFailed(f"versions in shadow ended with {ended}")
    if failed := await failed_shadows(tip_store, rollout):
        raise BenchmarkFailed(f"{failed} shadow tips failed")
    return figures[WARM_UP:]


def outcomes(state: Any) -> list[dict[str, str]]:
    """Return the labels of the metric of versions in shadow."""
    (metric,) = state["telemetry"].shadows.collect()
    return [sample.labels for sample in metric.samples if sample.name == "tips_shadow_total"]


async def failed_shadows(tip_store: TipStore, rollout: int) -> int:
    """Return the number of shadow tips that failed."""
    return sum(tip.failed for tip in await Shadows(tip_store.database).tips(rollout, datetime.min.replace(tzinfo=UTC)))


async def benchmark(pairs: int) -> list[Pair]:
    """Start the model and both services, measure, and stop everything."""
    os.environ["OPENAI_API_KEY"] = "k"
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        configure_logging(stream=stack.enter_context((directory / "log").open("w")))
        url = f"sqlite+aiosqlite:///{directory}/tips.db"
        await asyncio.to_thread(migrate_database, url)
        client: aiohttp.ClientSession = await stack.enter_async_context(session())
        model = stack.enter_context(start_server(upstream(), directory))
        await wait_until_working(model, partial(must_answer, client, model))
        app = create_app(
            ServingSettings(tip_model="openai/tiny", tip_model_api_base=f"{model.address}/v1", api_keys=(KEY,)),
            RecommenderSettings(
                database_url=SecretStr(url),
                tip_prompt_version=((LIVE, 1.0),),
                tip_prompt_policy="rollout",
                rollout_shadow_share=1.0,
                api_keys=(KEY,),
            ),
        )
        state: Any = await stack.enter_async_context(app.router.lifespan_context(app))
        await becomes_ready(state)
        freeze_gc()
        return await measure(app, state, pairs)


def ratio(figures: Sequence[Pair]) -> float:
    """Return the mean with a version in shadow relative to that without, without the largest tenth of either."""
    without, with_shadow = (sorted(each)[: math.ceil(0.9 * len(figures))] for each in zip(*figures, strict=True))
    return statistics.fmean(with_shadow) / statistics.fmean(without)


def main(
    pairs: Annotated[int, typer.Option(min=PARTS, help="Pairs of requests.")] = 2_000,
) -> None:
    """Measure what a version in shadow adds to the CPU time of requests that are not shadowed."""
    figures = run(benchmark(pairs), loop=uvloop.new_event_loop)
    parts = [ratio(figures[start::PARTS]) for start in range(PARTS)]
    found, error = ratio(figures), statistics.stdev(parts) / math.sqrt(PARTS)
    typer.echo(f"{pairs} pairs of requests. {machine('fastapi', 'litellm')}\n")
    typer.echo(f"CPU of a request, ms     {statistics.median(without for without, _ in figures):.3f}")
    typer.echo(f"with a shadow, ms        {statistics.median(with_shadow for _, with_shadow in figures):.3f}")
    typer.echo(f"ratio                    {found:.4f} (standard error {error:.4f})")
    if found - 2 * error > MAX_RATIO:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
