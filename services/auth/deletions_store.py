"""Owns the queries on receipts of deleted accounts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Transaction
from services.auth.deletions_domain import Deletion
from services.auth.tables import deletions, time

_INSERT: Final = sa.insert(deletions).values(
    account_id=bindparam("account_id"),
    receipt_digest=bindparam("receipt_digest"),
    delete_time=bindparam("delete_time"),
    merged=bindparam("merged"),
    removed=bindparam("removed"),
)
_FIND: Final = sa.select(deletions.c.delete_time, deletions.c.done_time, deletions.c.merged, deletions.c.removed).where(
    deletions.c.receipt_digest == bindparam("receipt_digest")
)
_NOTE: Final = (
    sa.update(deletions)
    .values(removed=deletions.c.removed.op("||")(bindparam("removed", type_=postgresql.JSONB)))
    .where(deletions.c.account_id == bindparam("id"))
)
_DONE: Final = (
    sa.update(deletions)
    .values(done_time=sa.func.coalesce(deletions.c.done_time, bindparam("now", type_=time)))
    .where(deletions.c.account_id == bindparam("id"))
)


async def write_deletion(
    transaction: Transaction,
    account_id: UUID,
    *,
    receipt_digest: bytes,
    delete_time: datetime,
    removed: Mapping[str, int],
    merged: bool,
) -> None:
    """Adds a deletion's receipt to what `transaction` does; `removed` are rows of the account by what they were."""
    await transaction.execute(
        _INSERT,
        account_id=account_id,
        receipt_digest=receipt_digest,
        delete_time=delete_time,
        removed={"account": dict(removed)},
        merged=merged,
    )


class DeletionStore:
    """Receipts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, receipt_digest: bytes) -> Deletion | None:
        """The receipt with this digest of its name."""
        async with self._database.statements() as statements:
            row = await statements.one(_FIND, receipt_digest=receipt_digest)
        return Deletion(**row) if row else None

    async def note(self, account_id: UUID, removed: Mapping[str, Any]) -> None:
        """Notes what a service has removed in all until now, in place of what it said before."""
        async with self._database.statements() as statements:
            await statements.execute(_NOTE, id=account_id, removed=dict(removed))

    async def done(self, account_id: UUID, now: datetime) -> None:
        """Notes that every service has removed what it had; the first time counts."""
        async with self._database.statements() as statements:
            await statements.execute(_DONE, id=account_id, now=now)
