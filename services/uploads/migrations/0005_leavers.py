"""Users who are gone: what was ended of each, and to whom a guest's files went."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Creates two tables that the code before does not know."""
    op.create_table(
        "erased",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("uploads", sa.Integer, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        schema="uploads",
    )
    op.create_table(
        "adopted",
        sa.Column("guest_id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        schema="uploads",
    )


def downgrade() -> None:
    """Drops both; a guest whose files went to an account may start uploads again, as long as its token lives."""
    op.drop_table("adopted", schema="uploads")
    op.drop_table("erased", schema="uploads")
