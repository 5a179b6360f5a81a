"""Count draws by their distribution, and what was seen; store exposures and failed generations.

The old counters keep a window of 0, so that they are rebuilt from the rows at once. During the upgrade, recommenders of
the previous release cannot store tips.
"""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_OLD_KEY = ("segment", "hour", "prompt_version", "prompt_digest", "fallback", "shown", "dependent", "reaction")
_KEY = (*_OLD_KEY[:2], "window_seconds", *_OLD_KEY[2:-1], "seen", "reaction")
_SUMS = ("tips", "reward", "reward_squared", "input_tokens", "output_tokens", "ms", "simulated")


def upgrade() -> None:
    """Apply."""
    if op.get_bind().dialect.name == "postgresql":
        # The previous migration has streamed rows in this transaction; a table with an open cursor cannot be altered.
        op.execute("CLOSE ALL")
    op.add_column("tip_scores", sa.Column("seen", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("tip_scores", sa.Column("reward_in_window", sa.Float))
    op.create_table(
        "exposures",
        sa.Column("tip_id", sa.Uuid, sa.ForeignKey("tip_scores.tip_id"), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "generation_failures",
        sa.Column("tip_id", sa.Uuid, primary_key=True),
        sa.Column("decision_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("policy", sa.String(40), nullable=False),
        sa.Column("policy_version", sa.String(64), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("prompt_version_asked", sa.String(64)),
        sa.Column("error", sa.String(64), nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
    )
    op.create_index("ix_generation_failures_user_id", "generation_failures", ["user_id"])
    op.create_index("ix_generation_failures_created_at", "generation_failures", ["created_at"])
    op.create_table(
        "draw_hours",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("window_seconds", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("distribution", sa.String(64), primary_key=True),
        sa.Column("prompt_version", sa.String(64), primary_key=True),
        sa.Column("prompt_digest", sa.String(64), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("seen", sa.Boolean, primary_key=True),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
    )
    op.create_table(
        "distributions", sa.Column("id", sa.String(64), primary_key=True), sa.Column("options", sa.JSON, nullable=False)
    )
    op.rename_table("reward_hours", "old_reward_hours")
    table = _create(_KEY, sa.Column("window_seconds", sa.Integer), sa.Column("seen", sa.Boolean))
    old = _table("old_reward_hours", (*_OLD_KEY, *_SUMS))
    rows = sa.select(*(old.c[name] for name in (*_OLD_KEY, *_SUMS)), sa.literal(0), sa.false())
    op.execute(table.insert().from_select([*_OLD_KEY, *_SUMS, "window_seconds", "seen"], rows))
    op.drop_table("old_reward_hours")
    op.drop_table("assignment_hours")


def downgrade() -> None:
    """Revert."""
    op.create_table(
        "assignment_hours",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prompt_version", sa.String(64), primary_key=True),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Column("expected", sa.Float, nullable=False),
    )
    if assignments := _assignments():
        columns = ("segment", "hour", "prompt_version", "taken", "expected")
        op.bulk_insert(_table("assignment_hours", columns), assignments)
    op.rename_table("reward_hours", "old_reward_hours")
    table = _create(_OLD_KEY)
    old = _table("old_reward_hours", (*_OLD_KEY, *_SUMS))
    keys = [old.c[name] for name in _OLD_KEY]
    sums = [sa.func.sum(old.c[name]).label(name) for name in _SUMS]
    rows = sa.select(*keys, *sums).group_by(*keys).having(sa.func.sum(old.c.tips) != 0)
    op.execute(table.insert().from_select([*_OLD_KEY, *_SUMS], rows))
    for name in ("old_reward_hours", "draw_hours", "distributions", "generation_failures", "exposures"):
        op.drop_table(name)
    op.drop_column("tip_scores", "seen")
    op.drop_column("tip_scores", "reward_in_window")


def _assignments() -> list[dict[str, Any]]:
    """Return the draws among several versions, and the expected number, of each segment, hour and version."""
    draws = _table("draw_hours", ("segment", "hour", "distribution", "prompt_version", "outcome", "tips"))
    distributions = sa.table("distributions", sa.column("id", sa.String()), sa.column("options", sa.JSON()))
    connection = op.get_bind()
    options = {row.id: row.options for row in connection.execute(sa.select(distributions))}
    counted: dict[tuple[str, int, str], list[float]] = defaultdict(lambda: [0, 0.0])
    included = draws.c.outcome.in_(["comparable", "ranked", "not_shown"])
    # The previous release has purged the counts of hours together with those of all segments.
    rewards = _table("reward_hours", ("hour",))
    is_stored = draws.c.hour.in_(sa.select(rewards.c.hour))
    for draw in connection.execute(sa.select(draws).where(included, is_stored)):
        if len(options[draw.distribution]) > 1:
            for version, probability in options[draw.distribution].items():
                sums = counted[draw.segment, draw.hour, version]
                sums[0] += draw.tips if version == draw.prompt_version else 0
                sums[1] += draw.tips * probability
    return [
        {"segment": segment, "hour": hour, "prompt_version": version, "taken": taken, "expected": expected}
        for (segment, hour, version), (taken, expected) in counted.items()
        if expected
    ]


def _create(key: tuple[str, ...], *added: "sa.Column[Any]") -> sa.Table:
    return op.create_table(
        "reward_hours",
        sa.Column("segment", sa.String(64)),
        sa.Column("hour", sa.Integer),
        sa.Column("prompt_version", sa.String(64)),
        sa.Column("prompt_digest", sa.String(64)),
        sa.Column("fallback", sa.Boolean),
        sa.Column("shown", sa.Boolean),
        sa.Column("dependent", sa.Boolean),
        *added,
        sa.Column("reaction", sa.String(40)),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("simulated", sa.BigInteger, nullable=False),
        # Named, since in PostgreSQL the key of the old table still has its name.
        sa.PrimaryKeyConstraint(*key, name=f"reward_hours_{'seen' if 'seen' in key else 'dependent'}_pkey"),
    )


def _table(name: str, columns: tuple[str, ...]) -> Any:
    return sa.table(name, *map(sa.column, columns))
