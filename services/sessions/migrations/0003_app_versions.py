"""Which versions of the app there are per platform, and whose workout plan an id is."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds a table and an index that the code before does not know."""
    op.create_table(
        "app_versions",
        sa.Column("platform", sa.Text(collation="C"), primary_key=True),
        sa.Column("latest_version", sa.Text, nullable=False),
        sa.Column("min_supported_version", sa.Text, nullable=False),
        sa.Column("store_url", sa.Text, nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        schema="sessions",
    )
    # As exercise sessions, plans are looked up across users: somebody else's is 403 and not 404.
    op.create_index(
        "workout_plan_records_by_id",
        "records",
        ["id"],
        schema="sessions",
        postgresql_where=sa.text("domain = 'workout_plan'"),
    )


def downgrade() -> None:
    """Undoes it."""
    op.drop_index("workout_plan_records_by_id", "records", schema="sessions")
    op.drop_table("app_versions", schema="sessions")
