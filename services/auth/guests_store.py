"""Owns the queries on guests."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.auth.accounts_store import delete_account
from services.auth.events_domain import SecurityEvent
from services.auth.tables import accounts, sign_ins, time

_before: Final = bindparam("before", type_=time)
_is_guest: Final = sa.and_(accounts.c.is_guest, accounts.c.delete_time.is_(None))
_IDLE: Final = (
    sa.select(accounts.c.id)
    .where(
        _is_guest,
        accounts.c.create_time < _before,
        ~sa.exists().where(sign_ins.c.account_id == accounts.c.id, sign_ins.c.last_use_time >= _before),
    )
    .order_by(accounts.c.create_time)
    .limit(bindparam("limit", type_=sa.Integer))
)
_LOCK: Final = (
    sa.select(accounts.c.id).where(accounts.c.id == bindparam("id"), _is_guest).with_for_update(skip_locked=True)
)
# Locked: who comes back at this moment has come before, or comes too late.
_USES: Final = sa.select(sign_ins.c.last_use_time).where(sign_ins.c.account_id == bindparam("id")).with_for_update()


class GuestStore:
    """Guests in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def idle(self, before: datetime, limit: int) -> list[UUID]:
        """Up to `limit` guests who have not been back since then."""
        async with self._database.statements() as statements:
            return [row["id"] for row in await statements.all(_IDLE, before=before, limit=limit)]

    async def delete_idle(
        self, guest_id: UUID, before: datetime, now: datetime, receipt_digest: bytes, event: SecurityEvent
    ) -> bool:
        """Deletes a guest unless it has been back since then, or is no guest any more; whether it was."""
        async with self._database.transaction() as transaction:
            if await transaction.one(_LOCK, id=guest_id) is None:
                return False
            if any(row["last_use_time"] >= before for row in await transaction.all(_USES, id=guest_id)):
                return False
            return await delete_account(transaction, guest_id, now, receipt_digest, event)
