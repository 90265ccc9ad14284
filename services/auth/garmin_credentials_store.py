"""Owns the queries on Garmin credentials, which it only ever sees sealed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row, Transaction
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.garmin_credentials_domain import MAX_CHARS, StoredCredentials
from services.auth.locks_store import hold_account
from services.auth.tables import garmin_credentials as table
from services.auth.vault import SealedRow

_SEALED: Final = tuple(MAX_CHARS)
_is_of_account: Final = table.c.account_id == bindparam("account_id", type_=sa.Uuid)

_INSERT: Final = (
    postgresql.insert(table)
    .values({column.name: bindparam(column.name) for column in table.c})
    .on_conflict_do_nothing(index_elements=["account_id"])
)
_GET: Final = sa.select(*table.c).where(_is_of_account)
_GET_TO_CHANGE: Final = _GET.with_for_update()
_UPDATE: Final = (
    sa.update(table)
    .values({column.name: bindparam(column.name) for column in table.c if column.name != "account_id"})
    .where(_is_of_account)
)
_DELETE: Final = sa.delete(table).where(_is_of_account)


async def forget_garmin_credentials(transaction: Transaction, account_id: UUID) -> int:
    """Adds to what `transaction` does that an account's credentials are gone; how many there were."""
    return await transaction.execute(_DELETE, account_id=account_id)


class GarminCredentialStore:
    """Garmin credentials in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: StoredCredentials, event: SecurityEvent) -> StoredCredentials | None:
        """Stores an account's first credentials; returns those that it has then, None when there is no such account."""
        async with self._database.transaction() as transaction:
            if not await hold_account(transaction, new.account_id):
                return None
            if await transaction.execute(_INSERT, **_values(new)):
                await write_event(transaction, event, new.create_time)
            row = await transaction.one(_GET, account_id=new.account_id)
        return _stored(row) if row else None

    async def get(self, account_id: UUID) -> StoredCredentials | None:
        """An account's credentials; None: it has none."""
        async with self._database.statements() as statements:
            row = await statements.one(_GET, account_id=account_id)
        return _stored(row) if row else None

    async def update(
        self,
        account_id: UUID,
        change: Callable[[StoredCredentials], tuple[StoredCredentials, SecurityEvent | None]],
        now: datetime,
    ) -> StoredCredentials | None:
        """Changes an account's credentials, one writer after the other; None: it has none."""
        async with self._database.transaction() as transaction:
            row = await transaction.one(_GET_TO_CHANGE, account_id=account_id)
            if row is None:
                return None
            changed, event = change(_stored(row))
            await transaction.execute(_UPDATE, **_values(changed))
            if event is not None:
                await write_event(transaction, event, now)
        return changed

    async def delete(self, account_id: UUID, event: SecurityEvent, now: datetime) -> None:
        """Deletes an account's credentials, if it has any."""
        async with self._database.transaction() as transaction:
            if await forget_garmin_credentials(transaction, account_id):
                await write_event(transaction, event, now)


def _stored(row: Row) -> StoredCredentials:
    return StoredCredentials(
        account_id=row["account_id"],
        row=SealedRow(
            key_id=row["key_id"],
            sealed_key=row["sealed_key"],
            columns={name: row[name] for name in _SEALED if row[name] is not None},
        ),
        expire_time=row["token_expiration_date"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _values(stored: StoredCredentials) -> dict[str, object]:
    return {
        "account_id": stored.account_id,
        "key_id": stored.row.key_id,
        "sealed_key": stored.row.sealed_key,
        **{name: stored.row.columns.get(name) for name in _SEALED},
        "token_expiration_date": stored.expire_time,
        "create_time": stored.create_time,
        "update_time": stored.update_time,
    }
