"""Owns the list of erasures to be carried out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.auth.erasures_domain import Erasure
from services.auth.tables import erasures

_DUE: Final = (
    sa.select(erasures.c.account_id)
    .where(erasures.c.due_time <= bindparam("now", type_=sa.DateTime(timezone=True)))
    .order_by(erasures.c.due_time)
    .limit(1)
    .with_for_update(skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_TAKE: Final = (
    sa.update(erasures)
    .values(due_time=bindparam("until"))
    .where(erasures.c.account_id == _DUE)
    .returning(erasures.c.account_id, erasures.c.delete_time, erasures.c.attempts)
)
_PUT_OFF: Final = (
    sa.update(erasures)
    .values(due_time=bindparam("until"), attempts=bindparam("attempts"))
    .where(erasures.c.account_id == bindparam("id"))
)
_FINISH: Final = sa.delete(erasures).where(erasures.c.account_id == bindparam("id"))


class ErasureStore:
    """The list in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, now: datetime, claim: timedelta) -> Erasure | None:
        """One that is due, which is nobody else's for as long as `claim`; None: nothing is."""
        async with self._database.statements() as statements:
            row = await statements.one(_TAKE, now=now, until=now + claim)
        return Erasure(**row) if row else None

    async def put_off(self, account_id: UUID, until: datetime, *, attempts: int) -> None:
        """Leaves one to a later time, after so many attempts that failed."""
        async with self._database.statements() as statements:
            await statements.execute(_PUT_OFF, id=account_id, until=until, attempts=attempts)

    async def finish(self, account_id: UUID) -> None:
        """Strikes one off."""
        async with self._database.statements() as statements:
            await statements.execute(_FINISH, id=account_id)
