"""Security events, and by what and from where a device signed in."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates the log of security events; sign-ins of before say nothing of their method."""
    op.add_column("sign_ins", sa.Column("user_agent", sa.Text, nullable=False, server_default=""), schema="auth")
    op.add_column("sign_ins", sa.Column("method", sa.Text, nullable=False, server_default="password"), schema="auth")
    op.create_table(
        "security_events",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("account_id", sa.Uuid),
        sa.Column("sign_in_id", sa.Uuid),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("ip", sa.Text, nullable=False),
        sa.Column("user_agent", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("detail", postgresql.JSONB, nullable=False),
        schema="auth",
    )
    op.create_index("security_events_by_account", "security_events", ["account_id", "id"], schema="auth")
    op.create_index("security_events_by_tenant", "security_events", ["tenant_id", "id"], schema="auth")


def downgrade() -> None:
    """Drops the log and both columns."""
    op.drop_table("security_events", schema="auth")
    op.drop_column("sign_ins", "method", schema="auth")
    op.drop_column("sign_ins", "user_agent", schema="auth")
