"""Owns what of an account's rows an export shows; never a secret, nor what stands for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database, Row
from services.auth.tables import security_events, sign_ins


def _shown(table: sa.Table, *names: str) -> sa.Select[Any]:
    """The account's rows of a table behind one of them, page by page, in the order of its id."""
    after = bindparam("after", type_=table.c.id.type)
    return (
        sa.select(*(table.c[name] for name in names))
        .where(table.c.account_id == bindparam("account_id"), sa.or_(after.is_(None), table.c.id > after))
        .order_by(table.c.id)
        .limit(bindparam("limit", type_=sa.Integer))
    )


# By the type of their lines. A table with an account_id is one more line here, with the columns that may be shown.
_SHOWN: Final[Mapping[str, sa.Select[Any]]] = {
    "sign_in": _shown(
        sign_ins,
        *("id", "device_name", "ip", "user_agent", "method", "create_time", "last_use_time", "expire_time"),
        "revoke_time",
    ),
    "security_event": _shown(
        security_events, "id", "time", "kind", "sign_in_id", "actor", "ip", "user_agent", "detail"
    ),
}


class ExportStore:
    """What is shown of accounts in PostgreSQL."""

    types: Final = tuple(_SHOWN)

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, type: str, account_id: UUID, after: Any, limit: int) -> Sequence[Row]:
        """The next rows of a type behind the one whose id is `after`; None: from the beginning."""
        async with self._database.statements() as statements:
            return await statements.all(_SHOWN[type], account_id=account_id, after=after, limit=limit)
