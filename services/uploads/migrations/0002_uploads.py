"""Uploads, and what is stored of each."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("mime_type", sa.Text, nullable=False),
        sa.Column("total_size", sa.BigInteger, nullable=False),
        sa.Column("chunk_size", sa.Integer, nullable=False),
        sa.Column("file_hash", postgresql.BYTEA, nullable=False),
        sa.Column("status", sa.Text(collation="C"), nullable=False),
        sa.Column("contested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("expire_time", _time, nullable=False),
        sa.Column("finish_time", _time),
        # Of a recording that was handed over as an activity: what it came to.
        sa.Column("activity", postgresql.JSONB),
        sa.CheckConstraint(
            "status IN ('active', 'assembling', 'completed', 'failed', 'cancelled', 'expired', 'deleted')",
            name="uploads_status",
        ),
        schema="uploads",
    )
    living = sa.text("status IN ('active', 'assembling', 'completed')")
    op.create_index("uploads_of_users", "uploads", ["user_id", "file_hash"], schema="uploads", postgresql_where=living)
    op.create_index(
        "files_of_users",
        "uploads",
        ["user_id", "finish_time", "id"],
        schema="uploads",
        postgresql_where=sa.text("status = 'completed'"),
    )
    op.create_index(
        "uploads_by_expire_time",
        "uploads",
        ["expire_time"],
        schema="uploads",
        postgresql_where=sa.text("status IN ('active', 'assembling')"),
    )
    op.create_table(
        "chunks",
        sa.Column("upload_id", sa.Uuid, sa.ForeignKey("uploads.uploads.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("claim", postgresql.BYTEA, nullable=False),
        sa.Column("stored", sa.Boolean, nullable=False),
        schema="uploads",
    )


def downgrade() -> None:
    """Drops the tables, and with them what is known of every file."""
    op.drop_table("chunks", schema="uploads")
    op.drop_table("uploads", schema="uploads")
