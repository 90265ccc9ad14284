"""Owns the queries that put the keys of sealed rows under another key of the vault."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.auth.tables import garmin_credentials, second_factors
from services.auth.vault import SealedRow

# Each has account_id, key_id and sealed_key, and whatever is sealed besides.
SEALED: Final = {table.name: table for table in (garmin_credentials, second_factors)}


class RewrapStore:
    """The keys of one table's rows, in PostgreSQL; what they seal is not looked at."""

    def __init__(self, database: Database, table: str) -> None:
        """`table` is one of SEALED."""
        self._database = database
        columns = SEALED[table].c
        self._under_other_keys = (
            sa.select(columns.account_id, columns.key_id, columns.sealed_key)
            .where(columns.key_id != bindparam("key_id"), columns.account_id > bindparam("after", type_=sa.Uuid))
            .order_by(columns.account_id)
            .limit(bindparam("limit", type_=sa.Integer))
        )
        # Only the row that was read: whoever wrote it since has sealed it anew.
        self._rewrap = (
            sa.update(SEALED[table])
            .values(key_id=bindparam("key_id"), sealed_key=bindparam("sealed_key"))
            .where(
                columns.account_id == bindparam("owner", type_=sa.Uuid),
                columns.sealed_key == bindparam("was", type_=sa.LargeBinary),
            )
        )

    async def under_other_keys(self, key_id: str, after: UUID, limit: int) -> list[tuple[UUID, SealedRow]]:
        """Rows that are not under `key_id`, without what they seal, in the order of their accounts from after one."""
        async with self._database.statements() as statements:
            rows = await statements.all(self._under_other_keys, key_id=key_id, after=after, limit=limit)
        return [
            (row["account_id"], SealedRow(key_id=row["key_id"], sealed_key=row["sealed_key"], columns={}))
            for row in rows
        ]

    async def rewrap(self, account_id: UUID, was: bytes, row: SealedRow) -> int:
        """Puts a row under another key; 0: its key is no longer the one that `was` there."""
        async with self._database.statements() as statements:
            return await statements.execute(
                self._rewrap, owner=account_id, was=was, key_id=row.key_id, sealed_key=row.sealed_key
            )
