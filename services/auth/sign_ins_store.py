"""Owns the queries on sign-ins."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database, Transaction
from runtime.errors import Failure, Reason
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.sign_ins_domain import Rotation, SignIn
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
)
# Under a lock on the account: who deletes it finds this sign-in and ends it, or has been faster, and there is none.
_INSERT_SIGN_IN: Final = sa.insert(sign_ins).from_select(
    _NEW_SIGN_IN,
    sa.select(*(bindparam(name, type_=sign_ins.c[name].type) for name in _NEW_SIGN_IN))
    .select_from(accounts)
    .where(
        accounts.c.id == bindparam("account_id", type_=sa.Uuid),
        accounts.c.delete_time.is_(None),
        accounts.c.role == sa.func.coalesce(bindparam("role", type_=sa.Text), accounts.c.role),
    )
    .with_for_update(read=True),
)

_now: Final = bindparam("now", type_=time)
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
# Nothing that says who it was stays of a deleted account's; the row does, for every service has to learn of its end.
_END_AND_FORGET: Final = (
    sa.update(sign_ins)
    .values(
        device_name=sa.literal_column("''"),
        ip=sa.literal_column("''"),
        user_agent=sa.literal_column("''"),
        revoke_time=sa.func.coalesce(sign_ins.c.revoke_time, _now),
    )
    .where(sign_ins.c.account_id == bindparam("account_id"))
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


async def write_sign_in(transaction: Transaction, sign_in: SignIn) -> bool:
    """Adds a sign-in to what `transaction` does; False: its account is gone, or has another role."""
    return await transaction.execute(_INSERT_SIGN_IN, **_values(sign_in)) > 0


async def end_sign_ins(
    transaction: Transaction, account_id: UUID, sign_in_id: UUID, *, this: bool, others: bool, now: datetime
) -> int:
    """Adds to what `transaction` does that `sign_in_id`, the account's other live sign-ins, or both end; how many."""
    return await transaction.execute(
        _END, account_id=account_id, sign_in_id=sign_in_id, this=this, others=others, now=now
    )


async def end_and_forget_sign_ins(transaction: Transaction, account_id: UUID, now: datetime) -> None:
    """Adds to what `transaction` does that all the account's sign-ins end, and no longer say from where they were."""
    await transaction.execute(_END_AND_FORGET, account_id=account_id, now=now)


class SignInStore:
    """Sign-ins in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, sign_in: SignIn, event: SecurityEvent) -> None:
        """Stores a new sign-in. Raises Failure(INVALID_CREDENTIALS) when the account has been deleted meanwhile."""
        async with self._database.transaction() as transaction:
            if not await write_sign_in(transaction, sign_in):
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
    }
