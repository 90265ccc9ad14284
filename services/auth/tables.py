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
    sa.Column("email_verify_time", time),
    sa.Column("issuer", sa.Text),
    sa.Column("is_guest", sa.Boolean),
)

identities: Final = sa.Table(
    "identities",
    _schema,
    sa.Column("provider", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("email", sa.Text),
    sa.Column("email_verified", sa.Boolean),
    sa.Column("full_name", sa.Text),
    sa.Column("create_time", time),
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
    sa.Column("network", sa.Text),
    sa.Column("device_key", sa.Text),
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

# What stores have told of subscriptions; what it amounts to stands with the accounts.
subscription_events: Final = sa.Table(
    "subscription_events",
    _schema,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text),
    sa.Column("event_time", time),
    sa.Column("receive_time", time),
    sa.Column("subscriber", sa.Text),
    sa.Column("product", sa.Text),
    sa.Column("transferred_to", sa.Text),
    sa.Column("tier", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("end_time", time),
    sa.Column("cancel_at_period_end", sa.Boolean),
)

second_factors: Final = sa.Table(
    "second_factors",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("key_id", sa.Text),
    sa.Column("sealed_key", sa.LargeBinary),
    sa.Column("sealed_secret", sa.LargeBinary),
    sa.Column("create_time", time),
    sa.Column("enable_time", time),
    sa.Column("last_step", sa.BigInteger),
    sa.Column("tries", sa.Integer),
    sa.Column("tries_since", time),
    sa.Column("recovery_tries", sa.Integer),
    sa.Column("recovery_tries_since", time),
)

recovery_codes: Final = sa.Table(
    "recovery_codes",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("use_time", time),
)

# What its owner may be told of an account that was deleted.
deletions: Final = sa.Table(
    "deletions",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("receipt_digest", sa.LargeBinary),
    sa.Column("delete_time", time),
    sa.Column("done_time", time),
    sa.Column("merged", sa.Boolean),
    sa.Column("removed", postgresql.JSONB),
)

# Guests whose things go, or have gone, to an account.
merges: Final = sa.Table(
    "merges",
    _schema,
    sa.Column("guest_id", sa.Uuid, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("create_time", time),
    sa.Column("done_time", time),
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
    # Events with the same key are one row with a count.
    sa.Column("fold_key", sa.Text),
    sa.Column("count", sa.Integer),
)

# Attempts to sign in that failed, or are not yet known to have succeeded, by account and place.
attempts: Final = sa.Table(
    "attempts",
    _schema,
    sa.Column("subject", sa.LargeBinary, primary_key=True),
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("failures", sa.Integer),
    sa.Column("time", time),
    sa.Column("until_time", time),
)

codes: Final = sa.Table(
    "codes",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("purpose", sa.Text),
    sa.Column("email", sa.Text),
    sa.Column("number", sa.Text),
    sa.Column("tries", sa.Integer),
    sa.Column("create_time", time),
    sa.Column("expire_time", time),
    sa.Column("use_time", time),
)

code_tries: Final = sa.Table(
    "code_tries",
    _schema,
    sa.Column("holder_id", sa.Uuid, primary_key=True),
    sa.Column("ip", sa.Text, primary_key=True),
    sa.Column("tries", sa.Integer),
    sa.Column("expire_time", time),
)

# What is still to be sent. It holds no text and no code: both are made while it is sent.
mails: Final = sa.Table(
    "mails",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("email", sa.Text),
    sa.Column("account_id", sa.Uuid),
    sa.Column("create_time", time),
    sa.Column("expire_time", time),
    sa.Column("due_time", time),
    sa.Column("attempts", sa.Integer),
)
