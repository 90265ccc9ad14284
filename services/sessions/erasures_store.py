"""Owns the statements that erase what one user has."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from runtime.database import Database

_LOCK_FEED: Final = "SELECT position FROM sessions.feeds WHERE user_id = %b FOR UPDATE"
# Also for a user who has no feed yet: what is stored for him may still be under way.
_MARK: Final = """
    INSERT INTO sessions.feeds AS known (user_id, position, erase_time) VALUES (%b, 0, %b)
    ON CONFLICT (user_id) DO UPDATE SET erase_time = coalesce(known.erase_time, excluded.erase_time)"""
# Each takes the next position of the feed, as every other deletion does.
_END_RECORDS: Final = """
    UPDATE sessions.records SET
        version = version + 1, position = %b::int8 + place, deleted = true, data = '{}', size = 2,
        happen_time = NULL, change_time = %b::timestamptz, update_time = %b::timestamptz
    FROM (
        SELECT domain, id, row_number() OVER (ORDER BY position) AS place FROM (
            SELECT domain, id, position FROM sessions.records
            WHERE user_id = %b AND position > 0 AND NOT deleted ORDER BY position LIMIT %b) AS live) AS next
    WHERE user_id = %b AND records.domain = next.domain AND records.id = next.id"""
_ADVANCE_FEED: Final = "UPDATE sessions.feeds SET position = position + %b WHERE user_id = %b"
_FORGET: Final = """
    DELETE FROM sessions.{table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM sessions.{table} WHERE user_id = %b LIMIT %b))"""
_FORGET_CONFLICTS: Final = _FORGET.format(table="conflicts")
_FORGET_PUSH_COUNTS: Final = _FORGET.format(table="push_counts")
_FORGET_KEYS: Final = _FORGET.format(table="idempotency_keys")


_TOTALS: Final = """
    SELECT domain, count(*)::int4 AS total FROM sessions.records JOIN sessions.feeds USING (user_id)
    WHERE user_id = %b AND deleted AND update_time >= erase_time GROUP BY domain"""


class ErasureStore:
    """A user's rows in PostgreSQL; each call is one short transaction that holds the lock of the user's feed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self, user_id: UUID, now: datetime) -> None:
        """Notes that the user was erased, for those who would store something afterwards."""
        async with self._database.statements() as statements:
            await statements.connection.execute(_MARK, [user_id, now], prepare=True)

    async def records(self, user_id: UUID, limit: int, now: datetime) -> int:
        """Makes up to `limit` records tombstones without content; returns how many."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            cursor = await connection.execute(_LOCK_FEED, [user_id], prepare=True)
            feed = await cursor.fetchone()
            if feed is None:
                return 0
            values = [feed["position"], now, now, user_id, limit, user_id]
            ended = (await connection.execute(_END_RECORDS, values, prepare=True)).rowcount
            await connection.execute(_ADVANCE_FEED, [ended, user_id], prepare=True)
        return ended

    async def conflicts(self, user_id: UUID, limit: int) -> int:
        """Forgets up to `limit` logged conflicts; returns how many."""
        return await self._forget(_FORGET_CONFLICTS, user_id, limit)

    async def push_counts(self, user_id: UUID, limit: int) -> int:
        """Forgets up to `limit` counts of pushes; returns how many."""
        return await self._forget(_FORGET_PUSH_COUNTS, user_id, limit)

    async def idempotency_keys(self, user_id: UUID, limit: int) -> int:
        """Forgets up to `limit` idempotency keys with their answers; returns how many."""
        return await self._forget(_FORGET_KEYS, user_id, limit)

    async def totals(self, user_id: UUID) -> dict[str, int]:
        """How many records were ended by erasure, by their domain."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_TOTALS, [user_id], prepare=True)
            return {row["domain"]: row["total"] for row in await cursor.fetchall()}

    async def _forget(self, statement: str, user_id: UUID, limit: int) -> int:
        async with self._database.transaction() as transaction:
            # A push writes several of these rows; one after the other, neither waits for the other in a circle.
            await transaction.connection.execute(_LOCK_FEED, [user_id], prepare=True)
            return (await transaction.connection.execute(statement, [user_id, limit], prepare=True)).rowcount
