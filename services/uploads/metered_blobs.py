"""Owns the count of bytes that go into a store and come out of it for callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, cast
from uuid import UUID

from runtime.telemetry import BLOB_READ, BLOB_WRITTEN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from services.uploads.blobs import Blobs


class MeteredBlobs:
    """Another store, with its bytes counted."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def write_chunk(self, upload_id: UUID, index: int, offset: int, data: bytes | memoryview) -> None:
        await self._blobs.write_chunk(upload_id, index, offset, data)
        BLOB_WRITTEN.inc(len(data))

    async def put(self, file_id: UUID, data: bytes | memoryview) -> None:
        await self._blobs.put(file_id, data)
        BLOB_WRITTEN.inc(len(data))

    async def read(self, file_id: UUID, start: int, end: int) -> AsyncIterator[bytes]:
        # What is closed early closes the file too, and not only when it is collected.
        async with aclosing(cast("AsyncGenerator[bytes]", self._blobs.read(file_id, start, end))) as pieces:
            async for piece in pieces:
                BLOB_READ.inc(len(piece))
                yield piece

    async def read_chunk(self, upload_id: UUID, index: int, offset: int, size: int) -> bytes:
        return await self._blobs.read_chunk(upload_id, index, offset, size)

    async def assemble(self, upload_id: UUID, file_id: UUID, chunks: int, size: int) -> None:
        await self._blobs.assemble(upload_id, file_id, chunks, size)

    async def discard(self, upload_id: UUID) -> None:
        await self._blobs.discard(upload_id)

    async def size(self, file_id: UUID) -> int | None:
        return await self._blobs.size(file_id)

    async def remove(self, file_id: UUID) -> None:
        await self._blobs.remove(file_id)

    async def mark(self) -> str | None:
        return await self._blobs.mark()

    async def set_mark(self, mark: str) -> None:
        await self._blobs.set_mark(mark)

    def uploads(self) -> AsyncIterator[tuple[UUID, datetime]]:
        return self._blobs.uploads()

    def files(self) -> AsyncIterator[tuple[UUID, datetime]]:
        return self._blobs.files()
