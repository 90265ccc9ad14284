"""Garmin credentials, application tokens, and the ends that every service has to learn of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Creates both tables; indexes what was ended by when it was."""
    time = sa.DateTime(timezone=True)
    op.create_table(
        "garmin_credentials",
        sa.Column("account_id", sa.Uuid, sa.ForeignKey("auth.accounts.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False),
        sa.Column("garmin_username", sa.LargeBinary, nullable=False),
        sa.Column("garmin_password_plaintext", sa.LargeBinary),
        sa.Column("access_token", sa.LargeBinary),
        sa.Column("access_token_secret", sa.LargeBinary),
        sa.Column("token_expiration_date", time),
        sa.Column("create_time", time, nullable=False),
        sa.Column("update_time", time, nullable=False),
        schema="auth",
    )
    op.create_index("garmin_credentials_by_key", "garmin_credentials", ["key_id", "account_id"], schema="auth")
    op.create_table(
        "application_tokens",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("account_id", sa.Uuid, sa.ForeignKey("auth.accounts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("create_time", time, nullable=False),
        sa.Column("last_use_time", time),
        sa.Column("expire_time", time),
        sa.Column("revoke_time", time),
        schema="auth",
    )
    op.create_index("application_tokens_by_account", "application_tokens", ["account_id"], schema="auth")
    for table, column in (("application_tokens", "revoke_time"), ("accounts", "delete_time")):
        op.create_index(
            f"{table}_by_{column}",
            table,
            [column],
            schema="auth",
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )


def downgrade() -> None:
    """Drops what was created."""
    op.drop_index("accounts_by_delete_time", "accounts", schema="auth")
    op.drop_table("application_tokens", schema="auth")
    op.drop_table("garmin_credentials", schema="auth")
