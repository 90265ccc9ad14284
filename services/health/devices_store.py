"""Owns every query on devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from runtime.database import Database, Row
from services.health.counts import NAMES, Counts
from services.health.devices_domain import Device, Devices, Order, Place, VersionCount
from services.health.outcomes_domain import Said
from services.health.outcomes_store import COUNTS, ERASING
from services.health.sync_health_metrics import CONFLICT_POINTS, OUTCOME_POINTS, PERFECT, RECENCY_HOURS, RECENCY_POINTS

# sync_health_metrics.device_score of a row, as of %(now).
SCORE: Final = f"""
    CASE WHEN syncs = 0 OR last_sync_time IS NULL THEN {PERFECT}::float8 ELSE
        (syncs - failed_syncs) * {OUTCOME_POINTS}::float8 / syncs
        + greatest(0, {RECENCY_POINTS}::float8
            - greatest(0, date_part('epoch', %(now)b::timestamptz - last_sync_time))
                / 3600 / {RECENCY_HOURS}::float8 * {RECENCY_POINTS}::float8)
        + greatest(0, {CONFLICT_POINTS}::float8 - conflicts * {CONFLICT_POINTS}::float8 / syncs)
    END"""
_SAID: Final = "platform, network_type, app_version, os_version, clock_skew_us"
_DEVICE: Final = f"user_id, device_id, {COUNTS}, last_sync_time, {_SAID}"
_FIND: Final = f"""
    SELECT {_DEVICE} FROM health.devices
    WHERE tenant_id = %(tenant_id)b AND device_id = %(device_id)b
        AND (%(user_id)b::uuid IS NULL OR user_id = %(user_id)b)
    ORDER BY last_sync_time DESC NULLS LAST, user_id LIMIT 1"""  # noqa: S608  # of constants
_LIST: Final = f"""
    SELECT {_DEVICE}, score FROM (
        SELECT {_DEVICE}, {SCORE} AS score, coalesce(last_sync_time, '-infinity') AS latest FROM health.devices
        WHERE tenant_id = %(tenant_id)b
            AND (%(app_version)b::text = '' OR app_version = %(app_version)b::text COLLATE "C")) AS scored
    WHERE %(first)b OR {{behind}}
    ORDER BY {{order}} LIMIT %(limit)b"""  # noqa: S608  # of constants
# By what each order goes, and what is behind a place; ties by their ids, so that no page repeats what another has.
_ORDERS: Final[dict[Order, tuple[str, str]]] = {
    "score": (
        "score, user_id, device_id",
        "(score, user_id, device_id) > (%(score)b::float8, %(user_id)b::uuid, %(device_id)b::text)",
    ),
    "last_sync_at": (
        "latest DESC, user_id, device_id",
        """latest < coalesce(%(latest)b::timestamptz, '-infinity')
            OR (latest = coalesce(%(latest)b::timestamptz, '-infinity')
                AND (user_id, device_id) > (%(user_id)b::uuid, %(device_id)b::text))""",
    ),
    "device_id": (
        "device_id, user_id",
        "(device_id, user_id) > (%(device_id)b::text, %(user_id)b::uuid)",
    ),
}
_LISTS: Final = {order: _LIST.format(behind=f"({behind})", order=by) for order, (by, behind) in _ORDERS.items()}
_VERSIONS: Final = """
    SELECT coalesce(platform, '') AS platform, coalesce(app_version, '') AS app_version, count(*)::int4 AS devices,
        (sum(count(*)) OVER ())::int4 AS total
    FROM health.devices WHERE tenant_id = %(tenant_id)b
    GROUP BY 1, 2 ORDER BY devices DESC, platform, app_version LIMIT %(limit)b"""
# Reports that are under way end first: see _SHARE of outcomes_store.
_ALONE: Final = f"SELECT pg_advisory_xact_lock({ERASING})"
# Whose last report comes late is not to come back by it.
_MARK: Final = """
    INSERT INTO health.erased (user_id, devices) VALUES (%(user_id)b, 0) ON CONFLICT (user_id) DO NOTHING"""
_FORGET: Final = "DELETE FROM health.devices WHERE user_id = %(user_id)b"
_FORGET_HOURS: Final = "DELETE FROM health.device_hours WHERE user_id = %(user_id)b"
_COUNT_ERASED: Final = """
    UPDATE health.erased SET devices = devices + %(devices)b WHERE user_id = %(user_id)b RETURNING devices"""


class DeviceStore:
    """Devices in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant_id: int, device_id: str, user_id: UUID | None) -> Device | None:
        """The device of this id that synced last, of `user_id`; None: of anybody in the tenant."""
        rows = await self._rows(_FIND, tenant_id=tenant_id, device_id=device_id, user_id=user_id)
        return _device(rows[0]) if rows else None

    async def page(
        self, tenant_id: int, order: Order, app_version: str, limit: int, place: Place, *, first: bool
    ) -> list[tuple[Device, float]]:
        """Devices behind `place`, or `first` ones, each with its score at the place's time."""
        rows = await self._rows(
            _LISTS[order],
            tenant_id=tenant_id,
            app_version=app_version,
            limit=limit,
            first=first,
            now=place.as_of,
            score=place.score,
            latest=place.last_sync_time,
            user_id=place.user_id,
            device_id=place.device_id,
        )
        return [(_device(row), row["score"]) for row in rows]

    async def versions(self, tenant_id: int, limit: int) -> Devices:
        """How many devices the tenant has, and up to `limit` versions of theirs."""
        rows = await self._rows(_VERSIONS, tenant_id=tenant_id, limit=limit)
        versions = [
            VersionCount(platform=row["platform"], app_version=row["app_version"], devices=row["devices"])
            for row in rows
        ]
        return Devices(total=rows[0]["total"] if rows else 0, versions=versions)

    async def erase(self, user_id: UUID) -> tuple[int, int]:
        """Forgets the devices of a user; returns how many now, and in all."""
        values = {"user_id": user_id}
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            await connection.execute(_ALONE)
            await connection.execute(_MARK, values)
            forgotten = (await connection.execute(_FORGET, values)).rowcount
            await connection.execute(_FORGET_HOURS, values)
            row = await (await connection.execute(_COUNT_ERASED, {**values, "devices": forgotten})).fetchone()
        return forgotten, row["devices"] if row else forgotten

    async def _rows(self, statement: str, **values: Any) -> Sequence[Row]:
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(statement, values, prepare=True)
            return await cursor.fetchall()


def _device(row: Row) -> Device:
    return Device(
        user_id=row["user_id"],
        device_id=row["device_id"],
        counts=Counts(**{name: row[name] for name in NAMES}),
        last_sync_time=row["last_sync_time"],
        said=Said(**{name: row[name] for name in _SAID.split(", ")}),
    )
