"""Owns the statements that make old counts coarser, and those that remove what is too old."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from runtime.database import Database
from services.health.outcomes_store import ADDED, COUNTS, SUMS

# One statement: what is taken away here is added there, or neither is. Rows that somebody else holds, be it a report
# that adds to them or another replica that moves them, are left to the next round.
_COMPACT: Final = """
    WITH old AS (
        SELECT ctid FROM health.{finer} WHERE time < %b ORDER BY time LIMIT %b FOR UPDATE SKIP LOCKED),
    moved AS (
        DELETE FROM health.{finer} WHERE ctid = ANY(ARRAY(SELECT ctid FROM old))
        RETURNING tenant_id, time, domain, {counts}),
    added AS (
        INSERT INTO health.{coarser} AS known (tenant_id, time, domain, {counts})
        SELECT tenant_id, date_trunc('{step}', time) AS start, domain, {sums} FROM moved
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (tenant_id, time, domain) DO UPDATE SET {added})
    SELECT count(*) AS moved FROM moved"""
_WORDS: Final = {"counts": COUNTS, "sums": SUMS, "added": ADDED}
_MINUTES_TO_HOURS: Final = _COMPACT.format(finer="minutes", coarser="hours", step="hour", **_WORDS)
_HOURS_TO_DAYS: Final = _COMPACT.format(finer="hours", coarser="days", step="day", **_WORDS)
_FORGET: Final = """
    DELETE FROM health.{table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM health.{table} WHERE {time} < %b LIMIT %b FOR UPDATE SKIP LOCKED))"""
_DAYS: Final = _FORGET.format(table="days", time="time")
_DEVICES: Final = _FORGET.format(table="devices", time="say_time")
_DEVICE_HOURS: Final = _FORGET.format(table="device_hours", time="time")
_REPORTERS: Final = _FORGET.format(table="reporters", time="report_time")
_DROPS: Final = _FORGET.format(table="drops", time="time")


class SweepStore:
    """Old rows in PostgreSQL; each call is one short statement on up to `limit` rows, and returns how many it found."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def minutes_to_hours(self, before: datetime, limit: int) -> int:
        """Adds minutes to their hours."""
        return await self._compact(_MINUTES_TO_HOURS, before, limit)

    async def hours_to_days(self, before: datetime, limit: int) -> int:
        """Adds hours to their days."""
        return await self._compact(_HOURS_TO_DAYS, before, limit)

    async def days(self, before: datetime, limit: int) -> int:
        """Forgets days."""
        return await self._forget(_DAYS, before, limit)

    async def devices(self, before: datetime, limit: int) -> int:
        """Forgets devices that have been silent."""
        return await self._forget(_DEVICES, before, limit)

    async def device_hours(self, before: datetime, limit: int) -> int:
        """Forgets hours of devices."""
        return await self._forget(_DEVICE_HOURS, before, limit)

    async def reporters(self, before: datetime, limit: int) -> int:
        """Forgets reporters that have been silent."""
        return await self._forget(_REPORTERS, before, limit)

    async def drops(self, before: datetime, limit: int) -> int:
        """Forgets what was dropped."""
        return await self._forget(_DROPS, before, limit)

    async def _compact(self, statement: str, before: datetime, limit: int) -> int:
        async with self._database.statements() as statements:
            row: Any = await (await statements.connection.execute(statement, [before, limit])).fetchone()
        return int(row["moved"])

    async def _forget(self, statement: str, before: datetime, limit: int) -> int:
        async with self._database.statements() as statements:
            return (await statements.connection.execute(statement, [before, limit])).rowcount
