"""One tip for a user: generate candidates, choose one, store all of them durably, then answer."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from ml.features.definitions import segments
from ml.platform.clock import Clock
from ml.platform.errors import TipsError
from ml.platform.idempotency_key import IdempotencyKey
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.recommender.selection import PromptSelection, PromptSelector
from ml.recommender.serving_client import CandidateRanking, GeneratedTip, ServingClient
from ml.store.failures import GenerationFailure
from ml.store.idempotency import KeyClaim
from ml.store.rollup import UNAVAILABLE
from ml.store.tables import as_row
from ml.store.tips import TipRecord, TipStore

log = structlog.get_logger()

MAX_RANKING_SECONDS = 1.0
"""The timeout of a ranking: at most this, and at most a tenth of the time for the whole tip."""


LEASE_MARGIN = timedelta(seconds=10)
"""How much longer than its timeout a request holds its idempotency key, for storing the tip."""

DISCONNECTED = "disconnected"
"""The error of a failed generation whose caller did not wait for it."""


@dataclass(frozen=True, slots=True)
class _Draw:
    """The id of a tip to write, and the selection of its prompt version."""

    tip_id: UUID
    selection: PromptSelection

    def as_json(self) -> dict[str, Any]:
        return {"tip_id": str(self.tip_id), **as_row(self.selection)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "_Draw":
        return cls(UUID(value["tip_id"]), PromptSelection(**{k: v for k, v in value.items() if k != "tip_id"}))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A generated tip, with the selection of its prompt version; `ms`: the time it took, in milliseconds."""

    tip_id: UUID
    selection: PromptSelection
    generated: GeneratedTip
    ms: int


