"""Owns the statements that remove what has grown too old."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from runtime.database import Database

# In the order of the index on the age of tombstones.
_OLD_TOMBSTONES: Final = """
    SELECT user_id, domain, id FROM sessions.records
    WHERE deleted AND update_time < %b AND user_id <> ALL(%b::uuid[]) ORDER BY update_time LIMIT %b"""
# Whoever writes to a feed holds its lock: a sweep takes what is free, and waits for nobody.
_HOLD_FEEDS: Final = """
    SELECT user_id FROM sessions.feeds WHERE user_id = ANY(%b::uuid[]) FOR UPDATE SKIP LOCKED"""
# Looked at again, now that nobody else can write: since it was found a record may have come back to life.
_FORGET_TOMBSTONES: Final = """
    WITH gone AS (
        DELETE FROM sessions.records
        USING unnest(%b::uuid[], %b::text[], %b::text[]) AS old (user_id, domain, id)
        WHERE records.user_id = old.user_id AND records.domain = old.domain AND records.id = old.id
            AND records.user_id = ANY(%b::uuid[]) AND deleted AND update_time < %b
        RETURNING records.user_id, position),
    raised AS (
        UPDATE sessions.feeds SET horizon = greatest(horizon, furthest)
        FROM (SELECT user_id, max(position) AS furthest FROM gone GROUP BY user_id) AS swept
        WHERE feeds.user_id = swept.user_id)
    SELECT count(*) AS swept FROM gone"""
# An array, so that the rows are chosen and locked once; SKIP LOCKED, so that each is swept by one replica.
_FORGET_CONFLICTS: Final = """
    DELETE FROM sessions.conflicts WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM sessions.conflicts WHERE create_time < %b
        ORDER BY create_time LIMIT %b FOR UPDATE SKIP LOCKED))"""
_FORGET_KEYS: Final = """
    DELETE FROM sessions.idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM sessions.idempotency_keys WHERE create_time < %b
        ORDER BY create_time LIMIT %b FOR UPDATE SKIP LOCKED))"""
# Tenant by tenant, each found behind the last one, since the index on their age begins with the tenant.
_FORGET_PUSH_COUNTS: Final = """
    WITH RECURSIVE tenants AS (
        SELECT min(tenant_id) AS tenant_id FROM sessions.push_counts
        UNION ALL
        SELECT (SELECT min(tenant_id) FROM sessions.push_counts WHERE tenant_id > tenants.tenant_id)
        FROM tenants WHERE tenant_id IS NOT NULL)
    DELETE FROM sessions.push_counts WHERE ctid = ANY(ARRAY(
        SELECT old.ctid FROM tenants CROSS JOIN LATERAL (
            SELECT ctid FROM sessions.push_counts WHERE tenant_id = tenants.tenant_id AND hour < %b
            ORDER BY hour LIMIT %b FOR UPDATE SKIP LOCKED) AS old
        LIMIT %b))"""


class Tombstones(NamedTuple):
    """What became of a batch of old tombstones."""

    found: int
    swept: int
    busy: frozenset[UUID]
    """Users whose feed somebody else holds; theirs are still there."""


class SweepStore:
    """What grows old in PostgreSQL; each call is one short transaction, and waits for no other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tombstones(self, before: datetime, *, besides: Collection[UUID], limit: int) -> Tombstones:
        """Forgets up to `limit` deletions from before a moment, of users other than `besides`.

        The horizon of each feed rises with them: a cursor from before it can't be told any more what was deleted.
        """
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            cursor = await connection.execute(_OLD_TOMBSTONES, [before, list(besides), limit], prepare=True)
            old = await cursor.fetchall()
            if not old:
                return Tombstones(0, 0, frozenset())
            users = {row["user_id"] for row in old}
            cursor = await connection.execute(_HOLD_FEEDS, [list(users)], prepare=True)
            held = {row["user_id"] for row in await cursor.fetchall()}
            columns = [[row[name] for row in old] for name in ("user_id", "domain", "id")]
            cursor = await connection.execute(_FORGET_TOMBSTONES, [*columns, list(held), before], prepare=True)
            row = await cursor.fetchone()
        return Tombstones(len(old), row["swept"] if row else 0, frozenset(users - held))

    async def conflicts(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` conflicts logged before a moment; returns how many."""
        return await self._forget(_FORGET_CONFLICTS, before, limit)

    async def push_counts(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` counts of hours that began before a moment; returns how many."""
        return await self._forget(_FORGET_PUSH_COUNTS, before, limit, limit)

    async def idempotency_keys(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` idempotency keys first used before a moment; returns how many."""
        return await self._forget(_FORGET_KEYS, before, limit)

    async def _forget(self, statement: str, *values: object) -> int:
        async with self._database.statements() as statements:
            return (await statements.connection.execute(statement, values, prepare=True)).rowcount
