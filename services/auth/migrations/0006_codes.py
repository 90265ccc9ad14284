"""One-time codes, who tried them, and the mail that is still to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Creates the tables, and lets an account say since when its e-mail address is known to be its owner's."""
    op.create_table(
        "codes",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("account_id", sa.Uuid, sa.ForeignKey("auth.accounts.id", ondelete="CASCADE"), nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("number", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("use_time", sa.DateTime(timezone=True)),
        schema="auth",
    )
    op.create_index("codes_by_account", "codes", ["account_id"], schema="auth")
    op.create_index("codes_by_expire_time", "codes", ["expire_time"], schema="auth")
    op.create_table(
        "code_tries",
        # An account, or what stands for an address that nobody has.
        sa.Column("holder_id", sa.Uuid, primary_key=True),
        sa.Column("ip", sa.Text, primary_key=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        schema="auth",
    )
    op.create_index("code_tries_by_expire_time", "code_tries", ["expire_time"], schema="auth")
    op.create_table(
        "mails",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        # Without one it is for whoever has the address by then, if anybody. No reference: that would look into the
        # accounts, and what is asked for by strangers is written without.
        sa.Column("account_id", sa.Uuid),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        schema="auth",
    )
    op.create_index("mails_by_due_time", "mails", ["due_time"], schema="auth")
    op.create_index("mails_by_account", "mails", ["account_id"], schema="auth")


def downgrade() -> None:
    """Drops the tables; the column belongs to the accounts, and stays."""
    op.drop_table("mails", schema="auth")
    op.drop_table("code_tries", schema="auth")
    op.drop_table("codes", schema="auth")
