"""Owns the tables of uploads and their chunks, and every query on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncCursor
from psycopg.errors import LockNotAvailable
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runtime.arrays import Integers
from runtime.database import Connection, Database, Row
from services.uploads.outbox_store import forget, told
from services.uploads.uploads_domain import Chunk, Standing, Upload

# How long who would end an upload waits for whoever holds it, and how many do at once; there are eight connections.
PATIENCE: Final = timedelta(milliseconds=500)
MAX_WAITING: Final = 2

UPLOAD: Final = """
    id, user_id, tenant_id, filename, mime_type, total_size, chunk_size, file_hash, status, contested, create_time,
    expire_time, finish_time, activity, failure"""
# One after the other for each user, so that two starts cannot both take the last room of a quota.
_LOCK_USER: Final = "SELECT pg_advisory_xact_lock(%b::int8)"
_SAME: Final = f"""
    SELECT {UPLOAD} FROM uploads.uploads
    WHERE user_id = %b AND file_hash = %b AND total_size = %b AND mime_type = %b
        AND (status = 'completed' OR (status IN ('active', 'assembling') AND filename = %b AND expire_time > %b))
    ORDER BY status = 'completed' DESC, create_time LIMIT 1"""  # noqa: S608  # of constants
_ACTIVITY: Final = f"""
    SELECT {UPLOAD} FROM uploads.uploads
    WHERE user_id = %b AND file_hash = %b AND total_size = %b AND status = 'completed' AND activity IS NOT NULL
    ORDER BY create_time LIMIT 1"""  # noqa: S608  # of constants
_USED: Final = """
    SELECT coalesce(sum(total_size), 0)::int8 AS bytes FROM uploads.uploads
    WHERE user_id = %b AND (status IN ('assembling', 'completed') OR (status = 'active' AND expire_time > %b))"""
_INSERT: Final = """
    INSERT INTO uploads.uploads (
        id, user_id, tenant_id, filename, mime_type, total_size, chunk_size, file_hash, status, create_time,
        expire_time, finish_time, activity)
    VALUES (%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)"""
_PROLONG: Final = """
    UPDATE uploads.uploads SET expire_time = greatest(expire_time, %b) WHERE id = %b AND status = 'active'"""
_FIND: Final = f"SELECT {UPLOAD} FROM uploads.uploads WHERE id = %b"  # noqa: S608  # of constants
_HOLD: Final = _FIND + " FOR UPDATE"
_HOLD_NOW: Final = _HOLD + " NOWAIT"
_PATIENCE: Final = "SELECT set_config('lock_timeout', %b, true)"
# Whoever claims a chunk after somebody else who has not stored it takes it over; with other bytes that makes the upload
# contested, and its file is then read from the store before it is believed. The row's lock is waited for here, and not
# when the new row looks for its upload: by then that may have ended.
_CLAIM: Final = """
    WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true)),
    alive AS (
        SELECT id FROM uploads.uploads, relaxed WHERE id = %b AND status = 'active' AND expire_time > %b
        FOR KEY SHARE OF uploads),
    claimed AS (
        INSERT INTO uploads.chunks AS known (upload_id, index, claim, stored)
        SELECT alive.id, wanted.index, %b, false
        FROM alive, unnest(%b::int4[]) AS wanted (index) ORDER BY wanted.index
        ON CONFLICT (upload_id, index) DO UPDATE SET claim = excluded.claim WHERE NOT known.stored
        RETURNING index, old.claim <> new.claim AS taken_over),
    contested AS (
        UPDATE uploads.uploads SET contested = true
        WHERE id = %b AND NOT contested AND EXISTS (SELECT 1 FROM claimed WHERE taken_over))
    SELECT index FROM claimed"""
# The row's lock keeps an upload from being finalized, cancelled or swept away between its bytes and their row.
_STORE: Final = """
    WITH alive AS (SELECT id FROM uploads.uploads WHERE id = %b AND status = 'active' FOR KEY SHARE)
    UPDATE uploads.chunks SET stored = true FROM alive
    WHERE upload_id = alive.id AND index = ANY(%b::int4[]) AND claim = %b"""
_NOTE: Final = f"{_STORE} RETURNING index"
_RELEASE: Final = "DELETE FROM uploads.chunks WHERE upload_id = %b AND claim = %b AND NOT stored"
_CHUNK: Final = "SELECT claim, stored FROM uploads.chunks WHERE upload_id = %b AND index = %b"
_COUNT: Final = "SELECT count(*) AS stored FROM uploads.chunks WHERE upload_id = %b AND stored"
_STORED: Final = "SELECT index FROM uploads.chunks WHERE upload_id = %b AND stored ORDER BY index"
_END: Final = """
    UPDATE uploads.uploads SET status = %b, finish_time = %b, failure = %b WHERE id = %b"""
_SET_ACTIVITY: Final = "UPDATE uploads.uploads SET activity = %b WHERE id = %b"
_FORGET_CHUNKS: Final = "DELETE FROM uploads.chunks WHERE upload_id = %b"
_EXPIRED: Final = f"""
    SELECT {UPLOAD} FROM uploads.uploads
    WHERE status IN ('active', 'assembling') AND expire_time <= %b AND (status = 'active' OR expire_time <= %b)
    ORDER BY expire_time LIMIT 1 FOR UPDATE SKIP LOCKED"""  # noqa: S608  # of constants
_KNOWN: Final = "SELECT id FROM uploads.uploads WHERE id = ANY(%b::uuid[]) AND status = ANY(%b::text[])"
_FILES: Final = f"""
    SELECT {UPLOAD} FROM uploads.uploads
    WHERE user_id = %b AND status = 'completed'
        AND (finish_time, id) < (coalesce(%b, 'infinity'::timestamptz), coalesce(%b, id))
    ORDER BY finish_time DESC, id DESC LIMIT %b"""  # noqa: S608  # of constants
_LIVING_OF: Final = """
    SELECT id FROM uploads.uploads WHERE user_id = %b AND status IN ('active', 'assembling', 'completed') LIMIT %b"""
_FORGET_USER: Final = (
    "DELETE FROM uploads.uploads WHERE user_id = %b AND status NOT IN ('active', 'assembling', 'completed')"
)
_FORGET_ENDED: Final = """
    DELETE FROM uploads.uploads WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM uploads.uploads
        WHERE status IN ('failed', 'cancelled', 'expired', 'deleted') AND finish_time < %b
        LIMIT %b FOR UPDATE SKIP LOCKED))"""


_BE_SOMEBODY: Final = """
    INSERT INTO uploads.installation (id) VALUES (gen_random_uuid()) ON CONFLICT (single) DO NOTHING"""
_INSTALLATION: Final = "SELECT id FROM uploads.installation"
_CLOSE: Final = """
    INSERT INTO uploads.adopted (guest_id, user_id, create_time) VALUES (%b, %b, %b) ON CONFLICT DO NOTHING"""
_CLOSED: Final = "SELECT 1 FROM uploads.adopted WHERE guest_id = %b"
_ADOPT: Final = """
    UPDATE uploads.uploads SET user_id = %b, tenant_id = %b
    WHERE user_id = %b AND status IN ('active', 'assembling', 'completed')"""
# Files that ended since: their end was told of an account that did not yet have their records.
_TELL_ENDS: Final = """
    INSERT INTO uploads.outbox (user_id, tenant_id, domain, record_id, create_time, due_time, attempts)
    SELECT ended.user_id, tenant_id, %b, id::text, %b, %b, 0
    FROM uploads.uploads AS ended JOIN uploads.adopted ON adopted.user_id = ended.user_id
    WHERE guest_id = %b AND status = 'deleted' AND finish_time >= adopted.create_time"""
_COUNT_ERASED: Final = """
    INSERT INTO uploads.erased AS known (user_id, uploads, files, bytes) VALUES (%b, %b::int4, %b::int4, %b::int8)
    ON CONFLICT (user_id) DO UPDATE SET
        uploads = known.uploads + excluded.uploads, files = known.files + excluded.files,
        bytes = known.bytes + excluded.bytes"""
_ERASED: Final = "SELECT uploads, files, bytes FROM uploads.erased WHERE user_id = %b"


class HeldUpload:
    """An upload inside a transaction that holds it: nobody else can store a chunk of it, or end it, meanwhile."""

    def __init__(self, connection: Connection, upload: Upload | None) -> None:
        self.connection = connection
        self.upload = upload
        """None: there is none."""

    async def stored(self) -> list[int]:
        """The chunks that are stored, in order."""
        return await _stored(self.connection, _given(self.upload).id)

    async def end(self, status: str, now: datetime, failure: str | None = None) -> None:
        """Gives it a status that it will not leave, and forgets its chunks. `failure`: why it has failed."""
        upload = _given(self.upload)
        await self.connection.execute(_END, [status, now, failure, upload.id], prepare=True)
        await self.connection.execute(_FORGET_CHUNKS, [upload.id], prepare=True)

    async def erase(self, now: datetime) -> None:
        """Ends it since its user is gone, and counts it among what was ended so."""
        upload = _given(self.upload)
        is_file = upload.status == "completed"
        await self.end("deleted" if is_file else "cancelled", now)
        counts = [int(not is_file), int(is_file), upload.total_size if is_file else 0]
        await self.connection.execute(_COUNT_ERASED, [upload.user_id, *counts], prepare=True)

    async def set_activity(self, data: dict[str, Any]) -> None:
        """Notes what the recording came to."""
        values = [Jsonb(data), _given(self.upload).id]
        await self.connection.execute(_SET_ACTIVITY, values, prepare=True)

    async def assembling(self) -> None:
        """From now on it takes no chunks."""
        await self.connection.execute(_END, ["assembling", None, None, _given(self.upload).id], prepare=True)


class UploadStore:
    """Uploads in PostgreSQL."""

    def __init__(self, database: Database, *, patience: timedelta = PATIENCE) -> None:
        """`patience`: how long `hold_soon` waits."""
        self._database = database
        self._patience = f"{round(patience.total_seconds() * 1000)}ms"
        self._waiting = 0

    @asynccontextmanager
    async def start(self, user_id: UUID) -> AsyncIterator[Starting]:
        """A transaction in which nobody else starts an upload of this user."""
        async with self._database.transaction() as transaction:
            key = int.from_bytes(user_id.bytes[:8], signed=True)
            await transaction.connection.execute(_LOCK_USER, [key], prepare=True)
            yield Starting(transaction.connection, user_id)

    async def find(self, id: UUID) -> Upload | None:
        """An upload, whoever owns it."""
        async with self._database.statements() as statements:
            return await _one(statements.connection, _FIND, [id])

    async def activity(self, user_id: UUID, file_hash: bytes, size: int) -> Upload | None:
        """The user's file of this hash and size, if it was handed over as an activity."""
        async with self._database.statements() as statements:
            return await _one(statements.connection, _ACTIVITY, [user_id, file_hash, size])

    @asynccontextmanager
    async def hold(self, id: UUID) -> AsyncIterator[HeldUpload]:
        """An upload, held until the block ends; waits for whoever holds it."""
        async with self._database.transaction() as transaction:
            yield HeldUpload(transaction.connection, await _one(transaction.connection, _HOLD, [id]))

    @asynccontextmanager
    async def hold_soon(self, id: UUID) -> AsyncIterator[HeldUpload]:
        """As `hold`, for callers who may come again: waits for a moment, and only when few others do.

        Whoever waits has a connection that somebody else may need. Raises LockNotAvailable, a way of being away.
        """
        async with AsyncExitStack() as stack:
            try:
                held = await stack.enter_async_context(self._hold(id, _HOLD_NOW))
            except LockNotAvailable:
                if self._waiting >= MAX_WAITING:
                    raise
                self._waiting += 1
                try:
                    held = await stack.enter_async_context(self._hold(id, _HOLD))
                finally:
                    self._waiting -= 1
            yield held

    @asynccontextmanager
    async def _hold(self, id: UUID, statement: str) -> AsyncIterator[HeldUpload]:
        async with self._database.transaction() as transaction:
            await transaction.connection.execute(_PATIENCE, [self._patience])
            yield HeldUpload(transaction.connection, await _one(transaction.connection, statement, [id]))

    @asynccontextmanager
    async def hold_expired(self, active: datetime, assembling: datetime) -> AsyncIterator[HeldUpload]:
        """An upload whose time was over then, and that nobody holds; with None for an upload when there is none."""
        async with self._database.transaction() as transaction:
            upload = await _one(transaction.connection, _EXPIRED, [active, assembling])
            yield HeldUpload(transaction.connection, upload)

    async def claim(self, id: UUID, claim: bytes, indexes: Sequence[int], now: datetime) -> set[int]:
        """Announces that the bytes of these chunks will be written; returns those that are not stored already.

        Of an upload that is not active, or whose time is over, none is. A claim need not outlive a crash: whoever comes
        with the bytes then claims them anew.
        """
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_CLAIM, [id, now, claim, Integers(indexes), id], prepare=True)
            return {row["index"] for row in await cursor.fetchall()}

    async def store(self, id: UUID, claim: bytes, indexes: Sequence[int]) -> tuple[int, int]:
        """Notes that the chunks are stored, as far as they are still claimed so.

        Returns how many of them were, and how many of the upload are now.
        """
        async with self._database.statements() as statements:
            connection = statements.connection
            async with connection.pipeline():
                stored = await connection.execute(_STORE, [id, Integers(indexes), claim], prepare=True)
                counted = await connection.execute(_COUNT, [id], prepare=True)
            row = await counted.fetchone() or {"stored": 0}
            return stored.rowcount, row["stored"]

    async def note(self, id: UUID, claim: bytes, indexes: Sequence[int]) -> set[int]:
        """Notes that the chunks are stored; returns those that were, for they are still claimed so."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_NOTE, [id, Integers(indexes), claim], prepare=True)
            return {row["index"] for row in await cursor.fetchall()}

    async def release(self, id: UUID, claim: bytes) -> None:
        """Takes back the claims on what was not stored."""
        async with self._database.statements() as statements:
            await statements.connection.execute(_RELEASE, [id, claim], prepare=True)

    async def chunk(self, id: UUID, index: int) -> Chunk | None:
        """One chunk; None when nobody has claimed it."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_CHUNK, [id, index], prepare=True)
            row = await cursor.fetchone()
        return Chunk(**row) if row else None

    async def count(self, id: UUID) -> int:
        """How many chunks are stored."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_COUNT, [id], prepare=True)
            row = await cursor.fetchone()
        return int(row["stored"]) if row else 0

    async def stored(self, id: UUID) -> list[int]:
        """The chunks that are stored, in order."""
        async with self._database.statements() as statements:
            return await _stored(statements.connection, id)

    async def living(self, ids: Sequence[UUID], statuses: Sequence[str]) -> set[UUID]:
        """Those of `ids` that are in one of these statuses."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_KNOWN, [list(ids), list(statuses)], prepare=True)
            return {row["id"] for row in await cursor.fetchall()}

    async def files(self, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None) -> list[Upload]:
        """The user's files, newest first, below `before` (the last one of a page)."""
        time, id = before or (None, None)
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_FILES, [user_id, time, id, limit], prepare=True)
            return [upload_of(row) for row in await cursor.fetchall()]

    async def used(self, user_id: UUID, now: datetime) -> int:
        """Bytes of the user's files and of those that are on their way."""
        async with self._database.statements() as statements:
            used = await statements.connection.execute(_USED, [user_id, now], prepare=True)
            return await _bytes(used)

    async def living_of(self, user_id: UUID, limit: int) -> list[UUID]:
        """Up to `limit` of the user's uploads and files."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_LIVING_OF, [user_id, limit])
            return [row["id"] for row in await cursor.fetchall()]

    async def adopt(
        self, guest_id: UUID, user_id: UUID, tenant_id: int, *, domain: str, now: datetime
    ) -> tuple[int, bool]:
        """Makes the guest's files and living uploads the account's, and lets the guest start no more.

        Returns how many, and whether there is nothing left that is still to be told of the guest. What has ended of the
        account's since the first time is to be told again, in `domain`.
        """
        async with self.start(guest_id) as starting:
            await starting.close(user_id, now)
        async with self._database.statements() as statements:
            connection = statements.connection
            moved = (await connection.execute(_ADOPT, [user_id, tenant_id, guest_id])).rowcount
            await connection.execute(_TELL_ENDS, [domain, now, now, guest_id])
            # Asked after it has waited for whoever held an upload, and added what there is to tell.
            return moved, await told(connection, guest_id)

    async def erased(self, user_id: UUID) -> tuple[int, int, int]:
        """How many uploads and files were ended since their user is gone, and how many bytes the files had."""
        async with self._database.statements() as statements:
            cursor = await statements.connection.execute(_ERASED, [user_id], prepare=True)
            row = await cursor.fetchone()
        return (row["uploads"], row["files"], row["bytes"]) if row else (0, 0, 0)

    async def forget_user(self, user_id: UUID) -> None:
        """Forgets what there was of the user and has ended, and what others were still to be told of it."""
        async with self._database.transaction() as transaction:
            await transaction.connection.execute(_FORGET_USER, [user_id])
            await forget(transaction.connection, user_id)

    async def installation(self) -> UUID:
        """The id of this installation; the same for ever, and for all who share the database."""
        async with self._database.statements() as statements:
            await statements.connection.execute(_BE_SOMEBODY)
            row = await (await statements.connection.execute(_INSTALLATION)).fetchone()
        if row is None:
            raise LookupError("the installation has no id")
        return UUID(str(row["id"]))

    async def forget_ended(self, before: datetime, limit: int) -> int:
        """Forgets up to `limit` uploads that ended without a file before then; returns how many."""
        async with self._database.statements() as statements:
            return (await statements.connection.execute(_FORGET_ENDED, [before, limit])).rowcount


class Starting:
    """What a start looks at and writes, while nobody else starts an upload of the user."""

    def __init__(self, connection: Connection, user_id: UUID) -> None:
        self.connection = connection
        self._user_id = user_id

    async def look(self, wanted: Upload) -> Standing:
        """How the user stands, in one trip."""
        same = [wanted.user_id, wanted.file_hash, wanted.total_size, wanted.mime_type, wanted.filename]
        async with self.in_one_trip():
            closed = await self.connection.execute(_CLOSED, [self._user_id], prepare=True)
            found = await self.connection.execute(_SAME, [*same, wanted.create_time], prepare=True)
            used = await self.connection.execute(_USED, [self._user_id, wanted.create_time], prepare=True)
        row = await found.fetchone()
        return Standing(
            closed=await closed.fetchone() is not None,
            same=upload_of(row) if row else None,
            used=await _bytes(used),
        )

    def in_one_trip(self) -> AbstractAsyncContextManager[object]:
        """What is written in the block goes to the database at once."""
        return self.connection.pipeline()

    async def close(self, adopter_id: UUID, now: datetime) -> None:
        """From now on the user starts no more uploads: what there is goes to an account."""
        await self.connection.execute(_CLOSE, [self._user_id, adopter_id, now])

    async def insert(self, upload: Upload) -> None:
        """Stores a new upload, or one that is a file at once."""
        values: list[Any] = [upload.id, upload.user_id, upload.tenant_id, upload.filename, upload.mime_type]
        values += [upload.total_size, upload.chunk_size, upload.file_hash, upload.status]
        values += [upload.create_time, upload.expire_time, upload.finish_time]
        values.append(None if upload.activity is None else Jsonb(upload.activity))
        await self.connection.execute(_INSERT, values, prepare=True)

    async def prolong(self, upload: Upload, until: datetime) -> Upload:
        """Lets an active upload live until then at least."""
        await self.connection.execute(_PROLONG, [until, upload.id], prepare=True)
        return replace(upload, expire_time=max(until, upload.expire_time))


async def _one(connection: Connection, statement: str, values: Sequence[Any]) -> Upload | None:
    row = await (await connection.execute(statement, values, prepare=True)).fetchone()
    return upload_of(row) if row else None


async def _bytes(used: AsyncCursor[DictRow]) -> int:
    row = await used.fetchone()
    return int(row["bytes"]) if row else 0


async def _stored(connection: Connection, id: UUID) -> list[int]:
    cursor = await connection.execute(_STORED, [id], prepare=True)
    return [row["index"] for row in await cursor.fetchall()]


def _given(upload: Upload | None) -> Upload:
    if upload is None:
        raise LookupError("there is no such upload")
    return upload


def upload_of(row: Row) -> Upload:
    """A row of uploads."""
    return Upload(**row)
