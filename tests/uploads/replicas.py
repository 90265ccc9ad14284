"""Replicas of the uploads service in this process, on one database and one directory, and the steps they take."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from runtime.call import Principal
from runtime.clock import utc_now
from runtime.database import Database, database
from runtime.outcomes import Outcomes
from services.uploads.digests import hashing
from services.uploads.directory_blobs import DirectoryBlobs
from services.uploads.files_domain import Files
from services.uploads.finalizing_domain import Finalizer
from services.uploads.limits_domain import TypeLimit, UploadLimits
from services.uploads.links import Links
from services.uploads.outbox_domain import Outbox
from services.uploads.outbox_store import add
from services.uploads.streamed_domain import Streamed
from services.uploads.sweeps_domain import Sweeps
from services.uploads.uploads_domain import Asked, Uploads
from services.uploads.uploads_store import UploadStore
from tests.sending import files_below

CHUNK = 16
QUOTA = 4096
# Has no mark of its own: any bytes are such a file.
TYPE = "application/octet-stream"
LIMITS = UploadLimits(
    chunk_size=CHUNK,
    expires_after_seconds=3600,
    types=(TypeLimit(name="any", mime_types={TYPE: "bin"}, max_size=QUOTA),),
    quotas={"free": QUOTA},
)
PATIENCE = 20.0


class Clock:
    """The time that the replicas are told."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


class Actor:
    """A call that stops before and after each touch of the bytes, and goes on when it is let."""

    current: ContextVar[Actor | None] = ContextVar("actor", default=None)

    def __init__(self, name: str, doing: Coroutine[Any, Any, Any]) -> None:
        self.name = name
        self._waiting: list[asyncio.Future[None]] = []
        self._moved = asyncio.Event()
        self._free = False
        token = Actor.current.set(self)
        self.task = asyncio.create_task(doing)
        Actor.current.reset(token)
        self.task.add_done_callback(lambda _: self._moved.set())

    async def stop(self) -> None:
        if not self._free:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._moved.set()
            await future

    @property
    def still(self) -> bool:
        """Whether it waits to be let go on, or has ended."""
        return bool(self._waiting) or self.task.done()

    async def until_still(self, db: Database) -> None:
        """Waits until it stops, ends, or waits for what another one holds."""
        async with asyncio.timeout(PATIENCE):
            while not self.still and not await lock_waiters(db):
                self._moved.clear()
                try:
                    await asyncio.wait_for(self._moved.wait(), 0.01)
                except TimeoutError:
                    continue

    def go_on(self) -> None:
        """Lets it go, up to where it stops next."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def set_free(self) -> None:
        """It does not stop any more."""
        self._free = True
        self.go_on()


async def lock_waiters(db: Database) -> int:
    """How many connections wait for a lock that another one holds."""
    async with db.statements() as statements:
        cursor = await statements.connection.execute(
            "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'"
        )
        row = await cursor.fetchone()
        return int(row["waiting"]) if row else 0


class Steered:
    """Real blobs that count what is read and stop the actors that touch them."""

    def __init__(self, real: DirectoryBlobs) -> None:
        self.real = real
        self.read_chunks: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def write_chunk(self, upload_id: UUID, index: int, offset: int, data: bytes | memoryview) -> None:
        await _stop()
        await self.real.write_chunk(upload_id, index, offset, data)
        await _stop()

    async def read_chunk(self, upload_id: UUID, index: int, offset: int, size: int) -> bytes:
        await _stop()
        self.read_chunks.append(index)
        return await self.real.read_chunk(upload_id, index, offset, size)

    async def assemble(self, upload_id: UUID, file_id: UUID, chunks: int, size: int) -> None:
        await _stop()
        await self.real.assemble(upload_id, file_id, chunks, size)
        await _stop()

    async def discard(self, upload_id: UUID) -> None:
        await _stop()
        await self.real.discard(upload_id)


async def _stop() -> None:
    actor = Actor.current.get()
    if actor is not None:
        await actor.stop()


@dataclass(frozen=True, kw_only=True)
class Replica:
    """What a process of the service is made of."""

    blobs: Steered
    uploads: Uploads
    streamed: Streamed
    finalizer: Finalizer
    files: Files
    sweeps: Sweeps


@dataclass(kw_only=True)
class World:
    """Replicas on one database and one directory."""

    db: Database
    store: UploadStore
    root: Path
    clock: Clock = field(default_factory=Clock)

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """A process, for as long as the block runs."""
        async with AsyncExitStack() as stack:
            real = DirectoryBlobs(self.root)
            stack.callback(real.close)
            blobs = Steered(real)
            digests = stack.enter_context(hashing(blobs))
            links = Links("http://files", b"secret", {TYPE: "bin"})
            told = (links, Outbox(add, lambda: None, now=self.clock))
            outcomes = Outcomes()
            uploads = Uploads(self.store, blobs, digests, LIMITS, outcomes=outcomes, now=self.clock)
            finalizer = Finalizer(self.store, blobs, digests, *told, outcomes=outcomes, now=self.clock)
            await stack.enter_async_context(finalizer.running())
            yield Replica(
                blobs=blobs,
                uploads=uploads,
                streamed=Streamed(uploads, self.store, blobs, digests),
                finalizer=finalizer,
                files=Files(self.store, blobs, *told, now=self.clock),
                sweeps=Sweeps(self.store, blobs, digests, outcomes=outcomes, now=self.clock),
            )

    async def told_of(self, upload_id: UUID) -> int:
        """How often the feed is to be told that there is this file."""
        async with self.db.statements() as statements:
            cursor = await statements.connection.execute(
                "SELECT count(*) AS told FROM uploads.outbox WHERE record_id = %b AND data IS NOT NULL",
                [str(upload_id)],
            )
            row = await cursor.fetchone()
            return int(row["told"]) if row else 0

    def tree(self) -> set[str]:
        """Every file below the directory of the store, but the one that tells whose they are."""
        return set(files_below(self.root))

    def part(self, upload_id: UUID) -> Path:
        """Where the bytes of an upload are on their way."""
        return self.root / "uploads" / f"{upload_id}.part"

    def file(self, upload_id: UUID) -> Path:
        """Where the bytes of a file are."""
        return self.root / "files" / upload_id.hex[:2] / str(upload_id)


@asynccontextmanager
async def world(url: str, root: Path) -> AsyncIterator[World]:
    async with database(url, connections=16, name="test") as db:
        yield World(db=db, store=UploadStore(db, patience=timedelta(seconds=PATIENCE)), root=root)


def somebody() -> Principal:
    return Principal(user_id=uuid4(), sign_in_id=uuid4(), tenant_id=1, role="user", tier="free")


def asked(data: bytes, **given: Any) -> Asked:
    """What a phone says of a file that it wants to send."""
    words = {"filename": "walk.bin", "total_size": len(data), "mime_type": TYPE, "file_hash": sha256(data)}
    return Asked(**{**words, **given})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def piece(data: bytes, index: int) -> bytes:
    """A chunk of a file."""
    return data[index * CHUNK : (index + 1) * CHUNK]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
