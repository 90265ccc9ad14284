"""Owns the statements that remove what has grown too old."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from runtime.database import Database

# An array, so that the rows are chosen and locked once; SKIP LOCKED, so that each is swept by one replica.
_FORGET_SIGN_INS: Final = """
    WITH ended AS (SELECT ctid FROM auth.sign_ins WHERE revoke_time < %(before)s
            ORDER BY revoke_time LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
        expired AS (SELECT ctid FROM auth.sign_ins WHERE expire_time < %(before)s
            ORDER BY expire_time LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
    DELETE FROM auth.sign_ins WHERE ctid = ANY(ARRAY(SELECT ctid FROM ended UNION SELECT ctid FROM expired))"""
_FORGET_EVENTS: Final = """
    DELETE FROM auth.security_events WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM auth.security_events WHERE time < %(before)s
        ORDER BY time LIMIT %(limit)s FOR UPDATE SKIP LOCKED))"""
_FORGET_ATTEMPTS: Final = """
    DELETE FROM auth.attempts WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM auth.attempts WHERE time < %(before)s
        ORDER BY time LIMIT %(limit)s FOR UPDATE SKIP LOCKED))"""


class SweepStore:
    """What grows old in PostgreSQL; each call is one short statement, and waits for no other."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_ins(self, before: datetime, limit: int) -> int:
        """Forgets sign-ins that ended or expired before a moment, up to `limit` of each; returns how many."""
        return await self._forget(_FORGET_SIGN_INS, before, limit)

    async def security_events(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` events from before a moment; returns how many."""
        return await self._forget(_FORGET_EVENTS, before, limit)

    async def attempts(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` counts of failures of which the last was before a moment; returns how many."""
        return await self._forget(_FORGET_ATTEMPTS, before, limit)

    async def _forget(self, statement: str, before: datetime, limit: int) -> int:
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(statement, {"before": before, "limit": limit}, prepare=True)
            return cursor.rowcount
