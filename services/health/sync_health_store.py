"""Owns every query on what was counted by minute, hour and day."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from runtime.database import Database, Row
from services.health.counts import NAMES, Counts
from services.health.devices_store import SCORE
from services.health.outcomes_store import COUNTS, SUMS
from services.health.sync_health_domain import Step, SyncPoint
from services.health.sync_health_metrics import Figures

# Each minute is in exactly one of the three: by itself, or in an hour once it is old, or in a day once it is very old.
# Of an hour or a day in which the window starts, all counts.
_PARTS: Final = f"""
    SELECT time, domain, {COUNTS} FROM health.minutes WHERE tenant_id = %(tenant_id)b AND time >= %(since)b
    UNION ALL
    SELECT time, domain, {COUNTS} FROM health.hours
    WHERE tenant_id = %(tenant_id)b AND time >= date_trunc('hour', %(since)b::timestamptz)
    UNION ALL
    SELECT time, domain, {COUNTS} FROM health.days
    WHERE tenant_id = %(tenant_id)b AND time >= date_trunc('day', %(since)b::timestamptz)"""  # noqa: S608  # constants
_FIGURES: Final = f"""
    SELECT counted.*, active.*,
        (SELECT sum(outcomes)::int8 FROM health.drops WHERE time >= %(since)b) AS dropped
    FROM (SELECT {SUMS} FROM ({_PARTS}) AS parts) AS counted,
        (SELECT count(*) AS devices, avg({SCORE}) AS score FROM health.devices
            WHERE tenant_id = %(tenant_id)b AND last_sync_time >= %(since)b) AS active"""  # noqa: S608  # of constants
_POINTS: Final = f"""
    SELECT date_trunc(%(step)b::text, time) AS time, {SUMS} FROM ({_PARTS}) AS parts
    WHERE %(domain)b::text = '' OR domain = %(domain)b::text COLLATE "C"
    GROUP BY 1 ORDER BY 1"""  # noqa: S608  # of constants
_POINTS_OF_DEVICE: Final = f"""
    SELECT time, {COUNTS} FROM health.device_hours
    WHERE user_id = %(user_id)b AND device_id = %(device_id)b AND tenant_id = %(tenant_id)b AND time >= %(since)b
    ORDER BY time"""  # noqa: S608  # of constants


class SyncHealthStore:
    """Figures in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def figures(self, tenant_id: int, since: datetime, now: datetime) -> Figures:
        """What there is of a tenant since then, with the devices' scores as they are now."""
        (row,) = await self._rows(_FIGURES, tenant_id=tenant_id, since=since, now=now)
        return Figures(
            counts=counts_of(row), devices=row["devices"], score=row["score"], dropped=int(row["dropped"] or 0)
        )

    async def points(self, tenant_id: int, since: datetime, step: Step, domain: str) -> list[SyncPoint]:
        """What there is of a tenant since then, by minute, hour or day; `domain` empty: of all domains."""
        rows = await self._rows(_POINTS, tenant_id=tenant_id, since=since, step=step, domain=domain)
        return [SyncPoint(time=row["time"], counts=counts_of(row)) for row in rows]

    async def points_of_device(self, tenant_id: int, user_id: UUID, device_id: str, since: datetime) -> list[SyncPoint]:
        """What there is of a device since then, by hour."""
        values = {"tenant_id": tenant_id, "user_id": user_id, "device_id": device_id, "since": since}
        rows = await self._rows(_POINTS_OF_DEVICE, **values)
        return [SyncPoint(time=row["time"], counts=counts_of(row)) for row in rows]

    async def _rows(self, statement: str, **values: Any) -> list[Row]:
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(statement, values, prepare=True)
            return list(await cursor.fetchall())


def counts_of(row: Row) -> Counts:
    """The counts of a row; a sum of none is none."""
    return Counts(**{name: row[name] or 0 for name in NAMES})
