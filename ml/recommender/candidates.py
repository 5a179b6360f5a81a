"""The candidates of a decision: the draws of their prompt versions, and their texts from serving."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from ml.features.segments import segments
from ml.platform.clock import Clock
from ml.platform.errors import TipsError, UnknownVersion
from ml.recommender.selection import PromptSelection, VersionSelector
from ml.recommender.serving_client import ServingClient
from ml.recommender.serving_responses import GeneratedTip
from ml.store.tables import as_row

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UserContext:
    """A user, the signals of the request, and the segments that follow from these."""

    user_id: str
    signals: Mapping[str, Any]
    segments: tuple[str, ...]

    @classmethod
    def of(cls, user_id: str, signals: Mapping[str, Any]) -> "UserContext":
        return cls(user_id, signals, segments(signals))


@dataclass(frozen=True, slots=True)
class Draw:
    """The id of a tip to write, and the selection of its prompt version."""

    tip_id: UUID
    selection: PromptSelection

    def as_json(self) -> dict[str, Any]:
        selected = {name: value for name, value in as_row(self.selection).items() if value is not None}
        return {"tip_id": str(self.tip_id), "prompt_version": None, **selected}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Draw":
        return cls(UUID(value["tip_id"]), PromptSelection(**{k: v for k, v in value.items() if k != "tip_id"}))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A generated tip, with the selection of its prompt version; `ms`: the time it took, in milliseconds."""

    tip_id: UUID
    selection: PromptSelection
    generated: GeneratedTip
    ms: int


@dataclass(frozen=True, slots=True)
class FailedDraw:
    """A draw for which no tip was written, its error, and the time until then in milliseconds."""

    draw: Draw
    error: TipsError
    ms: int


@dataclass(frozen=True, slots=True)
class Generations:
    """The results of the draws of a decision, in their order: `outcomes`.

    `replaced`: the draws whose version serving does not know, if the outcomes are those of the champion instead.
    """

    outcomes: Sequence[Candidate | FailedDraw]
    replaced: Sequence[FailedDraw] = ()

    @property
    def candidates(self) -> list[Candidate]:
        """The tips that were written."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Candidate)]

    @property
    def failed(self) -> list[FailedDraw]:
        """The other draws."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, FailedDraw)]


class CandidateWriter:
    """Draws the prompt versions of candidates, and has serving write them."""

    def __init__(self, selector: VersionSelector, serving: ServingClient, *, clock: Clock, count: int) -> None:
        """`count`: the number of candidates of a decision."""
        self._selector = selector
        self._serving = serving
        self._clock = clock
        self._count = count

    def draw(self, context: UserContext) -> list[Draw]:
        """Draw the prompt versions of all candidates together."""
        now = self._clock()
        tip_ids = [time_ordered_id(now) for _ in range(self._count)]
        selections = self._selector.select(context.user_id, [str(tip_id) for tip_id in tip_ids], context.segments)
        return [Draw(tip_id, selection) for tip_id, selection in zip(tip_ids, selections, strict=True)]

    async def write(self, draws: Sequence[Draw], signals: Mapping[str, Any], timeout: float) -> Generations:
        """Generate all candidates concurrently, in `timeout` seconds.

        If serving does not have the version that a rollout drew, the champion is written instead, under a new id.
        """
        started = time.perf_counter()
        generations = await self._write_all(draws, signals, timeout)
        champion = self._champion_instead(draws[0].selection, generations)
        if champion is None:
            return generations
        log.warning(
            "champion_written",
            prompt_version=draws[0].selection.prompt_version,
            champion=champion.prompt_version,
            reason="serving does not have the version that was drawn, with this digest",
        )
        now = self._clock()
        instead = [Draw(time_ordered_id(now), champion) for _ in draws]
        written = await self._write_all(instead, signals, timeout - (time.perf_counter() - started))
        return Generations(written.outcomes, replaced=generations.failed)

    def _champion_instead(self, drawn: PromptSelection, generations: Generations) -> PromptSelection | None:
        is_unknown = any(isinstance(failed.error, UnknownVersion) for failed in generations.failed)
        if drawn.event is None or generations.candidates or not is_unknown:
            return None
        champion = self._selector.champion()
        if champion and (champion.prompt_version, champion.digest) == (drawn.prompt_version, drawn.digest):
            return None
        return champion

    async def _write_all(self, draws: Sequence[Draw], signals: Mapping[str, Any], timeout: float) -> Generations:
        generations = Generations(await asyncio.gather(*(self._write(draw, signals, timeout) for draw in draws)))
        if len(draws) > 1:
            for failed in generations.failed:
                log.warning("candidate_not_written", outcome=failed.error.slug)
        return generations

    async def _write(self, draw: Draw, signals: Mapping[str, Any], timeout: float) -> Candidate | FailedDraw:
        """Generate one candidate; returns the error if that fails, so that the other candidates are not cancelled."""
        started = time.perf_counter()
        try:
            generated = await self._serving.generate({**signals}, draw.selection.prompt_version, timeout=timeout)
            check_version(generated, draw.selection.prompt_version, draw.selection.digest)
        except TipsError as error:
            return FailedDraw(draw, error, milliseconds_since(started))
        return Candidate(draw.tip_id, draw.selection, generated, milliseconds_since(started))


def check_version(generated: GeneratedTip, prompt_version: str | None, digest: str | None) -> None:
    """Raise UnknownVersion if a tip is not of the version and digest that a rollout names. `digest`: None without."""
    if digest and (generated.prompt_version, generated.prompt_digest) != (prompt_version, digest):
        raise UnknownVersion(f"Serving has another content of prompt version {prompt_version} than the rollout.")


def time_ordered_id(now: datetime) -> UUID:
    """Return a new UUIDv7 (RFC 9562): unique, and in the order of time while the clock does not go back."""
    return uuid7(nanoseconds=int(now.timestamp() * 1_000_000) * 1000)


def milliseconds_since(started: float) -> int:
    """Return the whole milliseconds since a value of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000)
