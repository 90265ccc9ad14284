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
_FORGET: Final = """
    DELETE FROM auth.{table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM auth.{table} WHERE {column} < %(before)s
        ORDER BY {column} LIMIT %(limit)s FOR UPDATE SKIP LOCKED))"""
_FORGET_EVENTS: Final = _FORGET.format(table="security_events", column="time")
_FORGET_ATTEMPTS: Final = _FORGET.format(table="attempts", column="time")
_FORGET_CODES: Final = _FORGET.format(table="codes", column="expire_time")
_FORGET_CODE_TRIES: Final = _FORGET.format(table="code_tries", column="expire_time")
_FORGET_MAILS: Final = _FORGET.format(table="mails", column="expire_time")


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

    async def codes(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` codes that expired before a moment; returns how many."""
        return await self._forget(_FORGET_CODES, before, limit)

    async def code_tries(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` counts of tried codes that expired before a moment; returns how many."""
        return await self._forget(_FORGET_CODE_TRIES, before, limit)

    async def mails(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` mails that were to be sent before a moment, and were not; returns how many."""
        return await self._forget(_FORGET_MAILS, before, limit)

    async def _forget(self, statement: str, before: datetime, limit: int) -> int:
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(statement, {"before": before, "limit": limit}, prepare=True)
            return cursor.rowcount
