"""Owns the queries on sign-ins."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database, Transaction
from runtime.errors import Failure, Reason
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.events_store import write_event
from services.auth.sign_ins_domain import MAX_SIGN_INS, Device, Rotation, SignIn
from services.auth.tables import accounts, application_tokens, sign_ins, time

_NEW_SIGN_IN: Final = (
    "id",
    "account_id",
    "device_name",
    "ip",
    "user_agent",
    "method",
    "token_key",
    "current_digest",
    "create_time",
    "last_use_time",
    "expire_time",
    "network",
    "device_key",
)
# Under a lock on the account: who deletes it, or gives it another password than the one that was just shown, finds this
# sign-in and ends it, or has been faster, and there is none. Two sign-ins of an account come one after the other, so
# that each counts the other.
_shown: Final = bindparam("password_hash", type_=sa.Text)
_INSERT_SIGN_IN: Final = sa.insert(sign_ins).from_select(
    _NEW_SIGN_IN,
    sa.select(*(bindparam(name, type_=sign_ins.c[name].type) for name in _NEW_SIGN_IN))
    .select_from(accounts)
    .where(
        accounts.c.id == bindparam("account_id", type_=sa.Uuid),
        accounts.c.delete_time.is_(None),
        accounts.c.role == sa.func.coalesce(bindparam("role", type_=sa.Text), accounts.c.role),
        sa.or_(_shown.is_(None), accounts.c.password_hash == _shown),
    )
    .with_for_update(key_share=True),
)

_now: Final = bindparam("now", type_=time)
_presented: Final = bindparam("presented", type_=sa.LargeBinary)
_is_current: Final = sign_ins.c.current_digest == _presented
_is_previous: Final = sa.func.coalesce(sign_ins.c.previous_digest == _presented, sa.false())
_is_ours: Final = sa.func.substr(
    sa.func.sha256(sign_ins.c.token_key.op("||")(_presented)), 1, sa.literal_column("16")
) == bindparam("tag", type_=sa.LargeBinary)
_is_live: Final = sa.and_(sign_ins.c.revoke_time.is_(None), sign_ins.c.expire_time > _now)


_device_key: Final = bindparam("device_key", type_=sa.Text)


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
        ip=_when_rotated(sign_ins.c.ip, bindparam("ip", type_=sa.Text)),
        user_agent=_when_rotated(sign_ins.c.user_agent, bindparam("user_agent", type_=sa.Text)),
        network=_when_rotated(sign_ins.c.network, bindparam("network", type_=sa.Text)),
        device_key=sa.case(
            (sa.and_(_is_current, _is_live, _device_key != ""), _device_key), else_=sign_ins.c.device_key
        ),
        expire_time=_when_rotated(sign_ins.c.expire_time, bindparam("expire_time", type_=time)),
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
_END_BY: Final = (
    sa.update(sign_ins)
    .values(revoke_time=_now)
    .where(
        sign_ins.c.account_id == bindparam("account_id"),
        sign_ins.c.method == bindparam("method"),
        sign_ins.c.id != bindparam("keep"),
        _is_live,
    )
)
# Nothing that says who it was stays of a deleted account's; the row does, for every service has to learn of its end.
END_AND_FORGET: Final = (
    sa.update(sign_ins)
    .values(
        device_name=sa.literal_column("''"),
        ip=sa.literal_column("''"),
        user_agent=sa.literal_column("''"),
        network=sa.literal_column("''"),
        device_key=sa.literal_column("''"),
        revoke_time=sa.func.coalesce(sign_ins.c.revoke_time, _now),
    )
    .where(sign_ins.c.account_id == bindparam("account_id"))
)
_END_LEAST_USED: Final = (
    sa.update(sign_ins)
    .values(revoke_time=_now)
    .where(
        sign_ins.c.id.in_(
            sa.select(sign_ins.c.id)
            .where(sign_ins.c.account_id == bindparam("account_id"), _is_live, sign_ins.c.id != bindparam("newest"))
            .order_by(sign_ins.c.last_use_time.desc(), sign_ins.c.id)
            .offset(sa.literal_column(str(MAX_SIGN_INS - 1)))
        )
    )
    .returning(sign_ins.c.id)
)
_since: Final = bindparam("since", type_=time)
# What goes by the id of an account itself, and so ends with it, are the tokens of services that act for its user.
_REVOKED_SINCE: Final = sa.union_all(
    sa.select(sign_ins.c.id).where(sign_ins.c.revoke_time >= _since),
    sa.select(application_tokens.c.id).where(application_tokens.c.revoke_time >= _since),
    sa.select(accounts.c.id).where(accounts.c.delete_time >= _since),
)


_LIVES: Final = sa.union_all(
    sa.select(sign_ins.c.id).where(sign_ins.c.id == bindparam("id", type_=sa.Uuid), sign_ins.c.revoke_time.is_(None)),
    sa.select(application_tokens.c.id).where(
        application_tokens.c.id == bindparam("id", type_=sa.Uuid), application_tokens.c.revoke_time.is_(None)
    ),
)


async def write_sign_in(transaction: Transaction, sign_in: SignIn, password_hash: str | None = None) -> bool:
    """Adds a sign-in to what `transaction` does; False: its account is gone, or has another password or role.

    `password_hash` is that of the password that was shown; None: it is begun by something else. Of more live ones than
    an account may have the least recently used one ends.
    """
    if not await transaction.execute(_INSERT_SIGN_IN, **_values(sign_in), password_hash=password_hash):
        return False
    account_id, now = sign_in.account_id, sign_in.create_time
    for row in await transaction.all(_END_LEAST_USED, account_id=account_id, newest=sign_in.id, now=now):
        ended = SecurityEvent(
            kind=Kind.SIGNED_OUT,
            account_id=account_id,
            sign_in_id=row["id"],
            actor="system",
            detail={"scope": "least_used"},
        )
        await write_event(transaction, ended, now)
    return True


async def end_sign_ins(
    transaction: Transaction, account_id: UUID, sign_in_id: UUID, *, this: bool, others: bool, now: datetime
) -> int:
    """Adds to what `transaction` does that `sign_in_id`, the account's other live sign-ins, or both end; how many."""
    return await transaction.execute(
        _END, account_id=account_id, sign_in_id=sign_in_id, this=this, others=others, now=now
    )


