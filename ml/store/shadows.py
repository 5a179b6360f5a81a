"""Tips and rankings of versions in shadow for real decisions, next to the figures of the live version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import RowMapping, Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.store import tables
from ml.store.database import MAX_PARAMETERS, Database

_TIPS = tables.tip_scores.c


@dataclass(frozen=True, slots=True)
class ShadowTip:
    """A tip that a prompt version in shadow wrote for the signals of a real decision, or failed to.

    `tip_id`, `created_at`: of the live tip, or of the generation that failed. `failed`: no usable tip, or one of a
    fallback model. `error`: its slug. `ms`: the time it took, in milliseconds. `tokens`: of input and output, retries
    included. `live_…`: the same of the live version; its tokens are 0 if it failed.
    """

    tip_id: UUID
    rollout: int
    user_id: str
    created_at: datetime
    prompt_version: str
    prompt_digest: str
    model: str | None
    tip: str | None
    failed: bool
    error: str | None
    ms: int
    tokens: int
    live_version: str
    live_failed: bool
    live_ms: int
    live_tokens: int


@dataclass(frozen=True, slots=True)
class ShadowRanking:
    """A ranking of the candidates of a real decision by a policy in shadow.

    `decision_id`, `created_at`: of the live tips. `probabilities`, `scores`: from each candidate's tip id; None if the
    policy did not answer, with the slug of its `error`. `ms`: the time it took, in milliseconds.
    """

    decision_id: UUID
    rollout: int
    user_id: str
    created_at: datetime
    policy_version: str
    probabilities: Mapping[str, float] | None
    scores: Mapping[str, float] | None
    error: str | None
    ms: int


@dataclass(frozen=True, slots=True)
class ShadowCandidate:
    """A candidate of a decision: its probability under the live policy and under the shadow, and the shadow's score."""

    prompt_version: str
    live_probability: float
    probability: float
    score: float


@dataclass(frozen=True, slots=True)
class ShadowDecision:
    """A decision that a policy in shadow has ranked, too, once its reward is known.

    `chosen`: the index of the candidate that was shown. `reward`: in [0, 1], at the end of the reaction window.
    """

    at: datetime
    candidates: tuple[ShadowCandidate, ...]
    chosen: int
    reward: float
    seen: bool


class Shadows:
    """The tables `shadow_tips` and `shadow_rankings`. All methods raise StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert_tip = database.upsert(tables.shadow_tips).on_conflict_do_nothing()
        self._insert_ranking = database.upsert(tables.shadow_rankings).on_conflict_do_nothing()

    async def add_tip(self, shadow: ShadowTip) -> None:
        """Store a tip of a version in shadow, unless the live decision was deleted in the meantime."""
        tip, failure = (_locked(table, shadow.tip_id) for table in (tables.tip_scores, tables.generation_failures))
        async with self._database.writing() as connection:
            if (await connection.execute(tip)).first() or (await connection.execute(failure)).first():
                await connection.execute(self._insert_tip, tables.as_row(shadow))

    async def add_ranking(self, shadow: ShadowRanking) -> None:
        """Store a ranking of a policy in shadow, unless the live decision was deleted in the meantime."""
        async with self._database.writing() as connection:
            if (await connection.execute(_locked(tables.tip_scores, shadow.decision_id))).first():
                await connection.execute(self._insert_ranking, tables.as_row(shadow))

    async def count(self, rollout: int) -> int:
        """Return the number of shadow tips and rankings of a rollout."""
        async with self._database.reading() as connection:
            return sum(
                [await _count(connection, table, rollout) for table in (tables.shadow_tips, tables.shadow_rankings)]
            )

    async def tips(self, rollout: int, since: datetime) -> list[ShadowTip]:
        """Return the shadow tips of a rollout since a time, the oldest first."""
        table = tables.shadow_tips
        query = select(table).where(table.c.rollout == rollout, table.c.created_at >= since)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(table.c.created_at, table.c.tip_id))).mappings().all()
        return [ShadowTip(**row) for row in rows]

    async def rankings(self, rollout: int, since: datetime) -> list[ShadowRanking]:
        """Return the shadow rankings of a rollout since a time, the oldest first."""
        table = tables.shadow_rankings
        query = select(table).where(table.c.rollout == rollout, table.c.created_at >= since)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(table.c.created_at, table.c.decision_id))).mappings().all()
        return [ShadowRanking(**row) for row in rows]

    async def decisions(self, rollout: int, since: datetime, before: datetime) -> list[ShadowDecision]:
        """Return the decisions in a period that the policy of a rollout has ranked, the oldest first.

        Decisions whose live ranking failed, or of which a candidate was deleted, are left out.
        """
        rankings = [each for each in await self.rankings(rollout, since) if each.created_at < before]
        rankings = [each for each in rankings if each.probabilities]
        found: dict[UUID, list[RowMapping]] = {}
        columns = ("decision_id", "tip_id", "prompt_version", "score_probability", "shown", "reward_in_window", "seen")
        query = select(*(_TIPS[name] for name in columns)).order_by(_TIPS.tip_id)
        async with self._database.reading() as connection:
            for start in range(0, len(rankings), MAX_PARAMETERS):
                ids = [each.decision_id for each in rankings[start : start + MAX_PARAMETERS]]
                for row in (await connection.execute(query.where(_TIPS.decision_id.in_(ids)))).mappings():
                    found.setdefault(row["decision_id"], []).append(row)
        decisions = (_decision(each, found.get(each.decision_id, [])) for each in rankings)
        return [decision for decision in decisions if decision]


def _decision(ranking: ShadowRanking, rows: Sequence[RowMapping]) -> ShadowDecision | None:
    probabilities, scores = ranking.probabilities or {}, ranking.scores or {}
    ids = [str(row["tip_id"]) for row in rows]
    shown = [index for index, row in enumerate(rows) if row["shown"]]
    is_complete = {*ids} == {*probabilities} == {*scores} and all(row["score_probability"] is not None for row in rows)
    if not is_complete or len(shown) != 1 or not rows[shown[0]]["score_probability"]:
        return None
    candidates = tuple(
        ShadowCandidate(row["prompt_version"], row["score_probability"], probabilities[tip_id], scores[tip_id])
        for tip_id, row in zip(ids, rows, strict=True)
    )
    row = rows[shown[0]]
    return ShadowDecision(ranking.created_at, candidates, shown[0], row["reward_in_window"] or 0.0, row["seen"])


def _locked(table: Table, tip_id: UUID) -> Select[tuple[UUID]]:
    """Select the row with this id, and lock it, so that it is not deleted before its shadow is stored."""
    return select(table.c.tip_id).where(table.c.tip_id == tip_id).with_for_update(read=True, key_share=True)


async def _count(connection: AsyncConnection, table: Table, rollout: int) -> int:
    count: int = (await connection.execute(select(func.count()).where(table.c.rollout == rollout))).scalar_one()
    return count
