"""Which installation this is, for the bytes to be told from those of others."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates a table of one row, which whoever needs it first writes."""
    op.create_table(
        "installation",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.CheckConstraint("single", name="installation_single"),
        schema="uploads",
    )


def downgrade() -> None:
    """Drops it; the bytes are somebody else's then."""
    op.drop_table("installation", schema="uploads")
