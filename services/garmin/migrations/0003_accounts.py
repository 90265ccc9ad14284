"""Which account at Garmin what is known of a user's synchronizations is of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates the table. A row outlives its link: the same account, linked again, goes on where it was."""
    op.create_table(
        "accounts",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        # A digest of the name at Garmin.
        sa.Column("subject", postgresql.BYTEA, nullable=False),
        schema="garmin",
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("accounts", schema="garmin")
