"""Owns uploads and files in a directory: chunks are written in place, and a file is a renamed upload."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

import structlog

from runtime.config import ConfigError
from services.uploads.blobs import MARK, PIECE, BlobError, BlobMissing, BlobsFull, id_of

# Disks want a few requests at once; more threads would only stand in line at them.
THREADS: Final = 8
# Bytes read in one visit to a thread. The next ones are read while these are sent.
READ: Final = 2 * PIECE
# Entries of a directory that are looked at in one visit to a thread.
ENTRIES: Final = 1000
# Names that are known to be durable. To forget them costs one fsync each.
KNOWN: Final = 10_000

# EFBIG is what a limit on the size of files says.
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

CLOSED: Final = -1
# Nothing that stands in a file's place is followed out of the directory.
FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC

P = ParamSpec("P")
T = TypeVar("T")


class DirectoryBlobs:
    """`uploads/<id>.part` and `files/<first two digits>/<id>`, below a directory that others leave alone."""

    def __init__(self, root: Path) -> None:
        self._uploads, self._files, self._mark = root / "uploads", root / "files", root / MARK
        self._names = _Names()
        try:
            if not root.is_dir():
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._names.keep(root)
            for directory in (self._uploads, self._files):
                directory.mkdir(mode=0o700, exist_ok=True)
                self._names.keep(directory)
        except OSError as error:
            raise ConfigError(f"SATCHEL_BLOBS: {root} cannot be written ({error.strerror})") from error
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")

    def close(self) -> None:
        """Waits for the reads and writes in progress."""
        self._threads.shutdown()

    async def write_chunk(self, upload_id: UUID, index: int, offset: int, data: bytes | memoryview) -> None:
        await self._run(self._write_chunk, self._part(upload_id), offset, data)

    def _write_chunk(self, part: Path, offset: int, data: bytes | memoryview) -> None:
        _write(part, offset, data)
        self._names.keep(part)

    async def read_chunk(self, upload_id: UUID, index: int, offset: int, size: int) -> bytes:
        return await self._run(_read_chunk, self._part(upload_id), offset, size)

    async def assemble(self, upload_id: UUID, file_id: UUID, chunks: int, size: int) -> None:
        await self._run(self._assemble, self._part(upload_id), self._file(file_id), size)

    def _assemble(self, part: Path, file: Path, size: int) -> None:
        if not _is_there(file, size):
            if size == 0:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | FLAGS, 0o600))
            if (found := _size(part)) != size:
                raise BlobMissing(f"the upload has {found} bytes, not {size}")
            self._rename(part, file)
        # Also when the file was there: who made it may have died before this.
        _sync_directory(file.parent)
        _sync_directory(self._uploads)

    async def put(self, file_id: UUID, data: bytes | memoryview) -> None:
        await self._run(self._put, self._part(file_id), self._file(file_id), data)

    def _put(self, part: Path, file: Path, data: bytes | memoryview) -> None:
        _write(part, 0, data)
        self._rename(part, file)
        _sync_directory(file.parent)

    def _rename(self, part: Path, file: Path) -> None:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        self._names.keep(file.parent)
        part.rename(file)

    async def discard(self, upload_id: UUID) -> None:
        with suppress(BlobMissing):
            await self._run(self._part(upload_id).unlink)

    async def read(self, file_id: UUID, start: int, end: int) -> AsyncIterator[bytes]:
        file = await self._run(_File, self._file(file_id), end)
        ahead = self._start(file.read, start, end)
        try:
            while start < end:
                pieces, start = await ahead, start + READ
                if start < end:
                    ahead = self._start(file.read, start, end)
                for piece in pieces:
                    yield piece
        finally:
            ahead.cancel()

    async def size(self, file_id: UUID) -> int | None:
        with suppress(BlobMissing):
            return await self._run(_size, self._file(file_id))
        return None

    async def remove(self, file_id: UUID) -> None:
        with suppress(BlobMissing):
            await self._run(_remove, self._file(file_id))

    async def mark(self) -> str | None:
        with suppress(BlobMissing):
            return (await self._run(self._mark.read_bytes)).decode(errors="replace")
        return None

    async def set_mark(self, mark: str) -> None:
        await self._run(_replace, self._mark, mark.encode())

    async def uploads(self) -> AsyncIterator[tuple[UUID, datetime]]:
        async for name, time in self._listed(self._uploads):
            stem, dot, suffix = name.partition(".")
            if (upload_id := id_of(stem)) and dot + suffix == ".part":
                yield upload_id, time

    async def files(self) -> AsyncIterator[tuple[UUID, datetime]]:
        for shard in range(256):
            async for name, time in self._listed(self._files / f"{shard:02x}"):
                if (file_id := id_of(name)) and file_id.bytes[0] == shard:
                    yield file_id, time

    async def _listed(self, directory: Path) -> AsyncIterator[tuple[str, datetime]]:
        try:
            entries = await self._run(os.scandir, directory)
        except BlobMissing:
            return
        with entries:
            while (batch := await self._run(_next_files, entries)) is not None:
                for one in batch:
                    yield one

    def _part(self, upload_id: UUID) -> Path:
        return self._uploads / f"{upload_id}.part"

    def _file(self, file_id: UUID) -> Path:
        return self._files / file_id.hex[:2] / str(file_id)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._start(function, *args, **kwargs)

    def _start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        return asyncio.wrap_future(self._threads.submit(lambda: self._call(function, *args, **kwargs)))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            # Without its own directories the store is away (a disk that is not mounted): then nothing is known.
            if isinstance(error, FileNotFoundError) and os.path.isdir(self._uploads):
                raise BlobMissing("there are no such bytes") from None
            structlog.get_logger().error("blobs_failed", error=str(error))
            if error.errno in FULL:
                raise BlobsFull("there is no space for files") from error
            raise BlobError("the file store does not work") from error


class _File:
    """A file that is read. It is closed when nobody holds it any more: not under a thread whose reader has gone."""

    def __init__(self, path: Path, end: int) -> None:
        self._descriptor = CLOSED
        self._descriptor = os.open(path, os.O_RDONLY | FLAGS)
        if (size := os.fstat(self._descriptor).st_size) < end:
            raise BlobMissing(f"the file ends at {size}")

    def read(self, start: int, end: int) -> list[bytes]:
        """The next READ bytes, in pieces. Raises BlobMissing when the file was cut since it was opened."""
        end = min(end, start + READ)
        pieces = [os.pread(self._descriptor, min(PIECE, end - at), at) for at in range(start, end, PIECE)]
        if (found := sum(map(len, pieces))) != end - start:
            raise BlobMissing(f"the file has {found} of {end - start} bytes from {start} on")
        return pieces

    def __del__(self) -> None:
        if self._descriptor != CLOSED:
            os.close(self._descriptor)


class _Names:
    """Which names of files and directories are known to survive a power cut: a file's own fsync does not do that."""

    def __init__(self) -> None:
        self._known: set[Path] = set()

    def keep(self, path: Path) -> None:
        """Makes the name durable. Also when it was there before: who made it may have died before doing this."""
        if path not in self._known:
            _sync_directory(path.parent)
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known.add(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_data(descriptor: int) -> None:
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:  # macOS
        os.fsync(descriptor)


def _write(part: Path, offset: int, data: bytes | memoryview) -> None:
    """Writes in place; the bytes are durable when it returns, and a name that is new is not yet.

    Opened for this write alone: the system tells of what it has lost once for each opening, and not whose it was.
    """
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | FLAGS, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        _sync_data(descriptor)
    finally:
        os.close(descriptor)


def _read_chunk(part: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(part, os.O_RDONLY | FLAGS)
    try:
        data = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise BlobMissing(f"the upload has {len(data)} of {size} bytes from {offset} on")
    return data


def _remove(file: Path) -> None:
    file.unlink()
    # What was erased does not come back with a power cut.
    _sync_directory(file.parent)


def _replace(path: Path, data: bytes) -> None:
    """Writes a small file, as a whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | FLAGS, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.rename(path)
    _sync_directory(path.parent)


def _size(path: Path) -> int:
    return path.lstat().st_size


def _is_there(path: Path, size: int) -> bool:
    with suppress(FileNotFoundError):
        return _size(path) == size
    return False


def _next_files(entries: Iterator[os.DirEntry[str]]) -> list[tuple[str, datetime]] | None:
    """The plain files among the next entries; None at the end."""
    batch = list(islice(entries, ENTRIES))
    found = []
    for entry in batch:
        # What was removed meanwhile is not there.
        with suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                time = entry.stat(follow_symlinks=False).st_mtime
                found.append((entry.name, datetime.fromtimestamp(time, UTC)))
    return found if batch else None
