"""The record of a tip: the row of a tip that was written for a user, and how it was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables


@dataclass(frozen=True, slots=True)
class TipRecord:
    """A row of `tip_scores`: one tip written for a user, how its prompt version was drawn, and its cost.

    `ms`: the time it took to write, in milliseconds. `shown`: False for a candidate that was not chosen. From
    `decision_id` on: the decision among the candidates and its ranking. `candidates`: their ids, in order; None if
    there was only one. With rollouts: `prompt_event`, `policy_event`: the ids of the events that decided the prompt
    version and the ranking policy; `policy_asked`, `policy_options`: the policy that was drawn, and the probabilities.
    `aggregates_at`: the time as of which the aggregates were computed; None without aggregates.
    """

    tip_id: UUID
    user_id: str
    created_at: datetime
    policy: str
    policy_version: str
    options: Mapping[str, float]
    probability: float
    prompt_version_asked: str | None
    generation_id: str
    prompt_version: str
    prompt_digest: str
    model: str
    fallback: bool
    signals: Mapping[str, Any]
    segments: tuple[str, ...]
    tip: str
    input_tokens: int
    output_tokens: int
    ms: int
    shown: bool = True
    simulated: bool = False
    decision_id: UUID | None = None
    score: float | None = None
    score_probability: float | None = None
    score_policy: str | None = None
    score_policy_version: str | None = None
    candidates: Sequence[str] | None = None
    aggregates: Mapping[str, float] | None = None
    prompt_event: int | None = None
    policy_asked: str | None = None
    policy_options: Mapping[str, float] | None = None
    policy_event: int | None = None
    aggregates_at: datetime | None = None


async def select_tips(connection: AsyncConnection, tip_ids: Sequence[UUID]) -> dict[UUID, TipRecord]:
    """Return stored tips by id."""
    if not tip_ids:
        return {}
    columns = [tables.tip_scores.c[name] for name in TipRecord.__slots__]
    found = await connection.execute(select(*columns).where(tables.tip_scores.c.tip_id.in_(tip_ids)))
    return {row["tip_id"]: TipRecord(**{**row, "segments": tuple(row["segments"])}) for row in found.mappings()}
