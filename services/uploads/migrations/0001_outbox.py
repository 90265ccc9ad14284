"""What other services are still to be told of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the list of records that are to show up in their users' feeds."""
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("domain", sa.Text(collation="C"), nullable=False),
        sa.Column("record_id", sa.Text(collation="C"), nullable=False),
        sa.Column("data", postgresql.JSONB),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        schema="uploads",
    )
    op.create_index("outbox_by_due_time", "outbox", ["due_time", "id"], schema="uploads")
    op.create_index("outbox_of_users", "outbox", ["user_id", "due_time"], schema="uploads")
    op.create_index("outbox_by_record", "outbox", ["user_id", "domain", "record_id", "id"], schema="uploads")


def downgrade() -> None:
    """Drops it, with what nobody was told of yet."""
    op.drop_table("outbox", schema="uploads")
