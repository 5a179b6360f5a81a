"""Add the candidates of a decision and their ranking."""

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
    # The default is for recommenders of the previous release, which write rows without this column during an upgrade.
    op.add_column("reward_hours", sa.Column("dependent", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Revert."""
    with op.batch_alter_table("reward_hours") as table:
        table.drop_column("dependent")
    with op.batch_alter_table("tip_scores") as table:
        for column in _columns():
            table.drop_column(column.name)
