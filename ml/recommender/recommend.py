"""One tip for a user: generate candidates, choose one, store all of them durably, then answer."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from ml.platform.after_response import call_after_response
from ml.platform.clock import Clock
from ml.platform.errors import TipsError
from ml.platform.idempotency_key import IdempotencyKey
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.recommender.candidates import (
    Candidate,
    CandidateWriter,
    Draw,
    FailedDraw,
    Generations,
    UserContext,
    time_ordered_id,
)
from ml.recommender.decision_records import failure_records, tip_records, with_ranking
from ml.recommender.ranking import MAX_RANKING_SECONDS, CandidateRanker
from ml.recommender.selection import PromptSelection
from ml.recommender.serving_client import ServingClient
from ml.recommender.serving_responses import GeneratedTip
from ml.recommender.shadow_runner import LiveDecision, ShadowRunner
from ml.store.failures import GenerationFailure
from ml.store.idempotency import KeyClaim
from ml.store.tip_records import TipRecord
from ml.store.tips import TipStore

log = structlog.get_logger()

LEASE_MARGIN = timedelta(seconds=10)
"""How much longer than its timeout a request holds its idempotency key, for storing the tip."""

DISCONNECTED = "disconnected"
"""The error of a failed generation whose caller did not wait for it."""


class Recommender:
    """Produces tips for users through serving, and stores the decision about each."""

    def __init__(
        self,
        writer: CandidateWriter,
        ranker: CandidateRanker,
        serving: ServingClient,
        tip_store: TipStore,
        *,
        shadows: ShadowRunner,
        telemetry: Telemetry,
        clock: Clock,
        simulated: bool,
    ) -> None:
        """`simulated`: the users are simulated."""
        self._writer = writer
        self._ranker = ranker
        self._shadows = shadows
        self._serving = serving
        self._tip_store = tip_store
        self._telemetry = telemetry
        self._clock = clock
        self._simulated = simulated

    async def tip(
        self,
        user_id: str,
        signals: Mapping[str, Any],
        *,
        timeout: float | None = None,
        key: IdempotencyKey | None = None,
    ) -> TipRecord:
        """Return a tip that is stored durably, together with the candidates that were not chosen.

        `timeout`: how long the caller waits, in seconds; None if it does not say. `key`: a later request with the same
        key gets the same tip. Raises the errors of the serving client and the store; then no tip is stored. Of several
        candidates, those that cannot be generated are left out, and the first candidate is shown if they cannot be
        ranked. Generations that fail are stored under the versions that were drawn.
        """
        started = time.perf_counter()
        seconds = self._serving.timeout(timeout)
        context = UserContext.of(user_id, signals)
        draws = self._writer.draw(context)
        if key is None:
            return await self._write(context, draws, seconds)
        lease = timedelta(seconds=seconds) + LEASE_MARGIN
        async with self._tip_store.reserve(key, user_id, [draw.as_json() for draw in draws], lease) as reserved:
            if isinstance(reserved, TipRecord):
                _log_tip(reserved, replayed=True)
                return reserved
            draws = [Draw.from_json(draw) for draw in reserved.draw]
            remaining = seconds - (time.perf_counter() - started)
            return await self._write(context, draws, remaining, reserved.claim)

    async def record(
        self, user_id: str, signals: Mapping[str, Any], selection: PromptSelection, generated: GeneratedTip, ms: int
    ) -> TipRecord:
        """Store a tip that the caller had generated, in `ms` milliseconds; returns when it is durable."""
        now = self._clock()
        candidate = Candidate(time_ordered_id(now), selection, generated, ms)
        context = UserContext.of(user_id, signals)
        return await self._store(tip_records([candidate], context, now, simulated=self._simulated))

    async def _write(
        self, context: UserContext, draws: Sequence[Draw], seconds: float, claim: KeyClaim | None = None
    ) -> TipRecord:
        """Generate the candidates that were drawn, in `seconds`, rank and store them; return the shown one.

        If the caller disconnects before they are stored, all draws are stored as failures: otherwise versions that take
        long would lose draws unseen.
        """
        try:
            return await self._write_decision(context, draws, seconds, claim)
        except asyncio.CancelledError:
            disconnected = [(draw, DISCONNECTED) for draw in draws]
            # Those of tips that were stored nevertheless are left out.
            failures = failure_records(disconnected, context, self._clock(), simulated=self._simulated)
            await self._store_failures(failures, claim)
            raise

    async def _write_decision(
        self, context: UserContext, draws: Sequence[Draw], seconds: float, claim: KeyClaim | None
    ) -> TipRecord:
        started = time.perf_counter()
        is_ranked = len(draws) > 1
        ranking_seconds = min(MAX_RANKING_SECONDS, seconds / 10) if is_ranked else 0
        timeout = seconds - ranking_seconds
        generations = await self._writer.write(draws, context.signals, timeout)
        now = self._clock()
        candidates = generations.candidates
        failures = self._failures(generations, context, now)
        live = LiveDecision(context, now, generations.outcomes[0], timeout)
        if not candidates:
            await self._store_failures(failures, claim)
            call_after_response(lambda: self._shadows.offer(live))
            raise generations.failed[0].error
        records = tip_records(candidates, context, now, simulated=self._simulated)
        if is_ranked:
            remaining = seconds - (time.perf_counter() - started)
            ranked = await self._ranker.rank(candidates, context, min(MAX_RANKING_SECONDS, remaining))
            records = with_ranking(records, ranked)
            if ranked.ranking:
                live = replace(live, ranked=candidates)
        shown = await self._store(records, failures, claim)
        call_after_response(lambda: self._shadows.offer(live))
        return shown

    def _failures(self, generations: Generations, context: UserContext, now: datetime) -> list[GenerationFailure]:
        """Return the rows of failed draws; those that the champion has replaced are a decision of their own."""
        candidates = generations.candidates
        decision_id = candidates[0].tip_id if candidates else None
        return [
            row
            for failed, of_decision in ((generations.failed, decision_id), (generations.replaced, None))
            for row in failure_records(
                _with_errors(failed), context, now, simulated=self._simulated, decision_id=of_decision
            )
        ]

    async def _store_failures(self, failures: Sequence[GenerationFailure], claim: KeyClaim | None) -> None:
        """Store the failures of a decision without a tip. If that fails, the caller still gets the original error."""
        try:
            await self._tip_store.add_failures(failures, claim)
        except TipsError as error:
            log.warning("failures_not_stored", outcome=error.slug)

    async def _store(
        self,
        records: Sequence[TipRecord],
        failures: Sequence[GenerationFailure] = (),
        claim: KeyClaim | None = None,
    ) -> TipRecord:
        """Store the records of one decision; return the shown record when all are durable."""
        await self._tip_store.add(*records, failures=failures, claim=claim)
        (shown,) = [record for record in records if record.shown]
        self._telemetry.shown.labels(shown.prompt_version, shown.policy).inc()
        _log_tip(shown)
        return shown


def _with_errors(failed: Sequence[FailedDraw]) -> list[tuple[Draw, str]]:
    return [(each.draw, each.error.slug) for each in failed]


def _log_tip(shown: TipRecord, **fields: Any) -> None:
    score_policy = {"score_policy": shown.score_policy} if shown.score_policy else {}
    add_to_request_log(
        tip_id=str(shown.tip_id), prompt_version=shown.prompt_version, policy=shown.policy, **score_policy, **fields
    )
