"""Guests, and the receipts of deleted accounts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Adds what the code before does not know; whoever has an account by then is no guest."""
    op.add_column(
        "accounts", sa.Column("is_guest", sa.Boolean, nullable=False, server_default=sa.false()), schema="auth"
    )
    op.create_index(
        "guests_by_create_time",
        "accounts",
        ["create_time"],
        schema="auth",
        postgresql_where=sa.text("is_guest AND delete_time IS NULL"),
    )
    op.create_table(
        "deletions",
        sa.Column("account_id", sa.Uuid, primary_key=True),
        sa.Column("receipt_digest", postgresql.BYTEA, nullable=False, unique=True),
        sa.Column("delete_time", _time, nullable=False),
        sa.Column("done_time", _time),
        sa.Column("merged", sa.Boolean, nullable=False),
        sa.Column("removed", postgresql.JSONB, nullable=False),
        schema="auth",
    )
    op.create_table(
        "merges",
        sa.Column("guest_id", sa.Uuid, primary_key=True),
        sa.Column("account_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("done_time", _time),
        sa.Column("due_time", _time, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        schema="auth",
    )
    op.create_index(
        "merges_by_due_time", "merges", ["due_time"], schema="auth", postgresql_where=sa.text("done_time IS NULL")
    )
    op.create_index("merges_by_account", "merges", ["account_id"], schema="auth")


def downgrade() -> None:
    """Undoes it; guests go, for nobody could tell them from accounts."""
    op.drop_table("merges", schema="auth")
    op.drop_table("deletions", schema="auth")
    op.drop_index("guests_by_create_time", "accounts", schema="auth")
    op.execute("DELETE FROM auth.accounts WHERE is_guest")
    op.drop_column("accounts", "is_guest", schema="auth")
