"""Second factors, and the codes for the day that one is lost."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Creates both; no account has one yet."""
    op.create_table(
        "second_factors",
        sa.Column("account_id", sa.Uuid, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary, nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("enable_time", sa.DateTime(timezone=True)),
        sa.Column("last_step", sa.BigInteger),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tries_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recovery_tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("recovery_tries_since", sa.DateTime(timezone=True), nullable=False),
        schema="auth",
    )
    op.create_table(
        "recovery_codes",
        sa.Column("account_id", sa.Uuid, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("use_time", sa.DateTime(timezone=True)),
        schema="auth",
    )


def downgrade() -> None:
    """Drops both: every account signs in without."""
    op.drop_table("recovery_codes", schema="auth")
    op.drop_table("second_factors", schema="auth")
