"""Owns the tables of the auth schema."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

_schema: Final = sa.MetaData(schema="auth")
time: Final = sa.DateTime(timezone=True)

accounts: Final = sa.Table(
    "accounts",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.Text),
    sa.Column("password_hash", sa.Text),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("role", sa.Text),
    sa.Column("tier", sa.Text),
    sa.Column("subscription_status", sa.Text),
    sa.Column("subscription_end_time", time),
    sa.Column("cancel_at_period_end", sa.Boolean),
    sa.Column("create_time", time),
    sa.Column("delete_time", time),
)

sign_ins: Final = sa.Table(
    "sign_ins",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("device_name", sa.Text),
    sa.Column("ip", sa.Text),
    sa.Column("user_agent", sa.Text),
    sa.Column("method", sa.Text),
    sa.Column("token_key", sa.LargeBinary),
    sa.Column("current_digest", sa.LargeBinary),
    sa.Column("previous_digest", sa.LargeBinary),
    sa.Column("sealed_successor", sa.LargeBinary),
    sa.Column("create_time", time),
    sa.Column("last_use_time", time),
    sa.Column("expire_time", time),
    sa.Column("revoke_time", time),
)

# What is still to be erased in other services of accounts that were deleted here.
erasures: Final = sa.Table(
    "erasures",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("delete_time", time),
    sa.Column("due_time", time),
    sa.Column("attempts", sa.Integer),
)

# Sealed: the columns by the row's data key, the data key by the vault's key `key_id`.
garmin_credentials: Final = sa.Table(
    "garmin_credentials",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("sealed_key", sa.LargeBinary),
    sa.Column("garmin_username", sa.LargeBinary),
    sa.Column("garmin_password_plaintext", sa.LargeBinary),
    sa.Column("access_token", sa.LargeBinary),
    sa.Column("access_token_secret", sa.LargeBinary),
    sa.Column("token_expiration_date", time),
    sa.Column("create_time", time),
    sa.Column("update_time", time),
)

application_tokens: Final = sa.Table(
    "application_tokens",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("name", sa.Text),
    sa.Column("scopes", postgresql.ARRAY(sa.Text)),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("create_time", time),
    sa.Column("last_use_time", time),
    sa.Column("expire_time", time),
    sa.Column("revoke_time", time),
)

security_events: Final = sa.Table(
    "security_events",
    _schema,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("time", time),
    sa.Column("kind", sa.Text),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("account_id", sa.Uuid),
    sa.Column("sign_in_id", sa.Uuid),
    sa.Column("actor", sa.Text),
    sa.Column("ip", sa.Text),
    sa.Column("user_agent", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("detail", postgresql.JSONB),
)
