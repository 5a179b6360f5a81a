"""Create the tables of tips, reactions and their hourly counts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "tip_scores",
        sa.Column("tip_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("policy", sa.String(40), nullable=False),
        sa.Column("policy_version", sa.String(64), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("prompt_version_asked", sa.String(64)),
        sa.Column("generation_id", sa.String(64), nullable=False),
        sa.Column("prompt_version", sa.String(64), nullable=False),
        sa.Column("prompt_digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("fallback", sa.Boolean, nullable=False),
        sa.Column("signals", sa.JSON, nullable=False),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("tip", sa.Text, nullable=False),
        sa.Column("input_tokens", sa.Integer, nullable=False),
        sa.Column("output_tokens", sa.Integer, nullable=False),
        sa.Column("ms", sa.Integer, nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("reaction", sa.String(40)),
        sa.Column("reward", sa.Float),
        sa.Column("reacted_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_tip_scores_user_id", "tip_scores", ["user_id"])
    op.create_index("ix_tip_scores_created_at", "tip_scores", ["created_at"])
    op.create_table(
        "reactions",
        sa.Column("tip_id", sa.Uuid, sa.ForeignKey("tip_scores.tip_id"), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("reaction", sa.String(40), primary_key=True),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "reward_hours",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prompt_version", sa.String(64), primary_key=True),
        sa.Column("prompt_digest", sa.String(64), primary_key=True),
        sa.Column("fallback", sa.Boolean, primary_key=True),
        sa.Column("shadow", sa.Boolean, primary_key=True),
        sa.Column("reaction", sa.String(40), primary_key=True),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("simulated", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "assignment_hours",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prompt_version", sa.String(64), primary_key=True),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Column("expected", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Revert."""
    for table in ("assignment_hours", "reward_hours", "reactions", "tip_scores"):
        op.drop_table(table)
