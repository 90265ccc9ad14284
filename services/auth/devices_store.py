"""Owns the queries on sign-ins that their owner makes."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.auth.devices_domain import SignedInDevice
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.sign_ins_store import end_sign_ins
from services.auth.tables import sign_ins, time

_DEVICE: Final = tuple(
    sign_ins.c[name]
    for name in (
        "id",
        "device_name",
        "method",
        "ip",
        "user_agent",
        "create_time",
        "last_use_time",
        "expire_time",
    )
)
_LIVE: Final = (
    sa.select(*_DEVICE)
    .where(
        sign_ins.c.account_id == bindparam("account_id"),
        sign_ins.c.revoke_time.is_(None),
        sign_ins.c.expire_time > bindparam("now", type_=time),
    )
    .order_by(sign_ins.c.last_use_time.desc(), sign_ins.c.id.desc())
    .limit(bindparam("limit", type_=sa.Integer))
)
_LIVE_AFTER: Final = _LIVE.where(
    sa.tuple_(sign_ins.c.last_use_time, sign_ins.c.id)
    < sa.tuple_(bindparam("last_use_time", type_=time), bindparam("id", type_=sa.Uuid))
)
_EXISTS: Final = sa.select(sign_ins.c.id).where(
    sign_ins.c.id == bindparam("id"), sign_ins.c.account_id == bindparam("account_id")
)


class DeviceStore:
    """The devices of accounts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, account_id: UUID, *, limit: int, after: tuple[datetime, UUID] | None, now: datetime
    ) -> list[SignedInDevice]:
        """Up to `limit` live sign-ins, the one that was used last first, behind the one at `after`."""
        async with self._database.statements() as statements:
            if after is None:
                rows = await statements.all(_LIVE, account_id=account_id, now=now, limit=limit)
            else:
                rows = await statements.all(
                    _LIVE_AFTER, account_id=account_id, now=now, limit=limit, last_use_time=after[0], id=after[1]
                )
        return [SignedInDevice(**row) for row in rows]

    async def end(self, account_id: UUID, sign_in_id: UUID, now: datetime, event: SecurityEvent) -> bool | None:
        """Ends one of the account's sign-ins; False: it had ended before; None: the account has none such."""
        async with self._database.transaction() as transaction:
            if await transaction.one(_EXISTS, id=sign_in_id, account_id=account_id) is None:
                return None
            ended = await end_sign_ins(transaction, account_id, sign_in_id, this=True, others=False, now=now)
            if ended:
                await write_event(transaction, event, now)
        return ended > 0
