"""Why uploads have failed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds a place for it; of those that have failed before it is not known."""
    op.add_column("uploads", sa.Column("failure", sa.Text), schema="uploads")


def downgrade() -> None:
    """Drops it."""
    op.drop_column("uploads", "failure", schema="uploads")
