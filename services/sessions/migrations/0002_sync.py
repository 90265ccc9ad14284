"""What sync needs: when a phone made a change, how large it is, policies, conflicts, and how far tombstones go."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_PARTIAL = (
    ("records_feed", ["user_id", "position"], True, "position > 0"),
    ("records_by_happen_time", ["user_id", "domain", "happen_time", "id"], False, "happen_time IS NOT NULL"),
)


def upgrade() -> None:
    """Adds columns that the code before does not know, and the tables of policies and conflicts."""
    op.add_column("records", sa.Column("change_time", sa.DateTime(timezone=True)), schema="sessions")
    op.add_column("records", sa.Column("size", sa.Integer), schema="sessions")
    op.add_column(
        "feeds", sa.Column("horizon", sa.BigInteger, nullable=False, server_default=sa.text("0")), schema="sessions"
    )
    # Partial, with conditions that hold for every row that is looked for in them: otherwise PostgreSQL takes them, on a
    # table that it has not yet analyzed, for as good as the primary key, and walks all of a user's records to find one.
    for name, columns, unique, where in _PARTIAL:
        op.drop_index(name, "records", schema="sessions")
        op.create_index(name, "records", columns, unique=unique, schema="sessions", postgresql_where=sa.text(where))
    op.create_index(
        "records_tombstones",
        "records",
        ["update_time"],
        schema="sessions",
        postgresql_where=sa.text("deleted"),
    )
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["create_time"], schema="sessions")
    op.create_table(
        "policies",
        sa.Column("tenant_id", sa.Integer, primary_key=True),
        sa.Column("domain", sa.Text(collation="C"), primary_key=True),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("auto_resolve", sa.Boolean, nullable=False),
        sa.Column("notify_on_conflict", sa.Boolean, nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        schema="sessions",
    )
    op.create_table(
        "conflicts",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("domain", sa.Text(collation="C"), nullable=False),
        sa.Column("record_id", sa.Text(collation="C"), nullable=False),
        sa.Column("server_version", sa.Integer, nullable=False),
        sa.Column("client_version", sa.Integer, nullable=False),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("winner", sa.Text, nullable=False),
        sa.Column("server_data", postgresql.JSONB),
        sa.Column("client_data", postgresql.JSONB),
        sa.Column("server_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("client_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolve_time", sa.DateTime(timezone=True)),
        schema="sessions",
    )
    op.create_index("conflicts_by_user", "conflicts", ["user_id", "create_time", "id"], schema="sessions")
    op.create_index("conflicts_by_tenant", "conflicts", ["tenant_id", "create_time", "id"], schema="sessions")
    op.create_index("conflicts_by_age", "conflicts", ["create_time"], schema="sessions")
    op.create_table(
        "push_counts",
        sa.Column("user_id", sa.Uuid, primary_key=True),
        sa.Column("domain", sa.Text(collation="C"), primary_key=True),
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("tenant_id", sa.Integer, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        schema="sessions",
    )
    op.create_index("push_counts_by_tenant", "push_counts", ["tenant_id", "hour"], schema="sessions")


def downgrade() -> None:
    """Undoes it."""
    for table in ("push_counts", "conflicts", "policies"):
        op.drop_table(table, schema="sessions")
    op.drop_index("idempotency_keys_by_age", "idempotency_keys", schema="sessions")
    op.drop_index("records_tombstones", "records", schema="sessions")
    for name, columns, unique, _ in _PARTIAL:
        op.drop_index(name, "records", schema="sessions")
        op.create_index(name, "records", columns, unique=unique, schema="sessions")
    op.drop_column("feeds", "horizon", schema="sessions")
    op.drop_column("records", "size", schema="sessions")
    op.drop_column("records", "change_time", schema="sessions")
