"""Owns the statements that make a guest's rows an account's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final
from uuid import UUID

from runtime.arrays import Texts
from runtime.call import Principal
from runtime.database import Connection, Database
from services.sessions.adoptions_domain import Left
from services.sessions.policies_domain import Policy
from services.sessions.pushes_store import Feed, locked_feed
from services.sessions.records_domain import Key, Known, Prepared

_ADOPT: Final = "sync.adopt"
_LOCK_FEED: Final = "SELECT position FROM sessions.feeds WHERE user_id = %b FOR UPDATE"
_LEFT: Final = """
    SELECT domain, id, version, data, happen_time, coalesce(change_time, update_time) AS change_time
    FROM sessions.records WHERE user_id = %b AND position > 0 AND NOT deleted ORDER BY position LIMIT %b"""
# Not made tombstones: nobody is left who could pull them.
_REMOVE: Final = """
    DELETE FROM sessions.records USING unnest(%b::text[], %b::text[]) AS moved (domain, id)
    WHERE user_id = %b AND records.domain = moved.domain AND records.id = moved.id"""
_MOVE_CONFLICTS: Final = "UPDATE sessions.conflicts SET user_id = %b, tenant_id = %b WHERE user_id = %b"
_MOVE_KEYS: Final = """
    WITH moved AS (DELETE FROM sessions.idempotency_keys WHERE user_id = %b RETURNING *)
    INSERT INTO sessions.idempotency_keys (user_id, rpc, key, digest, answer, create_time)
    SELECT %b::uuid, rpc, key, digest, answer, create_time FROM moved ON CONFLICT DO NOTHING"""
_MOVE_COUNTS: Final = """
    WITH moved AS (DELETE FROM sessions.push_counts WHERE user_id = %b RETURNING *)
    INSERT INTO sessions.push_counts AS known (user_id, domain, hour, tenant_id, items)
    SELECT %b::uuid, domain, hour, %b::int4, items FROM moved
    ON CONFLICT (user_id, domain, hour) DO UPDATE SET items = known.items + excluded.items"""


class Batch:
    """Records of a guest that are to move, inside a transaction that holds both feeds."""

    def __init__(
        self, connection: Connection, guest_id: UUID, owner: Principal, left: Mapping[Key, Left], feed: Feed
    ) -> None:
        self._connection = connection
        self._guest_id = guest_id
        self._owner = owner
        self.left: Final = left
        """In the order of the guest's feed; empty: nothing is left."""
        self.feed: Final = feed
        """The account's, with what it has under the same keys."""

    async def remove(self) -> None:
        """Takes what was moved away from the guest."""
        domains, ids = Texts([key.domain for key in self.left]), Texts([key.id for key in self.left])
        await self._connection.execute(_REMOVE, [domains, ids, self._guest_id], prepare=True)

    async def move_rest(self) -> None:
        """Moves the log of conflicts, what calls were answered, so that repeats are known, and the counts of pushes."""
        guest, owner = self._guest_id, self._owner
        await self._connection.execute(_MOVE_CONFLICTS, [owner.user_id, owner.tenant_id, guest])
        await self._connection.execute(_MOVE_KEYS, [guest, owner.user_id])
        await self._connection.execute(_MOVE_COUNTS, [guest, owner.user_id, owner.tenant_id])


class AdoptionStore:
    """Guests' rows in PostgreSQL."""

    def __init__(
        self,
        database: Database,
        default_policy: Callable[[str], Policy],
        *,
        committed: Callable[[UUID, Sequence[UUID]], None] = lambda *_: None,
    ) -> None:
        """`committed` is told whose feed has advanced, once it has, and of which conflicts the user wants to know."""
        self._database = database
        self._default_policy = default_policy
        self._committed = committed

    @asynccontextmanager
    async def batch(self, guest_id: UUID, owner: Principal, limit: int, now: datetime) -> AsyncIterator[Batch]:
        """The next records of the guest, with the account's feed, both held until the block ends.

        The guest's feed is always held first, and an account is nobody's guest: no two wait for each other.
        """
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            await connection.execute(_LOCK_FEED, [guest_id], prepare=True)
            cursor = await connection.execute(_LEFT, [guest_id, limit], prepare=True)
            left = {
                Key(row["domain"], row["id"]): Left(
                    known=Known(row["version"], False, row["data"], row["change_time"]),
                    prepared=Prepared(row["data"], row["happen_time"]),
                )
                for row in await cursor.fetchall()
            }
            feed = await locked_feed(
                connection, owner, list(left), rpc=_ADOPT, calls=[], now=now, default_policy=self._default_policy
            )
            yield Batch(connection, guest_id, owner, left, feed)
        if feed.advanced or feed.news:
            self._committed(owner.user_id, feed.news)
