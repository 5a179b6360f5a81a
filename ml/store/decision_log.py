"""The decision log, which learning and evaluation read: decisions with their rewards, and the aggregates of users.

Both are read in pages or streamed, since they may be larger than memory.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping, case, func, or_, select

from ml.experiments.decisions import LoggedCandidate, LoggedDecision
from ml.experiments.policies import POLICIES
from ml.store import tables
from ml.store.database import Database
from ml.store.rollup import UNAVAILABLE, is_drawn_per_user

_PAGE = 500
"""The decisions in one page; the ids of their candidates must fit into the parameters of one statement."""
_REWARD_RATE_PERIOD = timedelta(days=30)
_TIP_COUNT_PERIOD = timedelta(days=7)

_TIPS = tables.tip_scores.c
_SHOWN_TIPS = (
    select(
        *(_TIPS[name] for name in ("tip_id", "decision_id", "user_id", "created_at", "signals", "aggregates")),
        *(_TIPS[name] for name in ("options", "prompt_version_asked", "prompt_version", "prompt_digest", "reward")),
        _TIPS.reward_in_window,
        *(_TIPS[name] for name in ("candidates", "score_policy", "policy", "segments")),
    )
    .where(
        _TIPS.shown,
        ~_TIPS.fallback,
        _TIPS.policy.not_in([name for name, policy in POLICIES.items() if not policy.selectable]),
    )
    .order_by(_TIPS.created_at, _TIPS.tip_id)
    .limit(_PAGE)
)
_CANDIDATES = select(_TIPS.tip_id, _TIPS.prompt_version, _TIPS.prompt_digest, _TIPS.tip, _TIPS.score_probability)


async def decisions(
    database: Database, before: datetime, since: datetime | None, *, seen_only: bool
) -> AsyncIterator[LoggedDecision]:
    """Yield the decisions from `since` (included) to `before` (excluded), in the order of time.

    Tips of policies that draw no version and tips of a fallback model are left out; with `seen_only`, also tips that
    were not seen within the reaction window. Raises StorageUnavailable.
    """
    in_period = _SHOWN_TIPS.where(_TIPS.created_at < before)
    if seen_only:
        in_period = in_period.where(_TIPS.seen)
    page = in_period if since is None else in_period.where(_TIPS.created_at >= since)
    while True:
        async with database.reading() as connection:
            rows = (await connection.execute(page)).mappings().all()
            ids = [UUID(candidate_id) for row in rows if _is_ranked(row) for candidate_id in row["candidates"]]
            found = (await connection.execute(_CANDIDATES.where(_TIPS.tip_id.in_(ids)))).mappings() if ids else ()
            candidates = {str(candidate["tip_id"]): candidate for candidate in found}
        for row in rows:
            if decision := _decision(row, candidates):
                yield decision
        if len(rows) < _PAGE:
            return
        at, tip_id = rows[-1]["created_at"], rows[-1]["tip_id"]
        page = in_period.where(_TIPS.created_at >= at, or_(_TIPS.created_at > at, _TIPS.tip_id > tip_id))


async def user_aggregates(
    database: Database, now: datetime, reaction_window: timedelta, *, seen_only: bool
) -> AsyncIterator[tuple[str, Mapping[str, float]]]:
    """Yield each user who was shown a tip in the 30 days before `now`, with their aggregates.

    `reward_rate_30d`, in [0, 1]: the mean reward of the mature tips among these; left out if there are none.
    `tips_7d`: the number of tips in the last seven days. `seen_only`: of tips seen within the reaction window only.
    Raises StorageUnavailable.
    """
    is_mature = _TIPS.created_at < now - reaction_window
    query = (
        select(
            _TIPS.user_id,
            func.avg(case((is_mature, func.coalesce(_TIPS.reward, 0.0)))),
            func.count(case((_TIPS.created_at >= now - _TIP_COUNT_PERIOD, 1))),
        )
        .where(_TIPS.shown, _TIPS.created_at >= now - _REWARD_RATE_PERIOD, _TIPS.created_at <= now)
        .group_by(_TIPS.user_id)
    )
    if seen_only:
        query = query.where(_TIPS.seen)
    async with database.reading() as connection:
        async for user_id, rate, tips in await connection.stream(query):
            yield user_id, ({} if rate is None else {"reward_rate_30d": float(rate)}) | {"tips_7d": int(tips)}


def _is_ranked(row: RowMapping) -> bool:
    return row["score_policy"] not in {None, UNAVAILABLE}


def _decision(row: RowMapping, candidates: Mapping[str, RowMapping]) -> LoggedDecision | None:
    """Return the decision by which a tip was shown; None if one of its candidates is being purged."""
    if _is_ranked(row):
        if any(candidate_id not in candidates for candidate_id in row["candidates"]):
            return None
        logged = [
            LoggedCandidate(
                candidate["prompt_version"],
                candidate["score_probability"],
                candidate["tip"],
                candidate["prompt_digest"],
            )
            for candidate in (candidates[candidate_id] for candidate_id in row["candidates"])
        ]
        decision_id, chosen = row["decision_id"], row["candidates"].index(str(row["tip_id"]))
    else:
        drawn_version = row["prompt_version_asked"] or row["prompt_version"]
        # The stored digest is the one of the version that wrote the tip.
        digests = {row["prompt_version"]: row["prompt_digest"]} if row["prompt_version"] == drawn_version else {}
        logged = [
            LoggedCandidate(version, probability, prompt_digest=digests.get(version))
            for version, probability in row["options"].items()
        ]
        decision_id, chosen = row["tip_id"], [*row["options"]].index(drawn_version)
    return LoggedDecision(
        id=str(decision_id),
        user_id=row["user_id"],
        at=row["created_at"].timestamp(),
        signals=row["signals"],
        aggregates=row["aggregates"] or {},
        candidates=tuple(logged),
        chosen=chosen,
        reward=row["reward"] or 0.0,
        reward_in_window=row["reward_in_window"] or 0.0,
        ranked=_is_ranked(row),
        per_user=not _is_ranked(row) and is_drawn_per_user(row["policy"]),
        segments=tuple(row["segments"]),
    )
