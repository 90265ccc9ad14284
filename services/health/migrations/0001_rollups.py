"""What was reported: counts by minute, hour and day, devices with their hours, and how far each reporter is."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_time = sa.DateTime(timezone=True)
_word = sa.Text(collation="C")


def _counts() -> list[sa.Column]:
    names = ("syncs", "failed_syncs", "items", "conflicts", "rejected")
    # Microseconds and whole bytes: sums of them are exact in whatever order they are made.
    names += ("duration_us", "uploads_completed", "uploads_abandoned", "upload_bytes")
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def upgrade() -> None:
    """Creates the tables."""
    for table in ("minutes", "hours", "days"):
        op.create_table(
            table,
            sa.Column("tenant_id", sa.Integer, primary_key=True, autoincrement=False),
            # The start of its minute, hour or day, UTC.
            sa.Column("time", _time, primary_key=True),
            sa.Column("domain", _word, primary_key=True),
            *_counts(),
            schema="health",
        )
        op.create_index(f"{table}_by_time", table, ["time"], schema="health")
    op.create_table(
        "devices",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("device_id", _word, primary_key=True),
        sa.Column("tenant_id", sa.Integer, primary_key=True, autoincrement=False),
        *_counts(),
        sa.Column("last_sync_time", _time),
        # What it last said of itself, and when; NULL: nothing.
        sa.Column("say_time", _time, nullable=False),
        sa.Column("platform", _word),
        sa.Column("network_type", _word),
        sa.Column("app_version", _word),
        sa.Column("os_version", _word),
        sa.Column("clock_skew_us", sa.BigInteger),
        schema="health",
    )
    op.create_index("devices_by_last_sync_time", "devices", ["tenant_id", "last_sync_time"], schema="health")
    op.create_index("devices_by_device_id", "devices", ["tenant_id", "device_id"], schema="health")
    op.create_table(
        "device_hours",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("device_id", _word, primary_key=True),
        sa.Column("tenant_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", _time, primary_key=True),
        *_counts(),
        schema="health",
    )
    op.create_index("device_hours_by_time", "device_hours", ["time"], schema="health")
    op.create_table(
        "reporters",
        sa.Column("reporter", sa.Uuid, primary_key=True),
        sa.Column("number", sa.Numeric(20), nullable=False),
        sa.Column("report_time", _time, nullable=False),
        schema="health",
    )
    op.create_index("reporters_by_time", "reporters", ["report_time"], schema="health")
    op.create_table(
        "drops",
        sa.Column("time", _time, primary_key=True),
        sa.Column("outcomes", sa.BigInteger, nullable=False),
        schema="health",
    )
    op.create_table(
        "erased",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        # How many devices were forgotten.
        sa.Column("devices", sa.Integer, nullable=False),
        schema="health",
    )


def downgrade() -> None:
    """Drops them, and with them all that was ever reported."""
    for table in ("erased", "drops", "reporters", "device_hours", "devices", "days", "hours", "minutes"):
        op.drop_table(table, schema="health")
