"""The rewards of held-out users, who always get the control version, and of the users who follow rollouts."""

from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from ml.experiments.policies import HOLDOUT, ROLLOUT
from ml.experiments.statistics import Sample
from ml.store.database import Database
from ml.store.tables import tip_scores

_TIPS = tip_scores.c
_REWARD = func.coalesce(_TIPS.reward_in_window, 0.0)


async def rewards_by_group(database: Database, before: datetime, *, seen_only: bool) -> tuple[Sample, Sample]:
    """Return the mean rewards of held-out users, and of the others, each user as one value.

    Over shown tips from the first one of a held-out user to `before` (excluded) that no fallback model wrote; with
    `seen_only`, over those that were seen. A user who has been in both groups, because the share of held-out users was
    changed, is left out. Raises StorageUnavailable.
    """
    since = select(func.min(_TIPS.created_at)).where(_TIPS.policy == HOLDOUT).scalar_subquery()
    counted = [_TIPS.created_at >= since, _TIPS.created_at < before, _TIPS.shown, ~_TIPS.fallback]
    counted += [_TIPS.policy.in_([HOLDOUT, ROLLOUT])] + ([_TIPS.seen] if seen_only else [])
    users: Any = (
        select(func.min(_TIPS.policy).label("policy"), func.avg(_REWARD).label("reward"))
        .where(*counted)
        .group_by(_TIPS.user_id)
        .having(func.min(_TIPS.policy) == func.max(_TIPS.policy))
        .subquery()
    )
    sums = (func.count(), func.sum(users.c.reward), func.sum(users.c.reward * users.c.reward))
    async with database.reading() as connection:
        rows = await connection.execute(select(users.c.policy, *sums).group_by(users.c.policy))
        found = {policy: Sample(int(n), float(total), float(squares)) for policy, n, total, squares in rows}
    return found.get(HOLDOUT, Sample()), found.get(ROLLOUT, Sample())
