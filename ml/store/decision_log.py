"""What the store tells those who learn: decisions with what came of them, and what is known of people beforehand.

Both are read in parts: there may be more of them than there is memory.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping, case, func, or_, select

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.policies import PLAYGROUND
from ml.store import tables as schema
from ml.store.database import Database
from ml.store.rollup import UNAVAILABLE

_PAGE = 500
"""Decisions; their candidates must not be more parameters than a statement can have."""
_REWARDS_OF = timedelta(days=30)
_TIPS_OF = timedelta(days=7)

_TIPS = schema.tip_scores.c
_SHOWN = (
    select(
        *(_TIPS[name] for name in ("tip_id", "decision_id", "user_id", "created_at", "signals", "aggregates")),
        *(_TIPS[name] for name in ("options", "prompt_version_asked", "prompt_version", "reward")),
        *(_TIPS[name] for name in ("candidates", "score_policy")),
    )
    .where(~_TIPS.shadow, ~_TIPS.fallback, _TIPS.policy != PLAYGROUND)
    .order_by(_TIPS.created_at, _TIPS.tip_id)
    .limit(_PAGE)
)
_CANDIDATES = select(_TIPS.tip_id, _TIPS.prompt_version, _TIPS.tip, _TIPS.score_probability)


async def decisions(database: Database, before: datetime, since: datetime | None) -> AsyncIterator[LoggedDecision]:
    """Yield the decisions from `since` to `before`, the first one included, in the order of time.

    Raises StorageUnavailable.
    """
    within = _SHOWN.where(_TIPS.created_at < before)
    page = within if since is None else within.where(_TIPS.created_at >= since)
    while True:
        async with database.reading() as connection:
            rows = (await connection.execute(page)).mappings().all()
            ids = [UUID(one) for row in rows if _ranked(row) for one in row["candidates"]]
            found = (await connection.execute(_CANDIDATES.where(_TIPS.tip_id.in_(ids)))).mappings() if ids else ()
            tips = {str(tip["tip_id"]): tip for tip in found}
        for row in rows:
            if decision := _decision(row, tips):
                yield decision
        if len(rows) < _PAGE:
            return
        at, tip_id = rows[-1]["created_at"], rows[-1]["tip_id"]
        page = within.where(_TIPS.created_at >= at, or_(_TIPS.created_at > at, _TIPS.tip_id > tip_id))


async def user_aggregates(
    database: Database, now: datetime, reaction_window: timedelta
) -> AsyncIterator[tuple[str, Mapping[str, float]]]:
    """Yield what is known of each person who was shown a tip in the 30 days before `now`.

    `reward_rate_30d`, in [0, 1]: the mean reward of these tips, as far as they are older than the reaction window; left
    out when none is. `tips_7d`: how many tips the last seven days had. Raises StorageUnavailable.
    """
    old = _TIPS.created_at < now - reaction_window
    query = (
        select(
            _TIPS.user_id,
            func.avg(case((old, func.coalesce(_TIPS.reward, 0.0)))),
            func.count(case((_TIPS.created_at >= now - _TIPS_OF, 1))),
        )
        .where(~_TIPS.shadow, _TIPS.created_at >= now - _REWARDS_OF, _TIPS.created_at <= now)
        .group_by(_TIPS.user_id)
    )
    async with database.reading() as connection:
        async for user_id, rate, tips in await connection.stream(query):
            yield user_id, ({} if rate is None else {"reward_rate_30d": float(rate)}) | {"tips_7d": int(tips)}


def _ranked(row: RowMapping) -> bool:
    return row["score_policy"] not in {None, UNAVAILABLE}


def _decision(row: RowMapping, tips: Mapping[str, RowMapping]) -> LoggedDecision | None:
    """Return the decision that a tip was the outcome of; None when one of its candidates is being purged just now."""
    if _ranked(row):
        if any(one not in tips for one in row["candidates"]):
            return None
        candidates = [
            LoggedCandidate(tip["prompt_version"], tip["score_probability"], tip["tip"])
            for tip in (tips[one] for one in row["candidates"])
        ]
        decision_id, taken = row["decision_id"], row["candidates"].index(str(row["tip_id"]))
    else:
        candidates = [LoggedCandidate(version, probability) for version, probability in row["options"].items()]
        asked = row["prompt_version_asked"] or row["prompt_version"]
        decision_id, taken = row["tip_id"], [*row["options"]].index(asked)
    return LoggedDecision(
        id=str(decision_id),
        user_id=row["user_id"],
        at=row["created_at"].timestamp(),
        signals=row["signals"],
        aggregates=row["aggregates"] or {},
        candidates=tuple(candidates),
        taken=taken,
        reward=row["reward"] or 0.0,
        ranked=_ranked(row),
    )
