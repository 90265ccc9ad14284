"""Records, the feed position of each user, and the idempotency keys of calls."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the three tables of the record engine."""
    op.create_table(
        "feeds",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        schema="sessions",
    )
    op.create_table(
        "records",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("domain", sa.Text(collation="C"), primary_key=True),
        sa.Column("id", sa.Text(collation="C"), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("data", postgresql.JSONB, nullable=False),
        sa.Column("happen_time", sa.DateTime(timezone=True)),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        schema="sessions",
    )
    op.create_index("records_feed", "records", ["user_id", "position"], unique=True, schema="sessions")
    op.create_index("records_by_happen_time", "records", ["user_id", "domain", "happen_time", "id"], schema="sessions")
    # Only exercise sessions are looked up across users: somebody else's is 403 and not 404.
    op.create_index(
        "exercise_records_by_id",
        "records",
        ["id"],
        schema="sessions",
        postgresql_where=sa.text("domain = 'exercise'"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("rpc", sa.Text(collation="C"), primary_key=True),
        sa.Column("key", sa.Text(collation="C"), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("answer", postgresql.JSONB, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        schema="sessions",
    )


def downgrade() -> None:
    """Drops the tables."""
    for table in ("idempotency_keys", "records", "feeds"):
        op.drop_table(table, schema="sessions")