async def end_sign_ins_by(transaction: Transaction, account_id: UUID, method: str, *, keep: UUID, now: datetime) -> int:
    """Adds to what `transaction` does that the account's sign-ins by `method` end, but for `keep`; how many."""
    return await transaction.execute(_END_BY, account_id=account_id, method=method, keep=keep, now=now)


class SignInStore:
    """Sign-ins in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, sign_in: SignIn, event: SecurityEvent, password_hash: str | None = None) -> None:
        """Stores a new sign-in; `password_hash` as in write_sign_in.

        Raises Failure(INVALID_CREDENTIALS) when the account was deleted, or got another password, meanwhile.
        """
        async with self._database.transaction() as transaction:
            if not await write_sign_in(transaction, sign_in, password_hash):
                raise Failure(Reason.INVALID_CREDENTIALS)
            await write_event(transaction, event, sign_in.create_time)

    async def rotate(
        self,
        sign_in_id: UUID,
        *,
        presented: bytes,
        tag: bytes,
        successor: bytes,
        sealed_successor: bytes,
        device: Device,
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
                ip=device.ip,
                user_agent=device.user_agent,
                network=device.network,
                device_key=device.key,
                now=now,
                expire_time=expire_time,
            )
        return Rotation(**row) if row else None

    async def end(
        self, account_id: UUID, sign_in_id: UUID, *, this: bool, others: bool, now: datetime, event: SecurityEvent
    ) -> int:
        """Ends `sign_in_id`, the account's other live sign-ins, or both; returns how many were ended."""
        async with self._database.transaction() as transaction:
            ended = await end_sign_ins(transaction, account_id, sign_in_id, this=this, others=others, now=now)
            if ended:
                await write_event(transaction, event, now)
        return ended

    async def lives(self, id: UUID) -> bool:
        """Whether there is a sign-in, or an application token, with this id that was not ended."""
        async with self._database.statements() as statements:
            return await statements.one(_LIVES, id=id) is not None

    async def revoked_since(self, since: datetime) -> list[UUID]:
        """Ids of the sign-ins, application tokens and accounts ended at or after `since`."""
        async with self._database.statements() as statements:
            return [row["id"] for row in await statements.all(_REVOKED_SINCE, since=since)]


def _values(sign_in: SignIn) -> dict[str, object]:
    return {
        "id": sign_in.id,
        "account_id": sign_in.account_id,
        "role": sign_in.role or None,
        "device_name": sign_in.device.name.strip(),
        "ip": sign_in.device.ip,
        "user_agent": sign_in.device.user_agent,
        "method": sign_in.method,
        "token_key": sign_in.token_key,
        "current_digest": sign_in.current_digest,
        "create_time": sign_in.create_time,
        "last_use_time": sign_in.create_time,
        "expire_time": sign_in.expire_time,
        "network": sign_in.device.network,
        "device_key": sign_in.device.key,
    }
