"""Add what batch jobs need: revisions of days, proposals of rollouts, reports, and when aggregates were computed."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NEW_TABLES = ("batch_reports", "rollout_proposals", "day_revisions")


def upgrade() -> None:
    """Apply."""
    op.add_column("tip_scores", sa.Column("aggregates_at", sa.DateTime(timezone=True)))
    op.create_table(
        "day_revisions",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Uuid, nullable=False),
    )
    op.create_table(
        "rollout_proposals",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("version", sa.String(200), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("source", sa.String(400), nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_table(
        "batch_reports",
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Revert."""
    for table in _NEW_TABLES:
        op.drop_table(table)
    op.drop_column("tip_scores", "aggregates_at")
