"""Owns what is taken out of an archive that somebody else has made: recordings, one after the other, within limits.

Nothing that an archive says of itself is believed before it has come true, and the names in it are data, never paths.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from runtime.errors import Failure, Reason, Violation, invalid
from services.uploads.spools import Spool

# The first bytes of an archive, and of one without anything in it.
SIGNATURES: Final = (b"PK\x03\x04", b"PK\x05\x06")
RECORDINGS: Final = (".fit", ".gpx", ".tcx")
PACKED: Final = ".gz"
ARCHIVE: Final = ".zip"
# Of one recording, as for those that come by themselves.
MAX_RECORDING: Final = 50 * 1024 * 1024
# Of the list of what is in an archive; a name takes about a hundred.
MAX_DIRECTORY: Final = 4 * 1024 * 1024
# What is no larger than this may be packed as well as it likes: a track without a step is hardly anything.
RATIO_FROM: Final = 1024 * 1024
PIECE: Final = 1024 * 1024
MAX_NAME_CHARS: Final = 255

_ENCRYPTED: Final = 0x41
_LOCAL_HEADER: Final = 30
# What the zip reader raises for an archive that is damaged, or pretends to be one.
_DAMAGED: Final = (
    BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    gzip.BadGzipFile,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may be."""

    size: int = 2 * 1024**3
    """Bytes, packed."""
    entries: int = 20_000
    """In it and in the archives inside it, together."""
    unpacked: int = 8 * 1024**3
    """Bytes that are unpacked of it in one call."""
    ratio: int = 200
    """How many times larger than itself a packed file may become."""
    seconds: float = 240.0
    """That one call goes on with it, once it is here; less than the edge waits for an answer."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file in an archive that is, or claims to be, a recording."""

    name: str
    """Where it was, cleaned for people to read."""
    data: bytes
    failure: Failure | None = None
    """Why there are no bytes."""


