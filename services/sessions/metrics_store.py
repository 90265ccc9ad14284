"""Owns the query for measurements, which are records."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.sessions.records_domain import Record
from services.sessions.records_store import RECORD, record_of, records

_time: Final = sa.DateTime(timezone=True)
# Walks the index on (user_id, domain, happen_time, id) backwards between the bounds.
_PAGE: Final = (
    sa.select(*RECORD)
    .where(
        records.c.user_id == bindparam("user_id"),
        records.c.domain == sa.literal_column("'health_metric'"),
        records.c.deleted.is_(sa.false()),
        records.c.happen_time
        >= sa.func.coalesce(bindparam("start", type_=_time), sa.literal_column("'-infinity'::timestamptz")),
        records.c.happen_time
        < sa.func.coalesce(bindparam("end", type_=_time), sa.literal_column("'infinity'::timestamptz")),
        sa.or_(
            bindparam("type", type_=sa.Text).is_(None),
            records.c.data["type"].astext == bindparam("type", type_=sa.Text),
        ),
        sa.tuple_(records.c.happen_time, records.c.id)
        < sa.tuple_(
            sa.func.coalesce(bindparam("before_time", type_=_time), sa.literal_column("'infinity'::timestamptz")),
            sa.func.coalesce(bindparam("before_id", type_=sa.Text), sa.literal_column("''")),
        ),
    )
    .order_by(records.c.happen_time.desc(), records.c.id.desc())
    .limit(bindparam("limit", type_=sa.Integer))
)


class MetricStore:
    """Measurements in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self,
        user_id: UUID,
        *,
        limit: int,
        type: str | None,
        start: datetime | None,
        end: datetime | None,
        before: tuple[datetime, str] | None,
    ) -> list[Record]:
        """Live ones in `start` <= time < `end`, newest first, below `before` (the last one of a page)."""
        async with self._database.statements() as statements:
            rows = await statements.all(
                _PAGE,
                user_id=user_id,
                limit=limit,
                type=type,
                start=start,
                end=end,
                before_time=before[0] if before else None,
                before_id=before[1] if before else None,
            )
        return [record_of(row) for row in rows]
