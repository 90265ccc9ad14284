"""Owns uploads in one go: a stream of bytes cut into chunks, or a stream of chunks; what has come, stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.coalesce import Coalesced
from runtime.errors import invalid
from services.uploads.uploads_domain import Progress, Upload, Uploads, kept

if TYPE_CHECKING:
    from services.uploads.blobs import Blobs
    from services.uploads.digests import Digests
    from services.uploads.uploads_store import UploadStore

# Chunks of one stream that are written at the same time.
AT_ONCE: Final = 4
# Chunks that are claimed in one trip to the database.
WINDOW: Final = 16
# Seconds within which chunks that were written are noted in one trip: of a fast line two or three.
NOTED_WITHIN: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class SentChunk:
    """A chunk as it came in a stream of chunks."""

    index: int
    data: bytes
    checksum: str
    """sha256 in hexadecimal digits."""


class _Several:
    """Runs a few things at once; the first that fails ends the others' turn."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def add(self, doing: Coroutine[Any, Any, Any]) -> None:
        """Begins it as soon as there is a place. Raises what one before has raised."""
        try:
            while len(self._tasks) >= AT_ONCE:
                await self._some()
        except BaseException:
            doing.close()
            raise
        self._tasks.add(asyncio.create_task(doing))

    async def all(self) -> None:
        """Waits for all of them. Raises what one has raised."""
        while self._tasks:
            await self._some()

    async def settle(self) -> None:
        """Waits for all of them, whatever becomes of them."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _some(self) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


class Streamed:
    """Takes many chunks in one call."""

    def __init__(self, uploads: Uploads, store: UploadStore, blobs: Blobs, digests: Digests) -> None:
        self._uploads = uploads
        self._store = store
        self._blobs = blobs
        self._digests = digests

    async def chunks(self, upload: Upload, sent: AsyncIterator[SentChunk]) -> tuple[int, Progress]:
        """Stores chunk after chunk, a few at once; returns how many, and what is stored then.

        Raises Failure as Uploads.chunk for the first that is refused.
        """
        several, count = _Several(), 0
        try:
            async for one in sent:
                await several.add(self._uploads.chunk(upload, one.index, one.data, one.checksum))
                count += 1
            await several.all()
        finally:
            await several.settle()
        return count, (await self._uploads.standing(upload)).progress

    async def content(self, upload: Upload, offset: float, pieces: AsyncIterator[memoryview]) -> tuple[int, Progress]:
        """Stores everything from `offset` on; returns what is stored then: up to the first gap, and in all.

        Raises Failure: FIELD_INVALID, UPLOAD_NOT_FOUND, UPLOAD_EXPIRED, UNAVAILABLE.
        """
        first, rest = divmod(offset, upload.chunk_size)
        if offset == upload.total_size:  # what the status of a complete upload says, wherever its last chunk begins
            first, rest = upload.chunks, 0
        if rest or not 0 <= offset <= upload.total_size:
            raise invalid("upload-offset", f"must be a multiple of {upload.chunk_size} within the file")
        if upload.status != "active":
            return upload.total_size, Progress(stored=upload.chunks, chunks=upload.chunks)
        taking = _Taking(self._uploads, self._store, self._blobs, self._digests, upload)
        try:
            await taking.take(int(first), pieces)
        finally:
            # Though the phone may be gone: what has come need not come again.
            await asyncio.shield(taking.settle())
        status = await self._uploads.standing(upload)
        return status.offset, status.progress


class _Taking:
    """One stream of bytes on its way into the store."""

    def __init__(self, uploads: Uploads, store: UploadStore, blobs: Blobs, digests: Digests, upload: Upload) -> None:
        self._uploads = uploads
        self._store = store
        self._blobs = blobs
        self._digests = digests
        self._upload = upload
        self._claim = os.urandom(16)
        """Not as long as a sha256, and nobody else's."""
        self._claimed: set[int] = set()
        self._asked = 0
        """Up to here chunks were claimed."""
        self._overtaken = False
        """Whether something was written that does not count."""
        self._several = _Several()
        self._noted = Coalesced(self._note, interval=NOTED_WITHIN)

    async def take(self, index: int, pieces: AsyncIterator[memoryview]) -> None:
        """Stores the chunks from `index` on."""
        upload, parts, size = self._upload, list[memoryview](), 0
        self._asked = index
        async for piece in pieces:
            while piece:
                if index == upload.chunks:
                    raise invalid("content", f"has more than the {upload.total_size} bytes of the upload")
                room = upload.size_of(index) - size
                parts.append(piece[:room])
                size += len(parts[-1])
                piece = piece[room:]
                if size == upload.size_of(index):
                    await self._put(index, parts[0] if len(parts) == 1 else b"".join(parts))
                    parts, size, index = [], 0, index + 1
        await self._several.all()

    async def settle(self) -> None:
        """Ends what is being written, and gives back what is not."""
        await self._several.settle()
        with suppress(Exception):  # claims that stay are taken over by whoever comes next
            await self._store.release(self._upload.id, self._claim)
        if self._overtaken:
            with suppress(Exception):  # bytes that stay are swept away
                await self._uploads.clear(self._upload.id)

    async def _put(self, index: int, data: bytes | memoryview) -> None:
        if index >= self._asked:
            self._asked = min(index + WINDOW, self._upload.chunks)
            self._claimed = await self._store.claim(
                self._upload.id, self._claim, range(index, self._asked), self._uploads.now()
            )
        if index in self._claimed:  # the others are stored
            await self._digests.caught_up(self._upload)
            await self._several.add(self._write(index, data))

    async def _write(self, index: int, data: bytes | memoryview) -> None:
        upload = self._upload
        await kept(self._blobs.write_chunk(upload.id, index, index * upload.chunk_size, data))
        if await self._noted.get(index):
            self._digests.stored(upload, index, data, checked=False)
        else:
            self._overtaken = True

    async def _note(self, indexes: Sequence[int]) -> dict[int, bool]:
        return dict.fromkeys(await self._store.note(self._upload.id, self._claim, indexes), True)
