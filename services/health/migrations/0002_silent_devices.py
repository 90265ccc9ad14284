"""How devices that have been silent for long are found, among all that are known."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds an index."""
    op.create_index("devices_by_say_time", "devices", ["say_time"], schema="health")


def downgrade() -> None:
    """Drops it."""
    op.drop_index("devices_by_say_time", "devices", schema="health")
