"""Owns the outbox: records that are to show up in feeds, written in the transaction that is the reason for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from runtime.arrays import BigIntegers, Texts
from runtime.backlogs import MAX_COUNTED, Backlog
from runtime.database import Connection, Database
from services.uploads.outbox_domain import Batch, Outgoing

_ADD: Final = """
    INSERT INTO uploads.outbox (user_id, tenant_id, domain, record_id, data, create_time, due_time, attempts)
    VALUES (%b, %b, %b, %b, %b, %b, %b, 0)"""
_LEFT: Final = "SELECT 1 FROM uploads.outbox WHERE user_id = %b LIMIT 1"
_FORGET: Final = "DELETE FROM uploads.outbox WHERE user_id = %b"
# A claim is a row of the user that is not due: replicas take users, not rows. Two that took different rows of one user,
# as with SKIP LOCKED, could tell of a file after its deletion; so for the moment of taking they stand in line here.
_LINE: Final = "SELECT pg_advisory_xact_lock(94880994)"
_CLAIM: Final = """
    UPDATE uploads.outbox SET due_time = %b::timestamptz WHERE id = (
        SELECT id FROM uploads.outbox AS due
        WHERE due_time <= %b::timestamptz AND NOT EXISTS (
            SELECT FROM uploads.outbox AS busy WHERE busy.user_id = due.user_id AND busy.due_time > %b::timestamptz)
        ORDER BY due_time, id LIMIT 1)
    RETURNING id, user_id, tenant_id,
        (SELECT max(attempts) FROM uploads.outbox AS own WHERE own.user_id = outbox.user_id) AS attempts"""
# Of each record only how it stands now: what was to be told of it before is told with that, or never was.
_LATEST: Final = """
    SELECT id, domain, record_id, data FROM (
        SELECT DISTINCT ON (domain, record_id) id, domain, record_id, data FROM uploads.outbox
        WHERE user_id = %b ORDER BY domain, record_id, id DESC) AS latest
    ORDER BY id LIMIT %b"""
_TOLD: Final = """
    DELETE FROM uploads.outbox USING unnest(%b::text[], %b::text[], %b::int8[]) AS told (domain, record_id, last)
    WHERE user_id = %b AND outbox.domain = told.domain AND outbox.record_id = told.record_id AND id <= told.last"""
_DROP: Final = "DELETE FROM uploads.outbox WHERE id = ANY(%b::int8[])"
_RELEASE: Final = """
    UPDATE uploads.outbox SET due_time = create_time, attempts = 0 WHERE user_id = %b AND (attempts > 0 OR id = %b)"""
_PUT_OFF: Final = "UPDATE uploads.outbox SET due_time = %b, attempts = %b WHERE id = %b"


_BACKLOG: Final = """
    SELECT count(*) AS items, min(create_time) AS since
    FROM (SELECT create_time FROM uploads.outbox ORDER BY id LIMIT %b) AS waiting"""


async def add(
    connection: Connection,
    *,
    user_id: UUID,
    tenant_id: int,
    domain: str,
    record_id: str,
    data: dict[str, Any] | None,
    now: datetime,
) -> None:
    """Adds a record as it is to be, `data` None for its end, to the transaction that is under way on `connection`.

    Once that is committed, tell the relay to look. Rows of one record must be added one after the other, by callers who
    hold what the record is about; otherwise there is no saying which of them counts.
    """
    written = None if data is None else Jsonb(data)
    values = [user_id, tenant_id, domain, record_id, written, now, now]
    await connection.execute(_ADD, values, prepare=True)


async def forget(connection: Connection, user_id: UUID) -> None:
    """Drops what is there of a user whose records are erased by themselves."""
    await connection.execute(_FORGET, [user_id])


async def told(connection: Connection, user_id: UUID) -> bool:
    """Whether there is nothing that others are still to be told of a user."""
    return await (await connection.execute(_LEFT, [user_id], prepare=True)).fetchone() is None


class OutboxStore:
    """The outbox in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def backlog(self) -> Backlog:
        """What nobody was told yet."""
        async with self._database.statements() as statements:
            row = await (await statements.connection.execute(_BACKLOG, [MAX_COUNTED])).fetchone()
        return Backlog.of(row)

    async def take(self, now: datetime, claim: timedelta, limit: int) -> Batch | None:
        """Up to `limit` records of a user, who is nobody else's for as long as `claim`; None: nothing is due."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            async with connection.pipeline():
                await connection.execute(_LINE)
                claimed = await connection.execute(_CLAIM, [now + claim, now, now], prepare=True)
            row = await claimed.fetchone()
            if row is None:
                return None
            found = await connection.execute(_LATEST, [row["user_id"], limit], prepare=True)
            records = [Outgoing(**one) for one in await found.fetchall()]
        return Batch(
            claim_id=row["id"],
            user_id=row["user_id"],
            tenant_id=row["tenant_id"],
            attempts=row["attempts"],
            records=records,
        )

    async def finish(self, batch: Batch, told: Sequence[Outgoing], dropped: Sequence[Outgoing]) -> None:
        """Strikes off what was told, with all that came before it of the same records, and of `dropped` only itself.

        What is left of the user is anybody's again.
        """
        domains, record_ids = Texts([one.domain for one in told]), Texts([one.record_id for one in told])
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            async with connection.pipeline():
                values = [domains, record_ids, BigIntegers([one.id for one in told]), batch.user_id]
                await connection.execute(_TOLD, values, prepare=True)
                await connection.execute(_DROP, [BigIntegers([one.id for one in dropped])], prepare=True)
                await connection.execute(_RELEASE, [batch.user_id, batch.claim_id], prepare=True)

    async def put_off(self, batch: Batch, until: datetime, *, attempts: int) -> None:
        """Leaves the user to a later time, after so many attempts that failed."""
        async with self._database.statements() as statements:
            values = [until, attempts, batch.claim_id]
            await statements.connection.execute(_PUT_OFF, values, prepare=True)
