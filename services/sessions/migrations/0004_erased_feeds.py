"""Which users were erased, so that nothing is stored for them afterwards."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds a column that the code before does not know."""
    op.add_column("feeds", sa.Column("erase_time", sa.DateTime(timezone=True)), schema="sessions")


def downgrade() -> None:
    """Drops it; what is stored for erased users from then on stays."""
    op.drop_column("feeds", "erase_time", schema="sessions")
