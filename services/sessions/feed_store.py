"""Owns reading the feed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from psycopg.rows import tuple_row

from runtime.database import Database

_HORIZON: Final = "SELECT horizon FROM sessions.feeds WHERE user_id = %b"
# In the order of the index on (user_id, position): as many rows are read as are given.
AFTER: Final = """
    SELECT position, domain, id, version, deleted, data::text, update_time FROM sessions.records
    WHERE user_id = %b AND position > %b ORDER BY position LIMIT %b"""
_AFTER_IN_DOMAINS: Final = """
    SELECT position, domain, id, version, deleted, data::text, update_time FROM sessions.records
    WHERE user_id = %b AND position > %b AND domain = ANY(%b::text[]) ORDER BY position LIMIT %b"""


class Entry(NamedTuple):
    """A record as it stands, at its place in the feed."""

    position: int
    domain: str
    id: str
    version: int
    deleted: bool
    raw: str
    """The data as JSON text; {} when deleted."""
    update_time: datetime


class FeedStore:
    """Feeds in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, user_id: UUID, position: int, domains: Sequence[str], limit: int) -> tuple[list[Entry], int]:
        """The next `limit` entries behind `position`, and the position up to which deletions are forgotten.

        Positions are taken and committed under the feed's lock, so nothing can appear behind an entry that was read.
        """
        async with self._database.statements() as statements:
            cursor = statements.connection.cursor(row_factory=tuple_row, binary=True)
            await cursor.execute(_HORIZON, [user_id], prepare=True)
            horizon = await cursor.fetchone()
            if domains:
                await cursor.execute(_AFTER_IN_DOMAINS, [user_id, position, list(domains), limit], prepare=True)
            else:
                await cursor.execute(AFTER, [user_id, position, limit], prepare=True)
            return [Entry(*row) for row in await cursor.fetchall()], horizon[0] if horizon else 0
