"""Owns how an upload becomes a file: once, whoever asks, whatever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

from runtime.call import Principal
from runtime.clock import format_time
from runtime.errors import Failure, Reason, Violation, invalid
from runtime.telemetry import logger
from services.uploads.blobs import BlobError, BlobMissing
from services.uploads.sniffing import HEAD_BYTES, fits
from services.uploads.uploads_domain import Upload, check_alive, kept, own, parse_upload_id

if TYPE_CHECKING:
    from runtime.outcomes import Outcomes
    from services.uploads.blobs import Blobs
    from services.uploads.digests import Digests
    from services.uploads.links import Links
    from services.uploads.outbox_domain import Outbox
    from services.uploads.uploads_store import HeldUpload, UploadStore

DOMAIN: Final = "file"
# Seconds that a call waits for a large file before it says that it takes longer.
PATIENCE: Final = 10.0
PAUSE: Final = 2.0
# Each holds a connection to the database while it reads what was not hashed before.
MAX_AT_ONCE: Final = 4
MAX_NAMED: Final = 20


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What an upload has become."""

    file_url: str
    file_size: int
    """Bytes."""
    checksum: bytes
    """sha256."""


class Finalizer:
    """Makes files of uploads."""

    def __init__(
        self,
        store: UploadStore,
        blobs: Blobs,
        digests: Digests,
        links: Links,
        outbox: Outbox,
        *,
        outcomes: Outcomes,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._digests = digests
        self._links = links
        self._outbox = outbox
        self._outcomes = outcomes
        self._now = now
        self._running: dict[UUID, asyncio.Task[Upload]] = {}
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    def receipt_of(self, upload: Upload) -> Receipt | None:
        """What an upload has become; None while it is on its way."""
        return self.receipt(upload) if upload.status == "completed" else None

    def receipt(self, upload: Upload) -> Receipt:
        """What a completed upload has become."""
        return Receipt(file_url=self._links.url(upload), file_size=upload.total_size, checksum=upload.file_hash)

    async def finalize(self, caller: Principal, upload_id: str) -> Receipt:
        """Makes the upload a file, or tells what it has become already.

        Raises Failure: CHUNKS_MISSING, FILE_CHECKSUM, FIELD_INVALID, UPLOAD_NOT_FOUND, UPLOAD_FORBIDDEN,
        UPLOAD_EXPIRED; UNAVAILABLE when it takes longer than a call may, and goes on.
        """
        upload = own(await self._store.find(parse_upload_id(upload_id)), caller, self._now())
        if upload.status == "completed":
            return self.receipt(upload)
        task = self._running.get(upload.id)
        if task is None:
            task = self._running[upload.id] = asyncio.create_task(self._finalize(upload.id), name="finalize an upload")
            task.add_done_callback(lambda _: self._running.pop(upload.id, None))
        await asyncio.wait({task}, timeout=PATIENCE)
        if not task.done():
            raise Failure(Reason.UNAVAILABLE, "The file is being put together; ask again.", retry_after=PAUSE)
        return self.receipt(task.result())

    async def _finalize(self, id: UUID) -> Upload:
        async with self._places:
            async with self._store.hold(id) as held:
                upload = self._given(held)
                if upload.status == "active":
                    _check_whole(upload, await held.stored())
                    await held.assembling()
            # Held anew, so that the status tells what goes on; whoever comes second waits here, and finds it done.
            refusal: Failure | None = None
            async with self._cleared(id), self._store.hold(id) as held:
                upload = self._given(held)
                if upload.status == "completed":
                    return upload
                source, refusal = await self._checked(upload)
                if refusal is None:
                    now = self._now()
                    await kept(self._blobs.assemble(source.id, id, upload.chunks, upload.total_size))
                    await held.end("completed", now)
                    await self._outbox.tell(held.connection, upload, DOMAIN, record_of(upload, self._links, now))
                else:
                    await held.end("failed", self._now(), refusal.message)
        if refusal is None:
            self._outcomes.uploaded(upload, upload.total_size)
        else:
            self._outcomes.abandoned(upload)
        if refusal is not None or upload.contested:
            with suppress(BlobError):  # what stays is swept away
                await self._blobs.discard(id)
                await self._blobs.discard(_apart_id(id))
        if refusal is not None:
            raise refusal
        self._outbox.look()
        return upload

    def _given(self, held: HeldUpload) -> Upload:
        if held.upload is None:
            raise Failure(Reason.UPLOAD_NOT_FOUND)
        check_alive(held.upload, self._now())
        return held.upload

    async def _checked(self, upload: Upload) -> tuple[Upload, Failure | None]:
        """Where the bytes are, and why they are not the file that was announced; None: they are."""
        try:
            if await self._blobs.size(upload.id) == upload.total_size:
                return upload, None  # they were found to be, and it died before it could say so
            source = await self._apart(upload) if upload.contested else upload
            if await self._digests.whole(source) != upload.file_hash:
                return source, Failure(Reason.FILE_CHECKSUM, violations=[Violation("file_hash", "MISMATCH")])
            head = await self._blobs.read_chunk(source.id, 0, 0, min(HEAD_BYTES, upload.size_of(0)))
        except BlobMissing:
            logger().error("bytes of an upload are lost", upload=upload.id)
            lost = "Some of the file was lost here; start a new upload."
            return upload, Failure(Reason.FILE_CHECKSUM, lost, violations=[Violation("file_hash", "MISMATCH")])
        except BlobError as error:
            logger().warning("an upload cannot be read", upload=upload.id, error=str(error))
            raise Failure(Reason.UNAVAILABLE, retry_after=PAUSE) from None
        if not fits(upload.mime_type, head):
            return source, invalid("mime_type", "is not what the file holds", "MISMATCH")
        return source, None

    @asynccontextmanager
    async def _cleared(self, id: UUID) -> AsyncIterator[None]:
        """Leaves no copy of a contested upload behind when the block fails."""
        try:
            yield
        except BaseException:
            with suppress(BlobError):
                await asyncio.shield(self._blobs.discard(_apart_id(id)))
            raise

    async def _apart(self, upload: Upload) -> Upload:
        """A contested upload's bytes as they are now, where a sender who comes too late cannot write to them.

        Who had a chunk taken over may still be writing it: after it was read, and even after it has become a file.
        Raises BlobError.
        """
        apart = replace(upload, id=_apart_id(upload.id))
        for index in range(upload.chunks):
            offset = index * upload.chunk_size
            data = await self._blobs.read_chunk(upload.id, index, offset, upload.size_of(index))
            await self._blobs.write_chunk(apart.id, index, offset, data)
        self._digests.forget(upload.id)
        return apart

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends what is still going on when the block does; whoever asks next begins it again."""
        try:
            yield
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)


def record_of(upload: Upload, links: Links, now: datetime) -> dict[str, object]:
    """The data of the record of an upload that has become a file now."""
    return {
        "filename": upload.filename,
        "mime_type": upload.mime_type,
        "size": upload.total_size,
        "checksum": upload.file_hash.hex(),
        "file_url": links.url(upload),
        "upload_id": str(upload.id),
        "create_time": format_time(now),
    }


def _apart_id(id: UUID) -> UUID:
    """Where the copy of a contested upload lies; always the same, so that a second try writes over the first one."""
    return uuid5(id, "apart")


def _check_whole(upload: Upload, stored: list[int]) -> None:
    missing = sorted(set(range(upload.chunks)) - set(stored))
    if missing:
        named = ", ".join(str(index) for index in missing[:MAX_NAMED])
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise Failure(
            Reason.CHUNKS_MISSING,
            f"Chunks are missing: {named}{more}.",
            violations=[Violation(f"chunks[{index}]", "REQUIRED") for index in missing],
        )
