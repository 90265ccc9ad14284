"""What stores have told of subscriptions."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Creates the events of subscriptions."""
    op.create_table(
        "subscription_events",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("receive_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("subscriber", sa.Text, nullable=False),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("transferred_to", sa.Text, nullable=False),
        sa.Column("tier", sa.Text),
        sa.Column("status", sa.Text),
        sa.Column("end_time", sa.DateTime(timezone=True)),
        sa.Column("cancel_at_period_end", sa.Boolean),
        schema="auth",
    )
    op.create_index("subscription_events_by_subscriber", "subscription_events", ["subscriber"], schema="auth")
    op.create_index(
        "subscription_events_by_receiver",
        "subscription_events",
        ["transferred_to"],
        schema="auth",
        postgresql_where=sa.text("transferred_to <> ''"),
    )


def downgrade() -> None:
    """Drops them; the accounts keep what they amounted to."""
    op.drop_table("subscription_events", schema="auth")
