"""The comparable draws of each user, for figures in which each user counts once."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Text, cast, func, or_, select

from ml.experiments.policies import POLICIES
from ml.experiments.statistics import Sample
from ml.store import tables
from ml.store.database import Database
from ml.store.hours import start_of
from ml.store.rollup import EVERYONE
from ml.store.tip_dimensions import INDEPENDENT_SCORE_POLICIES, is_drawn_per_decision, is_drawn_per_user

_TIPS = tables.tip_scores.c
_ROWS = 1_000
"""The rows that are read at a time."""
_MAX_HOUR = 24 * 365 * 2_000
_OPTIONS = cast(_TIPS.options, Text)
"""As text, since PostgreSQL cannot compare values of the type JSON."""
_DRAWN_VERSION = func.coalesce(_TIPS.prompt_version_asked, _TIPS.prompt_version)
_REWARD = func.coalesce(_TIPS.reward_in_window, 0.0)
_KEYS = (_TIPS.user_id, _OPTIONS, _DRAWN_VERSION, _TIPS.prompt_digest, _TIPS.seen)
_COMPARABLE = (
    _TIPS.shown,
    ~_TIPS.fallback,
    or_(
        _TIPS.score_policy.is_(None),
        _TIPS.score_policy.in_(sorted(INDEPENDENT_SCORE_POLICIES - {None}, key=str)),
        _TIPS.policy.in_([name for name in POLICIES if is_drawn_per_decision(name)]),
    ),
    _TIPS.policy.not_in([name for name in POLICIES if is_drawn_per_user(name)]),
)


@dataclass(frozen=True, slots=True)
class UserDraws:
    """The comparable draws of one user from one distribution, with one drawn version and digest.

    `user`: a running number, the same for all draws of the user. `options`: the distribution. `prompt_version`: the
    version that was drawn. `seen`: the exposures were received within the reaction window. `rewards`: those known at
    the end of the reaction window.
    """

    user: int
    options: Mapping[str, float]
    prompt_version: str
    prompt_digest: str
    seen: bool
    rewards: Sample


async def user_draws(database: Database, segment: str, hours: range) -> AsyncIterator[UserDraws]:
    """Yield the comparable draws of these hours (see `DrawOutcome`), user by user. Raises StorageUnavailable."""
    if not hours:
        return
    query = (
        select(*_KEYS, func.count(), func.sum(_REWARD), func.sum(_REWARD * _REWARD))
        .where(*_COMPARABLE, _TIPS.created_at >= start_of(hours.start))
        .where(_TIPS.created_at < start_of(min(hours.stop, _MAX_HOUR)))
        .group_by(*_KEYS)
        .order_by(_TIPS.user_id)
    )
    if segment != EVERYONE:
        text = cast(_TIPS.segments, Text)
        query = query.where(func.replace(text, json.dumps(segment), "") != text)
    user, last_user = -1, None
    async with database.reading() as connection:
        async for rows in (await connection.stream(query)).partitions(_ROWS):
            for user_id, options, version, digest, seen, n, total, squares in rows:
                if user_id != last_user:
                    user, last_user = user + 1, user_id
                yield UserDraws(user, _parsed(options), version, digest, seen, Sample(n, total, squares))


@lru_cache(maxsize=10_000)
def _parsed(options: str) -> Mapping[str, float]:
    """Parse a distribution; there are few different ones."""
    parsed: Mapping[str, float] = json.loads(options)
    return parsed
