"""Where devices sign in from, failed attempts by place, and security events that are found by time and folded."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds what tells known places from unknown ones; sign-ins of before are known by their IPv4 address."""
    op.add_column("sign_ins", sa.Column("network", sa.Text, nullable=False, server_default=""), schema="auth")
    op.add_column("sign_ins", sa.Column("device_key", sa.Text, nullable=False, server_default=""), schema="auth")
    op.execute("UPDATE auth.sign_ins SET network = ip WHERE ip <> ''")
    op.create_index("sign_ins_by_expire_time", "sign_ins", ["expire_time"], schema="auth")
    op.create_index("sign_ins_by_network", "sign_ins", ["account_id", "network"], schema="auth")
    op.create_index("sign_ins_by_device", "sign_ins", ["account_id", "device_key"], schema="auth")
    op.create_table(
        "attempts",
        sa.Column("subject", sa.LargeBinary, primary_key=True),
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until_time", sa.DateTime(timezone=True), nullable=False),
        schema="auth",
    )
    op.create_index("attempts_by_time", "attempts", ["time"], schema="auth")
    op.add_column("security_events", sa.Column("fold_key", sa.Text), schema="auth")
    op.add_column("security_events", sa.Column("count", sa.Integer, nullable=False, server_default="1"), schema="auth")
    op.create_index(
        "security_events_by_fold_key",
        "security_events",
        ["fold_key"],
        unique=True,
        schema="auth",
        postgresql_where=sa.text("fold_key IS NOT NULL"),
    )
    for owner in ("account", "tenant"):
        op.drop_index(f"security_events_by_{owner}", "security_events", schema="auth")
        columns = [f"{owner}_id", "time", "id"]
        op.create_index(f"security_events_by_{owner}_and_time", "security_events", columns, schema="auth")
        columns = [f"{owner}_id", "kind", "time", "id"]
        op.create_index(f"security_events_by_{owner}_and_kind", "security_events", columns, schema="auth")
    op.create_index("security_events_by_time", "security_events", ["time"], schema="auth")


def downgrade() -> None:
    """Undoes it; counts of folded events go."""
    op.drop_index("security_events_by_time", "security_events", schema="auth")
    for owner in ("account", "tenant"):
        op.drop_index(f"security_events_by_{owner}_and_kind", "security_events", schema="auth")
        op.drop_index(f"security_events_by_{owner}_and_time", "security_events", schema="auth")
        op.create_index(f"security_events_by_{owner}", "security_events", [f"{owner}_id", "id"], schema="auth")
    op.drop_index("security_events_by_fold_key", "security_events", schema="auth")
    op.drop_column("security_events", "count", schema="auth")
    op.drop_column("security_events", "fold_key", schema="auth")
    op.drop_table("attempts", schema="auth")
    op.drop_index("sign_ins_by_device", "sign_ins", schema="auth")
    op.drop_index("sign_ins_by_network", "sign_ins", schema="auth")
    op.drop_index("sign_ins_by_expire_time", "sign_ins", schema="auth")
    op.drop_column("sign_ins", "device_key", schema="auth")
    op.drop_column("sign_ins", "network", schema="auth")
