"""Add rollouts: events, evidence, shadows, leases and the webhook's outbox; count draws of ranking policies."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_NEW_TABLES = (
    *("webhook_outbox", "leases", "shadow_rankings", "shadow_tips", "rollout_evidence", "rollout_events"),
    "ranking_hours",
)
_NEW_COLUMNS = ("prompt_event", "policy_asked", "policy_options", "policy_event")


def upgrade() -> None:
    """Apply."""
    op.add_column("tip_scores", sa.Column("prompt_event", sa.Integer))
    op.add_column("tip_scores", sa.Column("policy_asked", sa.String(64)))
    op.add_column("tip_scores", sa.Column("policy_options", sa.JSON))
    op.add_column("tip_scores", sa.Column("policy_event", sa.Integer))
    op.create_table(
        "ranking_hours",
        sa.Column("segment", sa.String(64), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("window_seconds", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("distribution", sa.String(64), primary_key=True),
        sa.Column("policy_version", sa.String(64), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("seen", sa.Boolean, primary_key=True),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
    )
    op.create_table(
        "rollout_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rollout", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("from_stage", sa.String(16), nullable=False),
        sa.Column("to_stage", sa.String(16), nullable=False),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("segment", sa.String(64), nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("gated", sa.Boolean, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_index("ix_rollout_events_rollout", "rollout_events", ["rollout"])
    op.create_table(
        "rollout_evidence",
        sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
    )
    op.create_table(
        "shadow_tips",
        sa.Column("tip_id", sa.Uuid, primary_key=True),
        sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("prompt_version", sa.String(64), nullable=False),
        sa.Column("prompt_digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200)),
        sa.Column("tip", sa.Text),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("error", sa.String(64)),
        sa.Column("ms", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("live_version", sa.String(64), nullable=False),
        sa.Column("live_failed", sa.Boolean, nullable=False),
        sa.Column("live_ms", sa.Integer, nullable=False),
        sa.Column("live_tokens", sa.Integer, nullable=False),
    )
    op.create_table(
        "shadow_rankings",
        sa.Column("decision_id", sa.Uuid, primary_key=True),
        sa.Column("rollout", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("user_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("policy_version", sa.String(64), nullable=False),
        sa.Column("probabilities", sa.JSON),
        sa.Column("scores", sa.JSON),
        sa.Column("error", sa.String(64)),
        sa.Column("ms", sa.Integer, nullable=False),
    )
    for table in ("shadow_tips", "shadow_rankings"):
        for column in ("user_id", "created_at"):
            op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "webhook_outbox",
        sa.Column("event_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Revert."""
    for table in _NEW_TABLES:
        op.drop_table(table)
    for column in _NEW_COLUMNS:
        op.drop_column("tip_scores", column)
