"""Whether every version of the app below the latest has to be updated."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds a column that the code before leaves as it is."""
    op.add_column(
        "app_versions", sa.Column("force", sa.Boolean, nullable=False, server_default=sa.false()), schema="sessions"
    )


def downgrade() -> None:
    """Drops it; nothing is forced from then on."""
    op.drop_column("app_versions", "force", schema="sessions")
