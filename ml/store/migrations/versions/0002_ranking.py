"""Candidates of one decision, and how they were ranked."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("decision_id", sa.Uuid),
        sa.Column("score", sa.Float),
        sa.Column("score_probability", sa.Float),
        sa.Column("score_policy", sa.String(64)),
        sa.Column("score_policy_version", sa.String(64)),
        sa.Column("candidates", sa.JSON),
        sa.Column("aggregates", sa.JSON),
    ]


def upgrade() -> None:
    """Apply."""
    for column in _columns():
        op.add_column("tip_scores", column)
    # A recommender of the version before goes on writing while others are renewed: it does not know of this one.
    op.add_column("reward_hours", sa.Column("dependent", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("reward_hours") as table:
        table.drop_column("dependent")
    with op.batch_alter_table("tip_scores") as table:
        for column in _columns():
            table.drop_column(column.name)