class Contents:
    """Goes through an archive. It blocks, and is for one thread at a time."""

    def __init__(
        self, file: BinaryIO, limits: ArchiveLimits, temporary: Callable[[], AbstractContextManager[Spool]]
    ) -> None:
        """`temporary` opens the spools that archives inside the archive are unpacked to."""
        self._file = file
        self._limits = limits
        self._temporary = temporary
        self._bytes = limits.unpacked
        self._entries = limits.entries
        self.ignored = 0
        """Files so far whose names are not those of recordings."""

    def found(self) -> Iterator[Found]:
        """Each recording, one in memory at a time.

        Raises Failure ahead of the first one: FIELD_INVALID for what is no whole archive, TOO_LARGE for too much.
        """
        return self._in(self._file, "")

    def _in(self, file: BinaryIO, within: str) -> Iterator[Found]:
        archive = self._opened(file)
        for entry in archive.infolist():
            name, kind = within + shown(entry.filename), _kind(entry)
            if kind == ARCHIVE:
                yield from self._nested(archive, entry, name, deeper=bool(within))
            elif kind:
                yield self._taken(archive, entry, name)
            elif not entry.is_dir():
                self.ignored += 1

    def _opened(self, file: BinaryIO) -> ZipFile:
        try:
            archive = ZipFile(_Bounded(file))
            entries = archive.infolist()
            _check_apart(entries, archive.start_dir)
        except _DAMAGED:
            raise invalid("file", "is no whole zip archive", "INVALID_FORMAT") from None
        self._entries -= len(entries)
        if self._entries < 0:
            raise _too_large(f"an archive has at most {self._limits.entries} files")
        return archive

    def _nested(self, archive: ZipFile, entry: ZipInfo, name: str, *, deeper: bool) -> Iterator[Found]:
        try:
            if deeper:
                raise invalid("file", "is an archive in an archive in an archive", "TOO_DEEP")
            self._check(entry, self._limits.size)
            with self._temporary() as spool:
                self._unpack(archive, entry, spool.put)
                yield from self._in(spool.file, f"{name}/")
        except Failure as failure:
            if failure.reason is Reason.UNAVAILABLE:
                raise
            yield Found(name=name, data=b"", failure=failure)

    def _taken(self, archive: ZipFile, entry: ZipInfo, name: str) -> Found:
        try:
            self._check(entry, MAX_RECORDING)
            buffer = io.BytesIO()
            self._unpack(archive, entry, buffer.write)
            data = buffer.getvalue()
            return Found(name=name, data=self._unpacked(data) if entry.filename.lower().endswith(PACKED) else data)
        except Failure as failure:
            if failure.reason is Reason.UNAVAILABLE:
                raise
            return Found(name=name, data=b"", failure=failure)

    def _check(self, entry: ZipInfo, most: int) -> None:
        if entry.flag_bits & _ENCRYPTED:
            raise invalid("file", "is encrypted", "ENCRYPTED")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise invalid("file", "is packed by a method that is not read here", "INVALID_FORMAT")
        if entry.file_size > most:
            raise _too_large(f"is larger than {most // 2**20} MiB")
        self._check_ratio(entry.compress_size, entry.file_size)

    def _check_ratio(self, packed: int, size: int) -> None:
        if size > RATIO_FROM and size > packed * self._limits.ratio:
            raise _too_large(f"becomes more than {self._limits.ratio} times larger when it is unpacked")

    def _unpack(self, archive: ZipFile, entry: ZipInfo, write: Callable[[bytes], object]) -> None:
        """Writes what is in the entry: as many bytes as it claims, or fewer, whatever comes of them."""
        try:
            with archive.open(entry) as stream:
                while piece := stream.read(PIECE):
                    self._spend(len(piece))
                    write(piece)
        except _DAMAGED:
            raise _damaged() from None

    def _unpacked(self, data: bytes) -> bytes:
        """What was packed by gzip."""
        parts, size = list[bytes](), 0
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                while piece := stream.read(PIECE):
                    self._spend(len(piece))
                    size += len(piece)
                    self._check_ratio(len(data), size)
                    if size > MAX_RECORDING:
                        raise _too_large(f"is larger than {MAX_RECORDING // 2**20} MiB")
                    parts.append(piece)
        except _DAMAGED:
            raise _damaged() from None
        return b"".join(parts)

    def _spend(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise _too_large(f"comes when {self._limits.unpacked // 2**20} MiB of the archive were unpacked")


class _OutsideError(OSError, BadZipFile):
    """A place ahead of the file's beginning, where a damaged archive has sent its reader."""


class _Bounded:
    """A file of which nobody reads more at once than a list of contents may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell
        self.seekable = file.seekable
        self.close = lambda: None  # it is not the reader's

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            raise _OutsideError(*error.args) from None

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise _too_large("an archive's list of contents is too long")
        return data


def _check_apart(entries: list[ZipInfo], end: int) -> None:
    """Raises BadZipFile for entries that share bytes: from a few of them any number of files could come."""
    spans = sorted((one.header_offset, one.header_offset + _LOCAL_HEADER + one.compress_size) for one in entries)
    if spans and (spans[0][0] < 0 or spans[-1][1] > end):
        raise BadZipFile("entries lie outside")
    if any(following < until for (_, until), (following, _) in pairwise(spans)):
        raise BadZipFile("entries overlap")


def _kind(entry: ZipInfo) -> str:
    """The ending of a recording's name, or of an archive's; empty for all others."""
    name = entry.filename.lower()
    last = name.rpartition("/")[2]
    if entry.is_dir() or last.startswith("._"):  # what macOS keeps of a file beside it, under the same ending
        return ""
    if last.endswith(ARCHIVE):
        return ARCHIVE
    return next((one for one in RECORDINGS if last.removesuffix(PACKED).endswith(one)), "")


def shown(name: str) -> str:
    """A name out of an archive for people to read: one line, its last characters when there are too many."""
    printable = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name)
    return printable[-MAX_NAME_CHARS:]


def own_name(name: str) -> str:
    """What the file is called: the last part of its name, without what it was packed by."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return last[: -len(PACKED)] if last.lower().endswith(PACKED) else last


def _too_large(why: str) -> Failure:
    return Failure(Reason.TOO_LARGE, f"file: {why}", violations=[Violation("file", "TOO_LARGE")])


def _damaged() -> Failure:
    return invalid("file", "is damaged: it cannot be unpacked", "INVALID_FORMAT")
