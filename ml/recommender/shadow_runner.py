"""Versions in shadow: after the response, they write and rank for the same signals, and nobody is shown the result."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from ml.experiments.assignment import hash_to_unit_interval
from ml.experiments.policies import ROLLOUT
from ml.experiments.rollout_state import Position
from ml.platform.background import BackgroundTasks
from ml.platform.errors import Busy, NotReady, StorageUnavailable, TipsError, UnknownVersion
from ml.platform.telemetry import Telemetry
from ml.recommender.candidates import Candidate, FailedDraw, UserContext, check_version, milliseconds_since
from ml.recommender.live_rollouts import LiveRollouts
from ml.recommender.ranking import MAX_RANKING_SECONDS, candidate_bodies
from ml.recommender.selection import PromptSelection
from ml.recommender.serving_client import ServingClient
from ml.store.shadows import ShadowRanking, Shadows, ShadowTip

log = structlog.get_logger()

SHADOW_SALT = "rollout-shadow"
"""Part of the hash that decides which decisions versions in shadow get."""

MAX_CONCURRENT = 2
"""The maximum number of shadow tips and rankings at a time."""

MAX_WAITING = 16
"""The maximum number of those that wait; further ones are dropped."""

ROWS_PER_COUNT = 50
"""The rows after which the rows of a rollout are counted again, since other replicas add some, too."""

_UNRELATED = (Busy, NotReady, UnknownVersion)
"""Errors that say nothing about a version."""


@dataclass(frozen=True, slots=True)
class LiveDecision:
    """A real decision: when it was stored, the outcome of its first draw, and its candidates if a policy ranked them.

    The first draw, not the tip that was shown: the shown one was chosen, perhaps for its text. `timeout`: of its
    generations, in seconds; a version in shadow gets the same.
    """

    context: UserContext
    at: datetime
    first: Candidate | FailedDraw
    timeout: float
    ranked: Sequence[Candidate] = ()

    @property
    def id(self) -> UUID:
        """The id of its first draw."""
        return self.first.tip_id if isinstance(self.first, Candidate) else self.first.draw.tip_id

    @property
    def selection(self) -> PromptSelection:
        """The selection of its prompt version."""
        return self.first.selection if isinstance(self.first, Candidate) else self.first.draw.selection


@dataclass(slots=True)
class _Budget:
    """How many rows a rollout may still get, and after how many the rows are counted again."""

    left: int
    until_count: int


@dataclass(frozen=True, slots=True)
class _Job:
    """A decision, and the version in shadow to ask about it."""

    decision: LiveDecision
    position: Position


class ShadowRunner:
    """Asks versions in shadow, in the background, for a share of the decisions, and stores what they answer."""

    def __init__(
        self,
        live: LiveRollouts,
        serving: ServingClient,
        shadows: Shadows,
        telemetry: Telemetry,
        *,
        share: float,
        limit: int,
    ) -> None:
        """`share`: of the decisions, in [0, 1]. `limit`: the maximum number of rows of a rollout."""
        self._live = live
        self._serving = serving
        self._shadows = shadows
        self._metric = telemetry.shadows
        self._share = share
        self._limit = limit
        self._budgets: dict[int, _Budget] = {}
        self._queue: asyncio.Queue[_Job] = asyncio.Queue(MAX_WAITING)

    def offer(self, decision: LiveDecision) -> None:
        """Queue the decision for the versions in shadow if it is one of their share; returns at once."""
        for position in self._positions(decision):
            budget = self._budgets.get(position.rollout)
            if budget and budget.left <= 0:
                continue
            try:
                self._queue.put_nowait(_Job(decision, position))
            except asyncio.QueueFull:
                self._metric.labels(position.kind, "dropped").inc()

    @asynccontextmanager
    async def run(self, background: BackgroundTasks) -> AsyncIterator[None]:
        """Work on the queue until the block ends; then what is being written or waits is cancelled."""
        async with AsyncExitStack() as stack:
            for number in range(MAX_CONCURRENT):
                await stack.enter_async_context(background.run(f"shadow-{number + 1}", self._work()))
            yield

    def _positions(self, decision: LiveDecision) -> Iterator[Position]:
        state = self._live.state
        if not state.prompt.shadows and not state.policy.shadows:
            return
        if hash_to_unit_interval(SHADOW_SALT, str(decision.id)) >= self._share:
            return
        # Only next to the champion, whose figures are the bounds; under other prompt policies, never.
        champion, selection = state.prompt.champion, decision.selection
        is_champion = champion and (selection.policy, selection.prompt_version) == (ROLLOUT, champion.version)
        is_related = not (isinstance(decision.first, FailedDraw) and isinstance(decision.first.error, _UNRELATED))
        found = [
            *(state.prompt.shadows if is_champion and is_related else ()),
            *(state.policy.shadows if decision.ranked else ()),
        ]
        for position in found:
            if not position.segment or position.segment in decision.context.segments:
                yield position

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            outcome = await self._run(job)
            self._metric.labels(job.position.kind, outcome).inc()

    async def _run(self, job: _Job) -> str:
        """Ask one version about one decision, and store the answer; return the outcome for the metric."""
        try:
            budget = await self._budget(job.position.rollout)
            if budget.left <= 0:
                return "limit"
            budget.left -= 1
            try:
                error = await (self._add_tip(job) if job.position.kind == "prompt" else self._add_ranking(job))
            except _UNRELATED as unrelated:
                budget.left += 1
                return unrelated.slug
            budget.until_count -= 1
            return error or "ok"
        except StorageUnavailable as unavailable:
            log.warning("shadow_not_stored", outcome=unavailable.slug)
            return unavailable.slug

    async def _budget(self, rollout: int) -> _Budget:
        budget = self._budgets.get(rollout)
        if budget is None or budget.until_count <= 0:
            budget = _Budget(self._limit - await self._shadows.count(rollout), ROWS_PER_COUNT)
            self._budgets[rollout] = budget
        return budget

    async def _add_tip(self, job: _Job) -> str | None:
        """Store what a prompt version wrote; return the slug of its error. Raises the errors that are unrelated."""
        decision, position = job.decision, job.position
        generated, error, started = None, None, time.perf_counter()
        try:
            generated = await self._serving.generate(
                {**decision.context.signals}, position.version, timeout=decision.timeout, background=True
            )
            check_version(generated, position.version, position.digest)
        except _UNRELATED:
            raise
        except TipsError as failure:
            error = failure.slug
        ms = milliseconds_since(started)
        first = decision.first
        live = first.generated if isinstance(first, Candidate) else None
        await self._shadows.add_tip(
            ShadowTip(
                tip_id=decision.id,
                rollout=position.rollout,
                user_id=decision.context.user_id,
                created_at=decision.at,
                prompt_version=position.version,
                prompt_digest=position.digest,
                model=generated.model if generated else None,
                tip=generated.tip if generated else None,
                failed=generated is None or generated.fallback,
                error=error,
                ms=ms,
                tokens=generated.usage.total if generated else 0,
                live_version=decision.selection.prompt_version or "",
                live_failed=live is None or live.fallback,
                live_ms=first.ms,
                live_tokens=live.usage.total if live else 0,
            )
        )
        return error

    async def _add_ranking(self, job: _Job) -> str | None:
        """Store how a policy ranks; return the slug of its error. Raises the errors that are unrelated."""
        decision, position = job.decision, job.position
        context, bodies = decision.context, candidate_bodies(decision.ranked)
        ranking, error, started = None, None, time.perf_counter()
        try:
            ranking = await self._serving.score(
                bodies[0]["id"],
                context.user_id,
                context.signals,
                bodies,
                timeout=MAX_RANKING_SECONDS,
                policy=position.version,
            )
        except _UNRELATED:
            raise
        except TipsError as failure:
            error = failure.slug
        await self._shadows.add_ranking(
            ShadowRanking(
                decision_id=decision.ranked[0].tip_id,
                rollout=position.rollout,
                user_id=context.user_id,
                created_at=decision.at,
                policy_version=position.version,
                probabilities={each.id: each.probability for each in ranking.scores} if ranking else None,
                scores={each.id: each.score for each in ranking.scores} if ranking else None,
                error=error,
                ms=milliseconds_since(started),
            )
        )
        return error
