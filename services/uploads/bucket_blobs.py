"""Owns uploads and files in a bucket: a chunk is an object, and so is a file."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from runtime.config import ConfigError
from services.uploads.blobs import MARK, PIECE, BlobError, BlobMissing, id_of

# Seconds that a request may take, its repetitions included. Shorter than a call that waits for it.
PATIENCE: Final = 10.0
# Bytes of a ranged read: a bucket takes some 20 ms to answer, however little was asked for.
READ: Final = 4 * PIECE
# Bytes of a part of a multipart upload. S3 takes 10,000 parts, and all but the last must have 5 MiB.
PART: Final = 5 * 1024 * 1024
MOST_PARTS: Final = 10_000
# Parts on their way at the same time, and chunks.
PARALLEL: Final = 4
# Objects in an answer to a listing.
PAGE: Final = 1000

T = TypeVar("T")


class BucketBlobs:
    """`uploads/<id>/<index>` and `files/<id>`, below a prefix that others leave alone."""

    def __init__(self, store: ObjectStore, patience: float) -> None:
        self._store, self._patience = store, patience

    @classmethod
    def at(cls, url: str, patience: float = PATIENCE) -> BucketBlobs:
        """The bucket at `url`; what lets us in stands in the environment. Raises ConfigError."""
        bound = timedelta(seconds=patience)
        try:
            store = from_url(
                url,
                # An endpoint's scheme says whether it wants TLS; without one it is the cloud's own, which does.
                client_options={"allow_http": True, "connect_timeout": bound / 3, "timeout": bound},
                retry_config={
                    "max_retries": 4,
                    "retry_timeout": bound,
                    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1)},
                },
            )
        except (BaseError, ValueError, OSError) as error:
            raise ConfigError(f"SATCHEL_BLOBS: {error}") from error
        return cls(store, patience)

    async def write_chunk(self, upload_id: UUID, index: int, offset: int, data: bytes | memoryview) -> None:
        await self._answer(self._store.put_async(_chunk(upload_id, index), data, use_multipart=False))

    async def read_chunk(self, upload_id: UUID, index: int, offset: int, size: int) -> bytes:
        data = await self._chunk_of(upload_id, index)
        if len(data) < size:
            raise BlobMissing(f"chunk {index} has {len(data)} of {size} bytes")
        return data[:size]

    async def assemble(self, upload_id: UUID, file_id: UUID, chunks: int, size: int) -> None:
        if await self.size(file_id) != size:
            await self._put_file(_file(file_id), self._content(upload_id, chunks, size), size)
        await self.discard(upload_id)

    async def _put_file(self, path: str, content: AsyncIterator[bytes], size: int) -> None:
        """Stores what comes as a whole or not at all."""
        if size <= PART:
            data = b"".join([one async for one in content])
            await self._answer(self._store.put_async(path, data, use_multipart=False))
            return
        part = max(PART, -(-size // MOST_PARTS))
        try:
            # Without a bound of ours: every part has one, and who is cut off here leaves its parts behind.
            await self._store.put_async(path, content, chunk_size=part, max_concurrency=PARALLEL)
        except (BaseError, OSError) as error:
            raise _failed(error) from error

    async def _content(self, upload_id: UUID, chunks: int, size: int) -> AsyncIterator[bytes]:
        """The chunks in their order. Raises BlobMissing at the end when they are not `size` bytes."""
        found = 0
        async for data in _ahead((self._chunk_of(upload_id, index) for index in range(chunks)), PARALLEL):
            found += len(data)
            yield data
        if found != size:
            raise BlobMissing(f"the upload has {found} bytes, not {size}")

    async def put(self, file_id: UUID, data: bytes | memoryview) -> None:
        async def content() -> AsyncIterator[bytes]:
            for at in range(0, len(data), PIECE):
                yield bytes(data[at : at + PIECE])

        await self._put_file(_file(file_id), content(), len(data))

    async def discard(self, upload_id: UUID) -> None:
        async for page in self._pages(f"uploads/{upload_id}"):
            await self._delete([path for path, _ in page])

    async def read(self, file_id: UUID, start: int, end: int) -> AsyncIterator[bytes]:
        path = _file(file_id)
        if (size := await self.size(file_id)) is None or size < end:
            raise BlobMissing("there is no such file" if size is None else f"the file ends at {size}")
        ranges = (self._range(path, at, min(end, at + READ)) for at in range(start, end, READ))
        async for data in _ahead(ranges, 2):
            for at in range(0, len(data), PIECE):
                yield bytes(data[at : at + PIECE])

    async def size(self, file_id: UUID) -> int | None:
        with suppress(BlobMissing):
            return (await self._answer(self._store.head_async(_file(file_id))))["size"]
        return None

    async def remove(self, file_id: UUID) -> None:
        await self._delete([_file(file_id)])

    async def mark(self) -> str | None:
        async def get() -> bytes:
            return bytes(await (await self._store.get_async(MARK)).bytes_async())

        with suppress(BlobMissing):
            return (await self._answer(get())).decode(errors="replace")
        return None

    async def set_mark(self, mark: str) -> None:
        await self._answer(self._store.put_async(MARK, mark.encode(), use_multipart=False))

    async def uploads(self) -> AsyncIterator[tuple[UUID, datetime]]:
        changed: dict[UUID, datetime] = {}
        async for page in self._pages("uploads"):
            for path, time in page:
                match path.split("/"):
                    case [_, name, index] if index.isdecimal() and (upload_id := id_of(name)):
                        changed[upload_id] = max(time, changed.get(upload_id, time))
        for one in changed.items():
            yield one

    async def files(self) -> AsyncIterator[tuple[UUID, datetime]]:
        async for page in self._pages("files"):
            for path, time in page:
                match path.split("/"):
                    case [_, name] if file_id := id_of(name):
                        yield file_id, time

    async def _pages(self, prefix: str) -> AsyncIterator[list[tuple[str, datetime]]]:
        """The objects below `prefix`, and when each was written."""
        pages = self._store.list(prefix, chunk_size=PAGE)
        while page := await self._answer(anext(pages, None)):
            yield [(one["path"], one["last_modified"]) for one in page]

    async def _chunk_of(self, upload_id: UUID, index: int) -> bytes:
        async def get() -> bytes:
            return bytes(await (await self._store.get_async(_chunk(upload_id, index))).bytes_async())

        return await self._answer(get())

    async def _range(self, path: str, start: int, end: int) -> memoryview:
        data = memoryview(await self._answer(self._store.get_range_async(path, start=start, end=end)))
        if len(data) != end - start:
            raise BlobMissing(f"the file has {len(data)} of {end - start} bytes from {start} on")
        return data

    async def _delete(self, paths: list[str]) -> None:
        # Some clouds say so when there was nothing to delete.
        with suppress(BlobMissing):
            await self._answer(self._store.delete_async(paths))

    async def _answer(self, request: Awaitable[T]) -> T:
        """What a request brings. Raises BlobMissing or BlobError, in time."""
        try:
            async with asyncio.timeout(self._patience):
                return await request
        except FileNotFoundError:
            await self._check_bucket()
            raise BlobMissing("there are no such bytes") from None
        except (BaseError, OSError) as error:
            raise _failed(error) from error

    async def _check_bucket(self) -> None:
        """Raises BlobError when there is no bucket: then nothing is known to be missing."""
        try:
            async with asyncio.timeout(self._patience):
                await anext(self._store.list("uploads", chunk_size=1), None)
        except (BaseError, OSError) as error:
            raise _failed(error) from error


def _failed(error: Exception) -> BlobError:
    structlog.get_logger().error("blobs_failed", error=str(error) or type(error).__name__)
    return BlobError("the file store does not work")


async def _ahead(requests: Iterator[Coroutine[Any, Any, T]], many: int) -> AsyncIterator[T]:
    """What the requests bring, in their order, with up to `many` of them on their way."""
    started = deque(asyncio.create_task(one) for one in islice(requests, many))
    try:
        while started:
            brought = await started.popleft()
            started.extend(asyncio.create_task(one) for one in islice(requests, 1))
            yield brought
    finally:
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)


def _chunk(upload_id: UUID, index: int) -> str:
    return f"uploads/{upload_id}/{index}"


def _file(file_id: UUID) -> str:
    return f"files/{file_id}"
