"""Owns reading the feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

from psycopg.rows import tuple_row

from runtime.database import Database

# More than this is not sent at once, whatever the number of records.
PAGE_BYTES: Final = 4 * 1024 * 1024

_STANDING: Final = "SELECT position, horizon FROM sessions.feeds WHERE user_id = %b"
_HORIZON: Final = "SELECT horizon FROM sessions.feeds WHERE user_id = %b"
# The partial index on (user_id, position) gives as many rows as are asked for, in their order.
_WANTED: Final = """
    user_id = %b AND position > %b AND position > 0 AND (%b::text[] IS NULL OR domain = ANY(%b::text[]))
    ORDER BY position LIMIT %b"""
_NEXT: Final = f"FROM sessions.records WHERE {_WANTED}"
# A row from before sizes were kept counts for what it takes on disk.
_SIZE: Final = f"""
    SELECT coalesce(sum(coalesce(size, stored)), 0)
    FROM (SELECT size, CASE WHEN size IS NULL THEN pg_column_size(data) END AS stored {_NEXT}) AS found"""  # noqa: S608  # of constants
# Nothing when it is too much for one page, and then no content is read.
_AFTER_UNLESS_LARGE: Final = f"""
    SELECT position, domain, id, version, deleted, data::text, update_time FROM sessions.records
    WHERE ({_SIZE}) <= {PAGE_BYTES} AND {_WANTED}"""  # noqa: S608  # of constants
# The same as far as it is not too large; the contents of what is too much are never read.
_SOME_AFTER: Final = f"""
    SELECT position, domain, id, version, deleted, data::text, update_time
    FROM (
        SELECT *, sum(size) OVER (ORDER BY position) - size AS size_before
        FROM (
            SELECT position, domain, id, version, deleted, data, update_time,
                coalesce(size, pg_column_size(data)) AS size {_NEXT}) AS found) AS page
    WHERE size_before < %b ORDER BY position"""  # noqa: S608  # of constants
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


# Entry._make without its look at the length: a third of the time, for every row of every page.
_entry: Final[Callable[[tuple[Any, ...]], Entry]] = partial(tuple.__new__, Entry)


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
        chosen = list(domains) or None
        asked = [user_id, position, chosen, chosen, limit + 1]
        async with self._database.statements() as statements:
            connection = statements.connection
            standing, page, swept = (connection.cursor(row_factory=tuple_row, binary=True) for _ in range(3))
            async with connection.pipeline():
                await standing.execute(_STANDING, [user_id], prepare=True)
                await page.execute(_AFTER_UNLESS_LARGE, [*asked, *asked], prepare=True)
                # Asked after the page: tombstones that were swept away before it was read are known to be missing.
                await swept.execute(_HORIZON, [user_id], prepare=True)
            last, _ = await standing.fetchone() or (0, 0)
            cut = page.rowcount == 0 and last > position
            if cut:
                async with connection.pipeline():
                    await page.execute(_SOME_AFTER, [*asked, PAGE_BYTES], prepare=True)
                    await swept.execute(_HORIZON, [user_id], prepare=True)
            entries = list(map(_entry, await page.fetchall()))
            (horizon,) = await swept.fetchone() or (0,)
        cut = cut and bool(entries)  # there may just be nothing in these domains
        if cut or len(entries) > limit:
            entries = entries[:limit]
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
