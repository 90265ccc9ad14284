"""Owns what the service needs of the place where the bytes of uploads live, and which of two kinds it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from runtime.config import ConfigError

BUCKETS: Final = ("s3://", "gs://", "az://")
# Beside `uploads` and `files`: whose they are.
MARK: Final = "installation"

# Bytes. What gRPC streams fastest.
PIECE: Final = 256 * 1024


class BlobError(Exception):
    """The store is away or fails: the same call may work later. Why stands in the log."""


class BlobsFull(BlobError):
    """There is no space left."""


class BlobMissing(BlobError):
    """The store answers, and the bytes that were asked for are not all there: the same call will fail again."""


class Blobs(Protocol):
    """Uploads that grow by chunks, and the files that they become.

    Every method but `read_chunk` and `read` may be repeated, whatever became of the call before: the outcome is that of
    one call. Each of them raises BlobError, and leaves what was durable as it was.
    """

    async def write_chunk(self, upload_id: UUID, index: int, offset: int, data: bytes | memoryview) -> None:
        """Stores chunk `index`, which starts at byte `offset` of the file. Durable when it returns.

        Chunks come in any order, also at once. Who writes a chunk again writes the same bytes: the store keeps no
        hashes, and which of two different contents stays is anybody's guess.
        """
        ...

    async def read_chunk(self, upload_id: UUID, index: int, offset: int, size: int) -> bytes:
        """A chunk of `size` bytes that was written before. Raises BlobMissing when the upload has no such bytes.

        A directory knows no chunks, and gives zeros for one that was never written ahead of one that was.
        """
        ...

    async def assemble(self, upload_id: UUID, file_id: UUID, chunks: int, size: int) -> None:
        """Makes the file out of the upload's `chunks` chunks, `size` bytes in all. Durable when it returns.

        The upload is gone then. Raises BlobMissing when they are fewer bytes, or more. No chunk may be on its way.
        """
        ...

    async def put(self, file_id: UUID, data: bytes | memoryview) -> None:
        """Stores a file that is all there, as a whole or not at all. Durable when it returns."""
        ...

    async def discard(self, upload_id: UUID) -> None:
        """Removes what there is of the upload."""
        ...

    def read(self, file_id: UUID, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, in pieces of at most PIECE.

        Raises BlobMissing ahead of the first piece when there is no such file, or it ends before `end`.
        """
        ...

    async def size(self, file_id: UUID) -> int | None:
        """Bytes of the file; None when there is no such file."""
        ...

    async def remove(self, file_id: UUID) -> None:
        """Removes the file if there is one."""
        ...

    async def mark(self) -> str | None:
        """Whose store it is, as `set_mark` was told; None when it was not."""
        ...

    async def set_mark(self, mark: str) -> None:
        """Says whose store it is. Durable when it returns."""
        ...

    def uploads(self) -> AsyncIterator[tuple[UUID, datetime]]:
        """Every upload there is something of, and when it last changed."""
        ...

    def files(self) -> AsyncIterator[tuple[UUID, datetime]]:
        """Every file there is, and when it last changed."""
        ...


@asynccontextmanager
async def open_blobs(where: str, home: Path) -> AsyncIterator[Blobs]:
    """The store that `where` names, for as long as the block runs.

    A directory, or s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, with the credentials from
    the environment variables that the tools of these clouds read too. Empty: a directory in `home`. Raises ConfigError.
    """
    # Here, because they need the exceptions above; and a directory needs nothing of what buckets take to load.
    if where.startswith(BUCKETS):
        from services.uploads.bucket_blobs import BucketBlobs

        yield BucketBlobs.at(where)
    elif "://" in where:
        raise ConfigError(f"SATCHEL_BLOBS: a directory or one of {', '.join(BUCKETS)}, not {where.partition('?')[0]}")
    else:
        from services.uploads.directory_blobs import DirectoryBlobs

        store = DirectoryBlobs(Path(where) if where else home / "blobs")
        try:
            yield store
        finally:
            store.close()


def id_of(name: str) -> UUID | None:
    """The id that a stored name is; None for a name that is not ours."""
    with suppress(ValueError):
        if str(found := UUID(name)) == name:
            return found
    return None
