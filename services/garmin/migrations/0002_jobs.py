"""Synchronizations: the queue that they wait in, what users see of them, and what they know already."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from services.garmin import queue_schema

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the queue's tables as the installed library has them, and those of synchronizations."""
    queue_schema.bring_up(op.get_bind().connection.driver_connection)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("scheduled", sa.Boolean, nullable=False),
        sa.Column("force", sa.Boolean, nullable=False),
        sa.Column("since", sa.Date),
        sa.Column("followers", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("queue_id", sa.BigInteger),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("created", sa.Integer, nullable=False),
        sa.Column("duplicates", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("errors", postgresql.JSONB, nullable=False),
        sa.Column("error_message", sa.Text),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True)),
        schema="garmin",
    )
    # What decides that a user has one at a time, whichever replica is asked.
    op.create_index(
        "jobs_one_per_user",
        "jobs",
        ["user_id"],
        unique=True,
        schema="garmin",
        postgresql_where=sa.text("status = 'in_progress'"),
    )
    op.create_index("jobs_by_start", "jobs", ["user_id", "start_time", "id"], schema="garmin")
    op.create_index("jobs_by_end", "jobs", ["end_time"], schema="garmin")
    op.create_table(
        "cursors",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("type", sa.Text, primary_key=True),
        sa.Column("day", sa.Date, nullable=False),
        schema="garmin",
    )
    op.create_table(
        "activities",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("garmin_id", sa.Text(collation="C"), primary_key=True),
        sa.Column("marker", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("activity_id", sa.Text, nullable=False),
        sa.Column("job_id", sa.Uuid, nullable=False),
        schema="garmin",
    )
    op.create_table(
        "workouts",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("plan_id", sa.Text(collation="C"), primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("workout_id", sa.Text, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("job_id", sa.Uuid, nullable=False),
        schema="garmin",
    )


def downgrade() -> None:
    """Drops them, with what is still to be done."""
    for table in ("workouts", "activities", "cursors", "jobs"):
        op.drop_table(table, schema="garmin")
    queue_schema.drop(op.get_bind().connection.driver_connection)
