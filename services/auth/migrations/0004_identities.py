"""Identities of OpenID providers, accounts that others issue tokens for, and when an address was proved."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the identities; no address of before is known to be proved."""
    op.add_column("accounts", sa.Column("email_verify_time", sa.DateTime(timezone=True)), schema="auth")
    op.add_column("accounts", sa.Column("issuer", sa.Text, nullable=False, server_default=""), schema="auth")
    op.create_index(
        "accounts_of_others_by_delete_time",
        "accounts",
        ["delete_time"],
        schema="auth",
        postgresql_where=sa.text("issuer <> '' AND delete_time IS NOT NULL"),
    )
    op.create_table(
        "identities",
        sa.Column("provider", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Uuid, sa.ForeignKey("auth.accounts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("email_verified", sa.Boolean, nullable=False),
        sa.Column("full_name", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("account_id", "provider", name="one_identity_of_a_provider"),
        schema="auth",
    )


def downgrade() -> None:
    """Drops them; who had nothing else to sign in by is left without."""
    op.drop_table("identities", schema="auth")
    op.drop_index("accounts_of_others_by_delete_time", "accounts", schema="auth")
    op.drop_column("accounts", "issuer", schema="auth")
    op.drop_column("accounts", "email_verify_time", schema="auth")
