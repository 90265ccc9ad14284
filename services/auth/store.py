"""Owns the auth schema: accounts, sign-ins, and every query on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row
from runtime.errors import Failure, Reason
from services.auth.domain import Account, Rotation, SignIn, Subscription

_schema: Final = sa.MetaData(schema="auth")
_time: Final = sa.DateTime(timezone=True)

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
    sa.Column("subscription_end_time", _time),
    sa.Column("cancel_at_period_end", sa.Boolean),
    sa.Column("create_time", _time),
    sa.Column("delete_time", _time),
)

sign_ins: Final = sa.Table(
    "sign_ins",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("account_id", sa.Uuid),
    sa.Column("device_name", sa.Text),
    sa.Column("ip", sa.Text),
    sa.Column("token_key", sa.LargeBinary),
    sa.Column("current_digest", sa.LargeBinary),
    sa.Column("previous_digest", sa.LargeBinary),
    sa.Column("sealed_successor", sa.LargeBinary),
    sa.Column("create_time", _time),
    sa.Column("last_use_time", _time),
    sa.Column("expire_time", _time),
    sa.Column("revoke_time", _time),
)

# What is still to be erased in other services of accounts that were deleted here.
erasures: Final = sa.Table(
    "erasures",
    _schema,
    sa.Column("account_id", sa.Uuid, primary_key=True),
    sa.Column("delete_time", _time),
    sa.Column("due_time", _time),
    sa.Column("attempts", sa.Integer),
)

_ACCOUNT: Final = tuple(column for column in accounts.c if column.name not in ("password_hash", "delete_time"))

_INSERT_ACCOUNT: Final = (
    postgresql.insert(accounts)
    .values({column.name: bindparam(column.name) for column in accounts.c if column.name != "delete_time"})
    .on_conflict_do_nothing(index_elements=["email"])
    .returning(accounts.c.id)
)
_ACCOUNT_BY_EMAIL: Final = sa.select(*accounts.c).where(accounts.c.email == bindparam("email"))
_ACCOUNTS_BY_ID: Final = sa.select(*_ACCOUNT).where(
    accounts.c.id == sa.any_(bindparam("ids", type_=postgresql.ARRAY(sa.Uuid))), accounts.c.delete_time.is_(None)
)
_NEW_SIGN_IN: Final = (
    "id",
    "account_id",
    "device_name",
    "ip",
    "token_key",
    "current_digest",
    "create_time",
    "last_use_time",
    "expire_time",
)
# Under a lock on the account: who deletes it finds this sign-in and ends it, or has been faster, and there is none.
_INSERT_SIGN_IN: Final = sa.insert(sign_ins).from_select(
    _NEW_SIGN_IN,
    sa.select(*(bindparam(name, type_=sign_ins.c[name].type) for name in _NEW_SIGN_IN))
    .select_from(accounts)
    .where(accounts.c.id == bindparam("account_id", type_=sa.Uuid), accounts.c.delete_time.is_(None))
    .with_for_update(read=True),
)

_now: Final = bindparam("now", type_=_time)
_presented: Final = bindparam("presented", type_=sa.LargeBinary)
_is_current: Final = sign_ins.c.current_digest == _presented
_is_previous: Final = sa.func.coalesce(sign_ins.c.previous_digest == _presented, sa.false())
_is_ours: Final = sa.func.substr(
    sa.func.sha256(sign_ins.c.token_key.op("||")(_presented)), 1, sa.literal_column("16")
) == bindparam("tag", type_=sa.LargeBinary)
_is_live: Final = sa.and_(sign_ins.c.revoke_time.is_(None), sign_ins.c.expire_time > _now)


def _when_rotated(column: sa.Column[Any], new: Any) -> Any:
    return sa.case((sa.and_(_is_current, _is_live), new), else_=column)


# The whole decision, in one statement: the last token rotates, the one before it finds its successor, an older one
# ends the sign-in. PostgreSQL runs parallel ones one after the other, each on the row that the last one left.
_ROTATE: Final = (
    sa.update(sign_ins)
    .values(
        previous_digest=_when_rotated(sign_ins.c.previous_digest, sign_ins.c.current_digest),
        sealed_successor=_when_rotated(
            sign_ins.c.sealed_successor, bindparam("sealed_successor", type_=sa.LargeBinary)
        ),
        current_digest=_when_rotated(sign_ins.c.current_digest, bindparam("successor", type_=sa.LargeBinary)),
        last_use_time=_when_rotated(sign_ins.c.last_use_time, _now),
        expire_time=_when_rotated(sign_ins.c.expire_time, bindparam("expire_time", type_=_time)),
        revoke_time=sa.case(
            (sa.or_(_is_current, _is_previous), sign_ins.c.revoke_time),
            else_=sa.func.coalesce(sign_ins.c.revoke_time, _now),
        ),
    )
    .where(sign_ins.c.id == bindparam("sign_in_id"), _is_ours)
    .returning(
        sign_ins.c.account_id,
        sign_ins.c.token_key,
        sign_ins.c.sealed_successor,
        sign_ins.c.expire_time,
        sign_ins.c.revoke_time,
        (sign_ins.c.current_digest == bindparam("successor", type_=sa.LargeBinary)).label("rotated"),
        sa.func.coalesce(sign_ins.c.previous_digest == _presented, sa.false()).label("repeated"),
    )
)

_END: Final = (
    sa.update(sign_ins)
    .values(revoke_time=_now)
    .where(
        sign_ins.c.account_id == bindparam("account_id"),
        _is_live,
        sa.or_(
            sa.and_(bindparam("this", type_=sa.Boolean), sign_ins.c.id == bindparam("sign_in_id")),
            sa.and_(bindparam("others", type_=sa.Boolean), sign_ins.c.id != bindparam("sign_in_id")),
        ),
    )
)
# Nothing that says who it was stays; the row does, for the ended sign-ins that every service has to learn of.
_DELETE: Final = (
    sa.update(accounts)
    .values(
        email=sa.null(),
        password_hash=sa.literal_column("''"),
        tier=sa.literal_column("'free'"),
        subscription_status=sa.literal_column("'inactive'"),
        subscription_end_time=sa.null(),
        cancel_at_period_end=sa.false(),
        delete_time=_now,
    )
    .where(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))
    .returning(accounts.c.delete_time)
)
_DELETED: Final = sa.select(accounts.c.delete_time).where(accounts.c.id == bindparam("account_id"))
_END_ALL: Final = (
    sa.update(sign_ins)
    .values(
        device_name=sa.literal_column("''"),
        ip=sa.literal_column("''"),
        revoke_time=sa.func.coalesce(sign_ins.c.revoke_time, _now),
    )
    .where(sign_ins.c.account_id == bindparam("account_id"))
)
_INSERT_ERASURE: Final = sa.insert(erasures).values(
    account_id=bindparam("account_id"), delete_time=_now, due_time=_now, attempts=sa.literal_column("0")
)
_REVOKED_SINCE: Final = sa.select(sign_ins.c.id).where(sign_ins.c.revoke_time >= bindparam("since", type_=_time))


class AuthStore:
    """Accounts and sign-ins in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_account(self, account: Account, password_hash: str, sign_in: SignIn) -> None:
        """Stores a new account with its first sign-in. Raises Failure(EMAIL_REGISTERED)."""
        async with self._database.transaction() as transaction:
            row = await transaction.one(
                _INSERT_ACCOUNT,
                id=account.id,
                email=account.email,
                password_hash=password_hash,
                tenant_id=account.tenant_id,
                role=account.role,
                tier=account.subscription.tier,
                subscription_status=account.subscription.status,
                subscription_end_time=account.subscription.end_time,
                cancel_at_period_end=account.subscription.cancel_at_period_end,
                create_time=account.create_time,
            )
            if row is None:
                raise Failure(Reason.EMAIL_REGISTERED)
            await transaction.execute(_INSERT_SIGN_IN, **_sign_in_values(sign_in))

    async def create_sign_in(self, sign_in: SignIn) -> None:
        """Stores a new sign-in. Raises Failure(INVALID_CREDENTIALS) when the account has been deleted meanwhile."""
        async with self._database.statements() as statements:
            if not await statements.execute(_INSERT_SIGN_IN, **_sign_in_values(sign_in)):
                raise Failure(Reason.INVALID_CREDENTIALS)

    async def delete_account(self, account_id: UUID, now: datetime) -> datetime:
        """Deletes an account, ends its sign-ins and lists its erasure elsewhere; returns when it was deleted first.

        Raises Failure(INVALID_TOKEN) when there never was such an account.
        """
        async with self._database.transaction() as transaction:
            deleted = await transaction.one(_DELETE, account_id=account_id, now=now)
            if deleted is None:
                before = await transaction.one(_DELETED, account_id=account_id)
                if before is None:
                    raise Failure(Reason.INVALID_TOKEN)
                return before["delete_time"]  # type: ignore[no-any-return]  # a column of times
            await transaction.execute(_END_ALL, account_id=account_id, now=now)
            await transaction.execute(_INSERT_ERASURE, account_id=account_id, now=now)
        return now

    async def account_by_email(self, email: str) -> tuple[Account, str] | None:
        """The account and its password hash, or None when nobody has this e-mail."""
        async with self._database.statements() as statements:
            row = await statements.one(_ACCOUNT_BY_EMAIL, email=email)
        return (_account(row), row["password_hash"]) if row else None

    async def accounts(self, ids: Sequence[UUID]) -> dict[UUID, Account]:
        """Those of the accounts that exist, by id, in one statement."""
        async with self._database.statements() as statements:
            rows = await statements.all(_ACCOUNTS_BY_ID, ids=list(ids))
        return {row["id"]: _account(row) for row in rows}

    async def rotate(
        self,
        sign_in_id: UUID,
        *,
        presented: bytes,
        tag: bytes,
        successor: bytes,
        sealed_successor: bytes,
        now: datetime,
        expire_time: datetime,
    ) -> Rotation | None:
        """Presents a refresh token by its digest and tag; None when the sign-in never issued such a token."""
        async with self._database.statements() as statements:
            row = await statements.one(
                _ROTATE,
                sign_in_id=sign_in_id,
                presented=presented,
                tag=tag,
                successor=successor,
                sealed_successor=sealed_successor,
                now=now,
                expire_time=expire_time,
            )
        return Rotation(**row) if row else None

    async def end_sign_ins(self, account_id: UUID, sign_in_id: UUID, *, this: bool, others: bool, now: datetime) -> int:
        """Ends `sign_in_id`, the account's other live sign-ins, or both; returns how many were ended."""
        async with self._database.statements() as statements:
            return await statements.execute(
                _END, account_id=account_id, sign_in_id=sign_in_id, this=this, others=others, now=now
            )

    async def revoked_since(self, since: datetime) -> list[UUID]:
        """Ids of the sign-ins ended at or after `since`."""
        async with self._database.statements() as statements:
            return [row["id"] for row in await statements.all(_REVOKED_SINCE, since=since)]


def _account(row: Row) -> Account:
    return Account(
        id=row["id"],
        email=row["email"],
        tenant_id=row["tenant_id"],
        role=row["role"],
        create_time=row["create_time"],
        subscription=Subscription(
            tier=row["tier"],
            status=row["subscription_status"],
            end_time=row["subscription_end_time"],
            cancel_at_period_end=row["cancel_at_period_end"],
        ),
    )


def _sign_in_values(sign_in: SignIn) -> dict[str, object]:
    return {
        "id": sign_in.id,
        "account_id": sign_in.account_id,
        "device_name": sign_in.device_name,
        "ip": sign_in.ip,
        "token_key": sign_in.token_key,
        "current_digest": sign_in.current_digest,
        "create_time": sign_in.create_time,
        "last_use_time": sign_in.create_time,
        "expire_time": sign_in.expire_time,
    }
