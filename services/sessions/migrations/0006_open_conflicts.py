"""How the conflicts of a tenant that wait for somebody are found, among all that were ever logged."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds an index."""
    op.create_index(
        "conflicts_open",
        "conflicts",
        ["tenant_id", "create_time", "id"],
        schema="sessions",
        postgresql_where=sa.text("winner = 'none'"),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_index("conflicts_open", "conflicts", schema="sessions")
