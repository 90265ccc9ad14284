"""Owns reading the feed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from psycopg.rows import tuple_row

from runtime.database import Database

# More than this is not sent at once, whatever the number of records.
PAGE_BYTES: Final = 4 * 1024 * 1024

_STANDING: Final = "SELECT position, horizon FROM sessions.feeds WHERE user_id = %b"
# The index on (user_id, position) gives as many rows as are asked for, in their order; the contents of those that are
# too many bytes are never read. A row from before sizes were kept counts for what it takes on disk.
_PAGE: Final = """
    SELECT position, domain, id, version, deleted, data::text, update_time, bytes FROM (
        SELECT *, sum(size) OVER (ORDER BY position) AS bytes
        FROM (
            SELECT position, domain, id, version, deleted, data, update_time,
                coalesce(size, pg_column_size(data)) AS size
            FROM sessions.records
            WHERE user_id = %b AND position > %b {filter} ORDER BY position LIMIT %b) AS found) AS page
    WHERE bytes - size < %b ORDER BY position"""
AFTER: Final = _PAGE.format(filter="")
_AFTER_IN_DOMAINS: Final = _PAGE.format(filter="AND domain = ANY(%b::text[])")
_POSITIONS: Final = "SELECT user_id, position FROM sessions.feeds WHERE user_id = ANY(%b)"


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


class Stretch(NamedTuple):
    """What was read of a feed."""

    entries: list[Entry]
    position: int
    """Everything up to here has been read, in the domains that were asked for."""
    has_more: bool
    horizon: int
    """Deletions up to here are forgotten."""


class FeedStore:
    """Feeds in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def after(self, user_id: UUID, position: int, domains: Sequence[str], limit: int) -> Stretch:
        """The next entries behind `position`: at most `limit`, of about 4 MiB together, in `domains` or in all.

        Positions are taken and committed under the feed's lock, so nothing can appear behind an entry that was read.
        """
        async with self._database.statements() as statements:
            cursor = statements.connection.cursor(row_factory=tuple_row, binary=True)
            await cursor.execute(_STANDING, [user_id], prepare=True)
            last, horizon = await cursor.fetchone() or (0, 0)
            if last <= position:
                return Stretch([], last, False, horizon)
            if domains:
                values = [user_id, position, list(domains), limit + 1, PAGE_BYTES]
                await cursor.execute(_AFTER_IN_DOMAINS, values, prepare=True)
            else:
                await cursor.execute(AFTER, [user_id, position, limit + 1, PAGE_BYTES], prepare=True)
            rows = await cursor.fetchall()
        entries = [Entry._make(row[:-1]) for row in rows[:limit]]
        if len(rows) > limit or (rows and rows[-1][-1] >= PAGE_BYTES):
            return Stretch(entries, entries[-1].position, True, horizon)
        # All there is has been read, so nothing that is not here can stand before what was last then.
        return Stretch(entries, max(last, entries[-1].position if entries else 0), False, horizon)

    async def standing(self, user_id: UUID) -> tuple[int, int]:
        """The last position of the user's feed, and the one up to which deletions are forgotten."""
        async with self._database.statements() as statements:
            cursor = statements.connection.cursor(row_factory=tuple_row, binary=True)
            await cursor.execute(_STANDING, [user_id], prepare=True)
            return await cursor.fetchone() or (0, 0)

    async def positions(self, user_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The last position of each user's feed, as far as it has one."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_POSITIONS, [list(user_ids)], prepare=True)
            return {row["user_id"]: row["position"] for row in await cursor.fetchall()}
