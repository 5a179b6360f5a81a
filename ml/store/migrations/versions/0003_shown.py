"""Replace `shadow` (a candidate that was not chosen) by `shown`."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS = (
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
    op.execute(f"UPDATE tip_scores SET {new} = NOT {new}")
    # The column is part of the primary key here: inverted in place, two rows could have the same key meanwhile.
    op.rename_table("reward_hours", "old_reward_hours")
    op.create_table(
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
        sa.PrimaryKeyConstraint(
            *("segment", "hour", "prompt_version", "prompt_digest", "fallback", new, "reaction"),
            name=f"reward_hours_{new}_pkey",
        ),
    )
    columns = ", ".join(_COLUMNS)
    op.execute(f"INSERT INTO reward_hours ({columns}, {new}) SELECT {columns}, NOT {old} FROM old_reward_hours")
    op.drop_table("old_reward_hours")
