"""Owns the list of merges, and what begins and ends one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row, Transaction
from runtime.errors import Failure, Reason
from services.auth.accounts_store import delete_account, list_erasure
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.merges_domain import Merge, Standing
from services.auth.tables import accounts, merges, sign_ins, time

_now: Final = bindparam("now", type_=time)
_SIGN_IN: Final = sa.select(
    sign_ins.c.account_id, sign_ins.c.token_key, sign_ins.c.current_digest, sign_ins.c.previous_digest
).where(sign_ins.c.id == bindparam("id"))
# Always in the same order: two merges of the same two wait for each other, and not in a circle.
_LOCK: Final = (
    sa.select(accounts.c.id, accounts.c.tenant_id, accounts.c.is_guest, accounts.c.delete_time)
    .where(accounts.c.id == sa.any_(bindparam("ids", type_=postgresql.ARRAY(sa.Uuid))))
    .order_by(accounts.c.id)
    .with_for_update()
)
_KNOWN: Final = sa.select(merges.c.account_id, merges.c.done_time).where(merges.c.guest_id == bindparam("guest_id"))
_LIVE: Final = sa.select(sign_ins.c.expire_time, sign_ins.c.revoke_time).where(
    sign_ins.c.id == bindparam("id"), sign_ins.c.account_id == bindparam("guest_id")
)
_INSERT: Final = sa.insert(merges).values(
    guest_id=bindparam("guest_id"),
    account_id=bindparam("account_id"),
    tenant_id=bindparam("tenant_id"),
    create_time=_now,
    due_time=_now,
    attempts=sa.literal_column("0"),
)
_DUE: Final = (
    sa.select(merges.c.guest_id)
    .where(merges.c.due_time <= _now, merges.c.done_time.is_(None))
    .order_by(merges.c.due_time)
    .limit(1)
    .with_for_update(skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_TAKE: Final = (
    sa.update(merges)
    .values(due_time=bindparam("until", type_=time))
    .where(merges.c.guest_id == _DUE)
    .returning(
        merges.c.guest_id,
        merges.c.account_id,
        merges.c.tenant_id,
        merges.c.attempts,
        sa.exists()
        .where(accounts.c.id == merges.c.account_id, accounts.c.delete_time.is_not(None))
        .label("account_ended"),
    )
)
_PUT_OFF: Final = (
    sa.update(merges)
    .values(due_time=bindparam("until", type_=time), attempts=bindparam("attempts"))
    .where(merges.c.guest_id == bindparam("id"))
)
_FINISH: Final = (
    sa.update(merges).values(done_time=_now).where(merges.c.guest_id == bindparam("id"), merges.c.done_time.is_(None))
)


class MergeStore:
    """Merges in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_in(self, id: UUID) -> Standing | None:
        """A sign-in, ended or not; None when there never was one."""
        async with self._database.statements() as statements:
            row = await statements.one(_SIGN_IN, id=id)
        return Standing(**row) if row else None

    async def begin(
        self,
        guest_id: UUID,
        account_id: UUID,
        sign_in_id: UUID,
        *,
        now: datetime,
        receipt_digest: bytes,
        events: tuple[SecurityEvent, SecurityEvent],
    ) -> bool:
        """Ends the guest here and lists what is to be done elsewhere; whether that was done before.

        Raises Failure: NOT_A_GUEST, FORBIDDEN, INVALID_TOKEN, TOKEN_REVOKED, TOKEN_EXPIRED.
        """
        async with self._database.transaction() as transaction:
            locked = {row["id"]: row for row in await transaction.all(_LOCK, ids=[guest_id, account_id])}
            known = await transaction.one(_KNOWN, guest_id=guest_id)
            if known is not None:
                if known["account_id"] != account_id:
                    raise Failure(Reason.NOT_A_GUEST)
                return known["done_time"] is not None
            guest, account = _two(locked, guest_id, account_id)
            _check(guest, account)
            await _check_live(transaction, guest_id, sign_in_id, now)
            ended, merged = events
            await delete_account(transaction, guest_id, now, receipt_digest, ended, merged=True)
            values = {"guest_id": guest_id, "account_id": account_id, "tenant_id": account["tenant_id"]}
            await transaction.execute(_INSERT, **values, now=now)
            await write_event(transaction, merged, now)
        return False

    async def take(self, now: datetime, claim: timedelta) -> Merge | None:
        """One that is due, which is nobody else's for as long as `claim`; None: nothing is."""
        async with self._database.statements() as statements:
            row = await statements.one(_TAKE, now=now, until=now + claim)
        return Merge(**row) if row else None

    async def put_off(self, guest_id: UUID, until: datetime, *, attempts: int) -> None:
        """Leaves one to a later time, after so many attempts that failed."""
        async with self._database.statements() as statements:
            await statements.execute(_PUT_OFF, id=guest_id, until=until, attempts=attempts)

    async def finish(self, guest_id: UUID, now: datetime) -> None:
        """Notes that a merge is done, and lists the erasure of the guest; the first time counts."""
        async with self._database.transaction() as transaction:
            if await transaction.execute(_FINISH, id=guest_id, now=now):
                await list_erasure(transaction, guest_id, now)


def _two(locked: dict[UUID, Row], guest_id: UUID, account_id: UUID) -> tuple[Row, Row]:
    guest, account = locked.get(guest_id), locked.get(account_id)
    if guest is None or account is None:
        raise Failure(Reason.INVALID_TOKEN)
    return guest, account


def _check(guest: Row, account: Row) -> None:
    if guest["delete_time"] is not None or account["delete_time"] is not None:
        raise Failure(Reason.TOKEN_REVOKED)
    if not guest["is_guest"]:
        raise Failure(Reason.NOT_A_GUEST)
    if account["is_guest"]:
        raise Failure(Reason.FORBIDDEN, "A guest signs up first.")
    if guest["tenant_id"] != account["tenant_id"]:
        raise Failure(Reason.FORBIDDEN, "The guest is of another tenant.")


async def _check_live(transaction: Transaction, guest_id: UUID, sign_in_id: UUID, now: datetime) -> None:
    row = await transaction.one(_LIVE, id=sign_in_id, guest_id=guest_id)
    if row is None:
        raise Failure(Reason.INVALID_TOKEN)
    if row["revoke_time"] is not None:
        raise Failure(Reason.TOKEN_REVOKED)
    if row["expire_time"] <= now:
        raise Failure(Reason.TOKEN_EXPIRED)
