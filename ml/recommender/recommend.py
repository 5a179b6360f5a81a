"""A tip for somebody: have candidates written, show one of them, store them all, and only then answer."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from ml.features.definitions import segments
from ml.platform.clock import Clock
from ml.platform.errors import TipsError
from ml.platform.telemetry import Telemetry, add_to_request_log
from ml.recommender.selection import PromptSelection, PromptSelector
from ml.recommender.serving_client import CandidateRanking, GeneratedTip, ServingClient
from ml.store.rollup import UNAVAILABLE
from ml.store.tips import TipRecord, TipStore

log = structlog.get_logger()

SCORE_SECONDS = 1.0
"""How long candidates may take to be ranked, at most; and a tenth of all the time there is."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A tip that was written, in `ms` milliseconds, of the version that was chosen for it."""

    tip_id: UUID
    choice: PromptSelection
    written: GeneratedTip
    ms: int


class Recommender:
    """Writes tips for people through serving, and keeps a row of each."""

    def __init__(
        self,
        rotation: PromptSelector,
        serving: ServingClient,
        tip_scores: TipStore,
        telemetry: Telemetry,
        *,
        clock: Clock,
        candidates: int,
        simulated: bool,
    ) -> None:
        """`candidates`: how many tips to show one of. `simulated`: the people do not exist, and their rows say so."""
        self._rotation = rotation
        self._serving = serving
        self._tip_scores = tip_scores
        self._telemetry = telemetry
        self._clock = clock
        self._candidates = candidates
        self._simulated = simulated

    async def tip(self, user_id: str, signals: dict[str, Any], *, within: float | None = None) -> TipRecord:
        """Return a tip whose row is durable, and those of its rivals.

        Raises what serving's client and the store raise; then there is no row. Of several candidates, those that cannot
        be written are left out, and the first one is shown if they cannot be ranked.
        """
        now = self._clock()
        ids = [_time_ordered_id(now) for _ in range(self._candidates)]
        if self._candidates == 1:
            return await self._show(self._rows(user_id, signals, [await self._write(ids[0], user_id, signals, within)]))
        started, seconds = time.perf_counter(), self._serving.seconds(within)
        written = await self._write_all(ids, user_id, signals, seconds - min(SCORE_SECONDS, seconds / 10))
        left = seconds - (time.perf_counter() - started)
        scores = await self._rank(written, user_id, signals, min(SCORE_SECONDS, left))
        return await self._show(_ranked(self._rows(user_id, signals, written), scores))

    async def record(
        self, user_id: str, signals: Mapping[str, Any], choice: PromptSelection, written: GeneratedTip, ms: int
    ) -> TipRecord:
        """Store a tip that was written in `ms` milliseconds; returns when its row is durable."""
        tip = _Candidate(_time_ordered_id(self._clock()), choice, written, ms)
        return await self._show(self._rows(user_id, signals, [tip]))

    async def _write(self, tip_id: UUID, user_id: str, signals: dict[str, Any], within: float | None) -> _Candidate:
        choice = self._rotation.choose(user_id, str(tip_id))
        started = time.perf_counter()
        written = await self._serving.generate(signals, choice.asked, within=within)
        return _Candidate(tip_id, choice, written, round((time.perf_counter() - started) * 1000))

    async def _write_all(
        self, ids: Sequence[UUID], user_id: str, signals: dict[str, Any], within: float
    ) -> list[_Candidate]:
        """Have them written together; return those that were. Raises why the first was not, if none was."""

        async def write(tip_id: UUID) -> _Candidate | TipsError:
            try:
                return await self._write(tip_id, user_id, signals, within)
            except TipsError as error:
                log.warning("candidate_not_written", outcome=error.slug)
                return error

        outcomes = await asyncio.gather(*(write(tip_id) for tip_id in ids))
        written = [one for one in outcomes if isinstance(one, _Candidate)]
        errors = [one for one in outcomes if isinstance(one, TipsError)]
        if not written:
            raise errors[0]
        return written

    async def _rank(
        self, candidates: Sequence[_Candidate], user_id: str, signals: Mapping[str, Any], within: float
    ) -> CandidateRanking | None:
        """Have them ranked; None when they are not."""
        tips = [
            {"id": str(one.tip_id), "prompt_version": one.written.prompt_version, "tip": one.written.tip}
            for one in candidates
        ]
        try:
            return await self._serving.score(tips[0]["id"], user_id, signals, tips, within=within)
        except TipsError as error:
            log.warning("candidates_not_ranked", outcome=error.slug, reason="the first one is shown")
            return None

    def _rows(self, user_id: str, signals: Mapping[str, Any], candidates: Sequence[_Candidate]) -> list[TipRecord]:
        now = self._clock()
        return [
            TipRecord(
                tip_id=one.tip_id,
                user_id=user_id,
                created_at=now,
                policy=one.choice.policy,
                policy_version=one.choice.policy_version,
                options=one.choice.options or {one.written.prompt_version: 1.0},
                probability=one.choice.probability,
                prompt_version_asked=one.choice.asked,
                generation_id=one.written.generation_id,
                prompt_version=one.written.prompt_version,
                prompt_digest=one.written.prompt_digest,
                model=one.written.model,
                fallback=one.written.fallback,
                signals=signals,
                segments=segments(signals),
                tip=one.written.tip,
                input_tokens=one.written.usage.input_tokens,
                output_tokens=one.written.usage.output_tokens,
                ms=one.ms,
                simulated=self._simulated,
                decision_id=candidates[0].tip_id,
            )
            for one in candidates
        ]

    async def _show(self, rows: Sequence[TipRecord]) -> TipRecord:
        """Store the rows of one decision; return the one that is shown when all are durable."""
        await self._tip_scores.add(*rows)
        (shown,) = [row for row in rows if not row.shadow]
        self._telemetry.shown.labels(shown.prompt_version, shown.policy).inc()
        ranked = {"score_policy": shown.score_policy} if shown.score_policy else {}
        add_to_request_log(tip_id=str(shown.tip_id), prompt_version=shown.prompt_version, policy=shown.policy, **ranked)
        return shown


def _ranked(rows: Sequence[TipRecord], scores: CandidateRanking | None) -> list[TipRecord]:
    """Return the rows with what ranked them; without it, with the first one as the one that is shown."""
    ids = [str(row.tip_id) for row in rows]
    if scores is None:
        first = replace(rows[0], score_policy=UNAVAILABLE, score_probability=1.0, candidates=ids)
        others = [
            replace(row, score_policy=UNAVAILABLE, score_probability=0.0, candidates=ids, shadow=True)
            for row in rows[1:]
        ]
        return [first, *others]
    return [
        replace(
            row,
            shadow=one.id != scores.chosen,
            score=one.score,
            score_probability=one.probability,
            score_policy=scores.policy.name,
            score_policy_version=scores.policy.version,
            candidates=ids,
            aggregates=scores.aggregates,
        )
        for row, one in zip(rows, scores.scores, strict=True)
    ]


def _time_ordered_id(now: datetime) -> UUID:
    """Return a new UUIDv7 (RFC 9562): unique whatever the clock does, and in the order of time while it is right."""
    return uuid7(nanoseconds=int(now.timestamp() * 1_000_000) * 1000)
