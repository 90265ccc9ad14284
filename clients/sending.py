"""Owns how a file gets to a Satchel: what of it is there already, the rest in chunks or in one go, and its receipt.

Nothing is noted on this side. The server knows an upload again by the file's name, size, type and hash, and tells what
is missing; so whatever ended a run, the next one goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import httpx

from clients.calls import Calls, Passing, Refused, Tries

# Bytes that are read at once: to be hashed, and to be streamed.
HASH_PIECE: Final = 8 * 1024 * 1024
PIECE: Final = 1024 * 1024
# How often a chunk that does not arrive as it was sent, or an upload that has ended meanwhile, is begun anew.
ATTEMPTS: Final = 3
HASHING: Final = "Hashing"
SENDING: Final = "Sending"
_NOT_FOUND: Final = "UPLOAD_001"
_CHECKSUM: Final = "UPLOAD_002"
_EXPIRED: Final = "UPLOAD_003"

T = TypeVar("T")


class FileChanged(Exception):
    """The file is not what it was when it was hashed."""


class Progress(Protocol):
    """What is told of how far it is."""

    def begin(self, doing: str, total: int, done: int = 0) -> None:
        """Something of `total` bytes begins, of which `done` are done already."""
        ...

    def at(self, done: int) -> None:
        """So many bytes of it are done."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file as it was when it was hashed."""

    path: Path
    mime_type: str
    size: int
    """Bytes."""
    changed_at: int
    """Nanoseconds since 1970."""
    sha256: str

    def check_unchanged(self) -> None:
        """Raises FileChanged."""
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self.size, self.changed_at):
            raise FileChanged(f"{self.path} changed while it was sent")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What has become of a file."""

    upload_id: str
    file_url: str
    file_size: int
    checksum: str
    already_there: bool
    """Whether the server had the whole file before, so that nothing was sent."""


async def hashed(path: Path, mime_type: str, progress: Progress) -> LocalFile:
    """The file, with its sha256. Raises OSError, FileChanged."""
    before = path.stat()
    progress.begin(HASHING, before.st_size)
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:

        def one_piece() -> int:
            piece = file.read(HASH_PIECE)
            digest.update(piece)
            return len(piece)

        # Piece by piece in a thread, so that Ctrl-C is heard between two.
        while size := await asyncio.to_thread(one_piece):
            done += size
            progress.at(done)
    found = LocalFile(
        path=path,
        mime_type=mime_type,
        size=before.st_size,
        changed_at=before.st_mtime_ns,
        sha256=digest.hexdigest(),
    )
    found.check_unchanged()
    return found


class Sender:
    """Sends files."""

    def __init__(self, calls: Calls, progress: Progress, *, parallel: int, stream: bool) -> None:
        """`parallel` chunks are sent at a time; with `stream` everything that is missing goes in one call."""
        self._calls = calls
        self._progress = progress
        self._parallel = parallel
        self._stream = stream

    async def send(self, file: LocalFile) -> Sent:
        """Returns when the server has the whole file. Raises Refused, Unreachable, FileChanged, OSError."""
        for attempt in range(1, ATTEMPTS + 1):
            upload = await self._start(file)
            if upload.sent is not None:
                return upload.sent
            try:
                await upload.bring(stream=self._stream, parallel=self._parallel)
                return await upload.finalize()
            except Refused as refusal:
                if refusal.code not in (_NOT_FOUND, _CHECKSUM, _EXPIRED):
                    raise
                file.check_unchanged()
                if attempt == ATTEMPTS:
                    raise
                await upload.cancel()
        raise AssertionError("the last attempt returns or raises")

    async def _start(self, file: LocalFile) -> _Upload:
        asked = {
            "filename": file.path.name,
            "total_size": file.size,
            "mime_type": file.mime_type,
            "file_hash": file.sha256,
        }
        begun = (await self._calls.call("POST", "/api/v1/uploads/init", json=asked)).json()
        receipt = begun.get("file")
        return _Upload(
            calls=self._calls,
            progress=self._progress,
            file=file,
            id=begun["upload_id"],
            chunk_size=begun["chunk_size"],
            sent=None if receipt is None else _sent(begun["upload_id"], receipt, already_there=True),
        )


@dataclass(kw_only=True)
class _Upload:
    """One upload on its way."""

    calls: Calls
    progress: Progress
    file: LocalFile
    id: str
    chunk_size: int
    sent: Sent | None
    done: int = 0
    """Bytes that are there."""

    async def bring(self, *, stream: bool, parallel: int) -> None:
        """Sends what is missing."""
        status = await self._status()
        self.done = self._there(status) if not stream else _offset(status)
        self.progress.begin(SENDING, self.file.size, self.done)
        if stream:
            status = await self._streamed(status)
            self._at(self._there(status))
        await each(status.json()["missing_chunks"], self._chunk, parallel)

    async def finalize(self) -> Sent:
        """The receipt; the server checks the whole first."""
        receipt = (await self.calls.call("POST", f"{self._path}/finalize")).json()
        return _sent(self.id, receipt, already_there=False)

    async def cancel(self) -> None:
        """Ends the upload, if it has not ended by itself."""
        with suppress(Refused):
            await self.calls.call("DELETE", self._path)

    @property
    def _path(self) -> str:
        return f"/api/v1/uploads/{self.id}"

    def _size_of(self, index: int) -> int:
        return min(self.chunk_size, self.file.size - index * self.chunk_size)

    def _at(self, done: int) -> None:
        self.done = done
        self.progress.at(done)

    async def _chunk(self, index: int) -> None:
        data, checksum = await asyncio.to_thread(self._read, index)
        headers = {"content-type": "application/octet-stream", "x-chunk-checksum": checksum}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self.calls.call("POST", f"{self._path}/chunk/{index}", content=data, headers=headers)
                break
            except Refused as refusal:
                if refusal.code != _CHECKSUM or attempt == ATTEMPTS:
                    raise
        self._at(self.done + len(data))

    def _read(self, index: int) -> tuple[bytes, str]:
        with self.file.path.open("rb") as file:
            file.seek(index * self.chunk_size)
            data = file.read(self._size_of(index))
        if len(data) != self._size_of(index):
            raise FileChanged(f"{self.file.path} became shorter while it was sent")
        return data, hashlib.sha256(data).hexdigest()

    async def _streamed(self, status: httpx.Response) -> httpx.Response:
        """Sends everything behind what is there without a gap, however often that breaks off; the status then."""
        tries, last = Tries(self.calls), -1
        while (offset := _offset(status)) < self.file.size:
            if offset > last:
                tries.forget()
            last = offset
            self._at(offset)
            headers = {
                "content-type": "application/octet-stream",
                "content-length": str(self.file.size - offset),
                "upload-offset": str(offset),
            }
            try:
                await self.calls.once("PUT", f"{self._path}/content", content=self._from(offset), headers=headers)
                return await self._status()
            except Passing as failure:
                await tries.pause(failure)
                status = await self._status()
        return status

    async def _status(self) -> httpx.Response:
        return await self.calls.call("GET", f"{self._path}/status")

    def _there(self, status: httpx.Response) -> int:
        return self.file.size - sum(self._size_of(index) for index in status.json()["missing_chunks"])

    async def _from(self, offset: int) -> AsyncIterator[bytes]:
        with self.file.path.open("rb") as file:
            file.seek(offset)
            while offset < self.file.size:
                piece = await asyncio.to_thread(file.read, min(PIECE, self.file.size - offset))
                if not piece:
                    raise FileChanged(f"{self.file.path} became shorter while it was sent")
                yield piece
                offset += len(piece)
                self._at(offset)


async def each(items: Iterable[T], doing: Callable[[T], Awaitable[None]], parallel: int) -> None:
    """Does it for each, `parallel` at a time; the first failure ends it all."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await doing(item)

    workers = [asyncio.create_task(work()) for _ in range(parallel)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _offset(status: httpx.Response) -> int:
    return int(status.headers["upload-offset"])


def _sent(upload_id: str, receipt: dict[str, object], *, already_there: bool) -> Sent:
    return Sent(
        upload_id=upload_id,
        file_url=str(receipt["file_url"]),
        file_size=int(str(receipt["file_size"])),
        checksum=str(receipt["checksum"]),
        already_there=already_there,
    )
