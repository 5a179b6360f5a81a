"""Create the table of idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "idempotency_keys",
        sa.Column("key_hash", sa.String(64), primary_key=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claim_id", sa.Uuid, nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.Column("user_id", sa.String(128)),
        sa.Column("draw", sa.JSON),
        sa.Column("tip_id", sa.Uuid),
        sa.Column("reaction_result", sa.JSON),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    """Revert."""
    op.drop_table("idempotency_keys")
