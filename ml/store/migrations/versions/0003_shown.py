"""Replace the column `shadow` of tips and their hourly counts by its negation, `shown`.

During the upgrade, recommenders of the previous release cannot store tips: they write to `shadow`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_OTHER_COLUMNS = (
    *("segment", "hour", "prompt_version", "prompt_digest", "fallback", "reaction", "tips", "reward", "reward_squared"),
    *("input_tokens", "output_tokens", "ms", "simulated", "dependent"),
)


def upgrade() -> None:
    """Apply."""
    _invert("shadow", "shown")


def downgrade() -> None:
    """Revert."""
    _invert("shown", "shadow")


def _invert(old: str, new: str) -> None:
    op.execute(f"ALTER TABLE tip_scores RENAME COLUMN {old} TO {new}")
    tip_scores = sa.table("tip_scores", sa.column(new, sa.Boolean))
    op.execute(tip_scores.update().values({new: sa.not_(tip_scores.c[new])}))
    # The column is part of the primary key of `reward_hours`. Changing it in place could give two rows the same key
    # for a moment, so the rows are copied to a new table.
    op.rename_table("reward_hours", "old_reward_hours")
    key = ("segment", "hour", "prompt_version", "prompt_digest", "fallback", new, "reaction")
    new_table = op.create_table(
        "reward_hours",
        sa.Column("segment", sa.String(64)),
        sa.Column("hour", sa.Integer),
        sa.Column("prompt_version", sa.String(64)),
        sa.Column("prompt_digest", sa.String(64)),
        sa.Column("fallback", sa.Boolean),
        sa.Column(new, sa.Boolean),
        sa.Column("reaction", sa.String(40)),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("simulated", sa.BigInteger, nullable=False),
        sa.Column("dependent", sa.BigInteger, nullable=False, server_default="0"),
        # Named, since in PostgreSQL the old table's key still has the default name.
        sa.PrimaryKeyConstraint(*key, name=f"reward_hours_{new}_pkey"),
    )
    old_table = sa.table("old_reward_hours", *map(sa.column, _OTHER_COLUMNS), sa.column(old, sa.Boolean))
    rows = sa.select(*(old_table.c[name] for name in _OTHER_COLUMNS), sa.not_(old_table.c[old]))
    op.execute(new_table.insert().from_select([*_OTHER_COLUMNS, new], rows))
    op.drop_table("old_reward_hours")
