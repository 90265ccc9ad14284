"""Linked accounts, sign-ins that wait for a code, and attempts to sign in."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Creates the tables. What is secret is sealed, or with the auth service."""
    op.create_table(
        "links",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        # Another one each time an account is linked: whoever acts for an earlier one must notice.
        sa.Column("link_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("linked_at", _time, nullable=False),
        sa.Column("needs_sign_in", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("interval_hours", sa.Integer, nullable=False),
        sa.Column("next_sync_at", _time),
        # Until then one process refreshes the tokens, and no other.
        sa.Column("refresh_until", _time),
        sa.CheckConstraint("interval_hours BETWEEN 0 AND 168", name="links_interval"),
        schema="garmin",
    )
    op.create_index(
        "links_by_next_sync",
        "links",
        ["next_sync_at"],
        schema="garmin",
        postgresql_where=sa.text("next_sync_at IS NOT NULL AND NOT needs_sign_in"),
    )
    op.create_table(
        "sign_ins",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("sealed_state", postgresql.BYTEA, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("expire_time", _time, nullable=False),
        schema="garmin",
    )
    op.create_index("sign_ins_by_expire_time", "sign_ins", ["expire_time"], schema="garmin")
    op.create_table(
        "attempts",
        # A digest of the user's id, or of the name at Garmin.
        sa.Column("subject", postgresql.BYTEA, primary_key=True),
        sa.Column("times", postgresql.ARRAY(_time), nullable=False),
        sa.Column("last_time", _time, nullable=False),
        schema="garmin",
    )
    op.create_index("attempts_by_last_time", "attempts", ["last_time"], schema="garmin")


def downgrade() -> None:
    """Drops the tables: every account has to be linked again."""
    for table in ("attempts", "sign_ins", "links"):
        op.drop_table(table, schema="garmin")
