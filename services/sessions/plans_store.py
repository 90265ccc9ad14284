"""Owns the query for training plans across users; plans themselves are records."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.sessions.records_store import records

# The partial index on the ids of plans serves it only while the domain is a constant.
_EXISTS: Final = (
    sa.select(sa.literal(1))
    .where(
        records.c.domain == sa.literal_column("'workout_plan'"),
        records.c.id == bindparam("id"),
        records.c.deleted.is_(sa.false()),
    )
    .limit(1)
)


class PlanStore:
    """Training plans in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def exists(self, id: str) -> bool:
        """Whether anybody has a plan with this id."""
        async with self._database.statements() as statements:
            return await statements.one(_EXISTS, id=id) is not None
