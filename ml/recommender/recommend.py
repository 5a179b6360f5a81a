"""A tip for somebody: choose a version, have serving write it, store it, and only then answer."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from ml.features.definitions import segments
from ml.recommender.rotation import Choice, Rotation
from ml.recommender.serving_client import ServingClient, Written
from ml.recommender.tip_scores import Clock, TipScore, TipScores
from ml.telemetry import Telemetry, note


class Recommender:
    """Writes tips for people through serving, and keeps a row of each."""

    def __init__(
        self,
        rotation: Rotation,
        serving: ServingClient,
        tip_scores: TipScores,
        telemetry: Telemetry,
        *,
        clock: Clock,
        simulated: bool,
    ) -> None:
        """`simulated`: the people do not exist, and their rows say so."""
        self._rotation = rotation
        self._serving = serving
        self._tip_scores = tip_scores
        self._telemetry = telemetry
        self._clock = clock
        self._simulated = simulated

    async def tip(self, user_id: str, signals: dict[str, Any], *, within: float | None = None) -> TipScore:
        """Return a tip whose row is durable. Raises what serving's client and the store raise; then there is no row."""
        tip_id = _time_ordered_id(self._clock())
        choice = self._rotation.choose(user_id, str(tip_id))
        started = time.perf_counter()
        written = await self._serving.generate(signals, choice.asked, within=within)
        ms = round((time.perf_counter() - started) * 1000)
        return await self.record(user_id, signals, choice, written, ms, tip_id=tip_id)

    async def record(
        self,
        user_id: str,
        signals: Mapping[str, Any],
        choice: Choice,
        written: Written,
        ms: int,
        *,
        tip_id: UUID | None = None,
    ) -> TipScore:
        """Store a tip that was written in `ms` milliseconds; returns when its row is durable."""
        now = self._clock()
        row = TipScore(
            tip_id=tip_id or _time_ordered_id(now),
            user_id=user_id,
            created_at=now,
            policy=choice.policy,
            policy_version=choice.policy_version,
            options=choice.options or {written.prompt_version: 1.0},
            probability=choice.probability,
            prompt_version_asked=choice.asked,
            generation_id=written.generation_id,
            prompt_version=written.prompt_version,
            prompt_digest=written.prompt_digest,
            model=written.model,
            fallback=written.fallback,
            signals=signals,
            segments=segments(signals),
            tip=written.tip,
            input_tokens=written.usage.input_tokens,
            output_tokens=written.usage.output_tokens,
            ms=ms,
            simulated=self._simulated,
        )
        await self._tip_scores.add(row)
        self._telemetry.shown.labels(row.prompt_version, row.policy).inc()
        note(tip_id=str(row.tip_id), prompt_version=row.prompt_version, policy=row.policy)
        return row


def _time_ordered_id(now: datetime) -> UUID:
    """Return a new UUIDv7 (RFC 9562): unique whatever the clock does, and in the order of time while it is right."""
    return uuid7(nanoseconds=int(now.timestamp() * 1_000_000) * 1000)
