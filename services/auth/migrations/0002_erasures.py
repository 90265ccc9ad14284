"""Accounts that were deleted, and what is still to be erased of them elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Lets a deleted account give its e-mail back, and creates the list of erasures to be carried out."""
    op.alter_column("accounts", "email", nullable=True, schema="auth")
    op.add_column("accounts", sa.Column("delete_time", sa.DateTime(timezone=True)), schema="auth")
    op.create_table(
        "erasures",
        sa.Column("account_id", sa.Uuid, primary_key=True),
        sa.Column("delete_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        schema="auth",
    )
    op.create_index("erasures_by_due_time", "erasures", ["due_time"], schema="auth")


def downgrade() -> None:
    """Undoes it; deleted accounts go with what has been marking them."""
    op.drop_table("erasures", schema="auth")
    op.execute("DELETE FROM auth.accounts WHERE delete_time IS NOT NULL")
    op.drop_column("accounts", "delete_time", schema="auth")
    op.alter_column("accounts", "email", nullable=False, schema="auth")
