"""Owns the queries on uploads that are on their way, whoever's they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from runtime.database import Database, Row
from services.uploads.active_domain import ActiveUpload
from services.uploads.uploads_domain import Progress
from services.uploads.uploads_store import UPLOAD, upload_of

# By the partial index on what is on its way, which holds little however many files there are.
_ACTIVE: Final = """
    tenant_id = %b AND status IN ('active', 'assembling') AND (status = 'assembling' OR expire_time > %b)"""
_PAGE: Final = f"""
    SELECT {UPLOAD}, (SELECT count(*) FROM uploads.chunks WHERE upload_id = uploads.id AND stored) AS stored
    FROM uploads.uploads
    WHERE {_ACTIVE} AND (create_time, id) < (coalesce(%b, 'infinity'::timestamptz), coalesce(%b, id))
    ORDER BY create_time DESC, id DESC LIMIT %b"""  # noqa: S608  # of constants
_TOTAL: Final = f"SELECT count(*) AS total FROM uploads.uploads WHERE {_ACTIVE}"  # noqa: S608  # of constants


class ActiveUploadStore:
    """Uploads on their way, in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, tenant_id: int, now: datetime, limit: int, before: tuple[datetime, UUID] | None
    ) -> tuple[Sequence[ActiveUpload], int]:
        """Those of a tenant that are alive, newest first, below `before`; and how many in all."""
        time, id = before or (None, None)
        async with self._database.statements() as statements:
            connection = statements.connection
            async with connection.pipeline():
                found = await connection.execute(_PAGE, [tenant_id, now, time, id, limit], prepare=True)
                counted = await connection.execute(_TOTAL, [tenant_id, now], prepare=True)
            rows, row = await found.fetchall(), await counted.fetchone()
        return [_active(one) for one in rows], int(row["total"]) if row else 0


def _active(row: Row) -> ActiveUpload:
    upload = upload_of({name: value for name, value in row.items() if name != "stored"})
    return ActiveUpload(upload=upload, progress=Progress(stored=row["stored"], chunks=upload.chunks))