class Recommender:
    """Produces tips for users through serving, and stores the decision about each."""

    def __init__(
        self,
        selector: PromptSelector,
        serving: ServingClient,
        tip_store: TipStore,
        telemetry: Telemetry,
        *,
        clock: Clock,
        candidate_count: int,
        simulated: bool,
    ) -> None:
        """`candidate_count`: the number of tips to generate and choose among. `simulated`: the users are simulated."""
        self._selector = selector
        self._serving = serving
        self._tip_store = tip_store
        self._telemetry = telemetry
        self._clock = clock
        self._candidate_count = candidate_count
        self._simulated = simulated

    async def tip(
        self,
        user_id: str,
        signals: dict[str, Any],
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
        draws = self._draw(user_id)
        if key is None:
            return await self._write(user_id, signals, draws, seconds)
        lease = timedelta(seconds=seconds) + LEASE_MARGIN
        async with self._tip_store.reserve(key, user_id, [draw.as_json() for draw in draws], lease) as reserved:
            if isinstance(reserved, TipRecord):
                _log_tip(reserved, replayed=True)
                return reserved
            draws = [_Draw.from_json(draw) for draw in reserved.draw]
            remaining = seconds - (time.perf_counter() - started)
            return await self._write(user_id, signals, draws, remaining, reserved.claim)

    async def record(
        self, user_id: str, signals: Mapping[str, Any], selection: PromptSelection, generated: GeneratedTip, ms: int
    ) -> TipRecord:
        """Store a tip that the caller had generated, in `ms` milliseconds; returns when it is durable."""
        candidate = _Candidate(_time_ordered_id(self._clock()), selection, generated, ms)
        return await self._store(self._records(user_id, signals, [candidate]))

    def _draw(self, user_id: str) -> list[_Draw]:
        """Draw the prompt versions of all candidates together."""
        now = self._clock()
        tip_ids = [_time_ordered_id(now) for _ in range(self._candidate_count)]
        selections = self._selector.select(user_id, [str(tip_id) for tip_id in tip_ids])
        return [_Draw(tip_id, selection) for tip_id, selection in zip(tip_ids, selections, strict=True)]

    async def _write(
        self,
        user_id: str,
        signals: dict[str, Any],
        draws: Sequence[_Draw],
        seconds: float,
        claim: KeyClaim | None = None,
    ) -> TipRecord:
        """Generate the candidates that were drawn, in `seconds`, rank and store them; return the shown one.

        If the caller disconnects before they are stored, all draws are stored as failures: otherwise versions that take
        long would lose draws unseen.
        """
        try:
            return await self._write_decision(user_id, signals, draws, seconds, claim)
        except asyncio.CancelledError:
            disconnected = [(draw, DISCONNECTED) for draw in draws]
            # Those of tips that were stored nevertheless are left out.
            await self._store_failures(self._failures(user_id, signals, disconnected), claim)
            raise

    async def _write_decision(
        self,
        user_id: str,
        signals: dict[str, Any],
        draws: Sequence[_Draw],
        seconds: float,
        claim: KeyClaim | None,
    ) -> TipRecord:
        started = time.perf_counter()
        is_ranked = len(draws) > 1
        ranking_seconds = min(MAX_RANKING_SECONDS, seconds / 10) if is_ranked else 0
        candidates, errors = await self._generate_candidates(draws, signals, seconds - ranking_seconds)
        failures = self._failures(user_id, signals, [(draw, error.slug) for draw, error in errors], candidates)
        if not candidates:
            await self._store_failures(failures, claim)
            raise errors[0][1]
        records = self._records(user_id, signals, candidates)
        if is_ranked:
            remaining = seconds - (time.perf_counter() - started)
            ranking = await self._rank(candidates, user_id, signals, min(MAX_RANKING_SECONDS, remaining))
            records = _with_ranking(records, ranking)
        return await self._store(records, failures, claim)

    async def _generate_candidates(
        self, draws: Sequence[_Draw], signals: dict[str, Any], timeout: float
    ) -> tuple[list[_Candidate], list[tuple[_Draw, TipsError]]]:
        """Generate all candidates concurrently; return those that succeed, and the errors of the other draws."""
        outcomes = await asyncio.gather(*(self._generate(draw, signals, timeout) for draw in draws))
        candidates = [outcome for outcome in outcomes if isinstance(outcome, _Candidate)]
        errors = [
            (draw, outcome) for draw, outcome in zip(draws, outcomes, strict=True) if isinstance(outcome, TipsError)
        ]
        if len(draws) > 1:
            for _, error in errors:
                log.warning("candidate_not_written", outcome=error.slug)
        return candidates, errors

    async def _generate(self, draw: _Draw, signals: dict[str, Any], timeout: float) -> _Candidate | TipsError:
        """Generate one candidate; returns the error if that fails, so that the other candidates are not cancelled."""
        started = time.perf_counter()
        try:
            generated = await self._serving.generate(signals, draw.selection.prompt_version, timeout=timeout)
        except TipsError as error:
            return error
        return _Candidate(draw.tip_id, draw.selection, generated, round((time.perf_counter() - started) * 1000))

    async def _rank(
        self, candidates: Sequence[_Candidate], user_id: str, signals: Mapping[str, Any], timeout: float
    ) -> CandidateRanking | None:
        """Return the ranking of the candidates; None if serving does not rank them."""
        candidate_bodies = [
            {
                "id": str(candidate.tip_id),
                "prompt_version": candidate.generated.prompt_version,
                "tip": candidate.generated.tip,
            }
            for candidate in candidates
        ]
        try:
            return await self._serving.score(
                candidate_bodies[0]["id"], user_id, signals, candidate_bodies, timeout=timeout
            )
        except TipsError as error:
            log.warning("candidates_not_ranked", outcome=error.slug, reason="the first candidate is shown")
            return None

    def _records(self, user_id: str, signals: Mapping[str, Any], candidates: Sequence[_Candidate]) -> list[TipRecord]:
        now = self._clock()
        return [
            TipRecord(
                tip_id=candidate.tip_id,
                user_id=user_id,
                created_at=now,
                policy=candidate.selection.policy,
                policy_version=candidate.selection.policy_version,
                options=candidate.selection.options or {candidate.generated.prompt_version: 1.0},
                probability=candidate.selection.probability,
                prompt_version_asked=candidate.selection.prompt_version,
                generation_id=candidate.generated.generation_id,
                prompt_version=candidate.generated.prompt_version,
                prompt_digest=candidate.generated.prompt_digest,
                model=candidate.generated.model,
                fallback=candidate.generated.fallback,
                signals=signals,
                segments=segments(signals),
                tip=candidate.generated.tip,
                input_tokens=candidate.generated.usage.input_tokens,
                output_tokens=candidate.generated.usage.output_tokens,
                ms=candidate.ms,
                simulated=self._simulated,
                decision_id=candidates[0].tip_id,
            )
            for candidate in candidates
        ]

    def _failures(
        self,
        user_id: str,
        signals: Mapping[str, Any],
        draws: Sequence[tuple[_Draw, str]],
        candidates: Sequence[_Candidate] = (),
    ) -> list[GenerationFailure]:
        """Return the failures of draws, each with the slug of its error. `candidates`: the others of the decision."""
        now = self._clock()
        return [
            GenerationFailure(
                tip_id=draw.tip_id,
                decision_id=candidates[0].tip_id if candidates else draws[0][0].tip_id,
                user_id=user_id,
                created_at=now,
                policy=draw.selection.policy,
                policy_version=draw.selection.policy_version,
                options=draw.selection.options,
                probability=draw.selection.probability,
                prompt_version_asked=draw.selection.prompt_version,
                error=error,
                segments=segments(signals),
                simulated=self._simulated,
            )
            for draw, error in draws
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


def _log_tip(shown: TipRecord, **fields: Any) -> None:
    score_policy = {"score_policy": shown.score_policy} if shown.score_policy else {}
    add_to_request_log(
        tip_id=str(shown.tip_id), prompt_version=shown.prompt_version, policy=shown.policy, **score_policy, **fields
    )


def _with_ranking(records: Sequence[TipRecord], ranking: CandidateRanking | None) -> list[TipRecord]:
    """Return the records with the ranking of their decision; without a ranking, the first candidate is shown."""
    candidate_ids = [str(record.tip_id) for record in records]
    if ranking is None:
        return [
            replace(
                record,
                shown=index == 0,
                score_probability=1.0 if index == 0 else 0.0,
                score_policy=UNAVAILABLE,
                candidates=candidate_ids,
            )
            for index, record in enumerate(records)
        ]
    return [
        replace(
            record,
            shown=ranked.id == ranking.chosen,
            score=ranked.score,
            score_probability=ranked.probability,
            score_policy=ranking.policy.name,
            score_policy_version=ranking.policy.version,
            candidates=candidate_ids,
            aggregates=ranking.aggregates,
        )
        for record, ranked in zip(records, ranking.scores, strict=True)
    ]


def _time_ordered_id(now: datetime) -> UUID:
    """Return a new UUIDv7 (RFC 9562): unique, and in the order of time while the clock does not go back."""
    return uuid7(nanoseconds=int(now.timestamp() * 1_000_000) * 1000)
