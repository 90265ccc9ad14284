"""Owns uploads: what may be sent, how its chunks are taken, and what is stored of it."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from runtime.call import Principal
from runtime.errors import Failure, Reason, Violation, invalid, missing
from runtime.ids import parse_uuid
from services.uploads.blobs import BlobError, BlobsFull
from services.uploads.limits_domain import UploadLimits

if TYPE_CHECKING:
    from runtime.outcomes import Outcomes
    from services.uploads.blobs import Blobs
    from services.uploads.digests import Digests
    from services.uploads.uploads_store import Starting, UploadStore

MAX_KNOWN: Final = 10_000
MAX_NAME_CHARS: Final = 255
# Seconds after which a phone that found the store away, or full, may try again.
STORE_PAUSE: Final = 2.0
FULL_PAUSE: Final = 60.0
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_ENDED: Final = {
    "failed": "The upload has failed; start a new upload.",
    "cancelled": "The upload was cancelled; start a new upload.",
    "deleted": "The file was deleted; start a new upload.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file on its way, or one that has arrived."""

    id: UUID
    user_id: UUID
    tenant_id: int
    filename: str
    """What the phone calls it, made harmless; never a path."""
    mime_type: str
    total_size: int
    """Bytes."""
    chunk_size: int
    """Bytes of every chunk but the last."""
    file_hash: bytes
    """sha256 of the whole, by the phone's word until it is completed."""
    status: str
    """active, assembling, completed, failed, cancelled, expired or deleted."""
    contested: bool
    """Whether two senders have meant different bytes by the same chunk."""
    create_time: datetime
    expire_time: datetime
    finish_time: datetime | None
    activity: dict[str, Any] | None = None
    """Of a recording that was handed over as an activity: the data of its record."""
    failure: str | None = None
    """Of one that has failed: why, for people."""

    @property
    def chunks(self) -> int:
        """How many there are, from 1."""
        return -(-self.total_size // self.chunk_size)

    def size_of(self, index: int) -> int:
        """Bytes of a chunk."""
        return min(self.chunk_size, self.total_size - index * self.chunk_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What is known of one chunk."""

    claim: bytes
    """The sha256 of its bytes when it came by itself; some other bytes when it came in a stream."""
    stored: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a phone wants to send, as it says."""

    filename: str
    total_size: float
    """Bytes."""
    mime_type: str
    file_hash: str
    """sha256 in hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a user who wants to start an upload stands."""

    closed: bool
    """Whether it was a guest, whose files go to an account."""
    same: Upload | None
    """A completed upload of the same file, or a living one that was started with the same words."""
    used: int
    """Bytes of the user's files and of those that are on their way."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes of a user's files and of uploads on their way."""

    quota: int
    """That there may be."""
    used: int
    """That there are."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How much of an upload is stored."""

    stored: int
    """Chunks."""
    chunks: int

    @property
    def remaining(self) -> int:
        """Chunks that are not stored."""
        return self.chunks - self.stored

    @property
    def percent(self) -> float:
        """0 to 100, with one decimal; 100 only when nothing remains."""
        return min(round(100 * self.stored / self.chunks, 1), 100.0 if not self.remaining else 99.9)


@dataclass(frozen=True, kw_only=True)
class Status:
    """An upload and what is stored of it."""

    upload: Upload
    stored: Sequence[int]

    @property
    def missing(self) -> list[int]:
        """The chunks that are not stored, in order."""
        return sorted(set(range(self.upload.chunks)) - set(self.stored))

    @property
    def progress(self) -> Progress:
        """The same in numbers."""
        return Progress(stored=len(self.stored), chunks=self.upload.chunks)

    @property
    def offset(self) -> int:
        """Bytes that are stored from the beginning on without a gap."""
        gap = next((place for place, index in enumerate(self.stored) if place != index), len(self.stored))
        return min(gap * self.upload.chunk_size, self.upload.total_size)


class Uploads:
    """Takes files in chunks; any number of replicas may take chunks of one file."""

    def __init__(
        self,
        store: UploadStore,
        blobs: Blobs,
        digests: Digests,
        limits: UploadLimits,
        *,
        outcomes: Outcomes,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._digests = digests
        self._limits = limits
        self._outcomes = outcomes
        self.now: Final = now
        self._new_id = new_id
        self._known: OrderedDict[str, Upload] = OrderedDict()

    async def start(self, caller: Principal, asked: Asked) -> Upload:
        """A new upload, the living one that was started with the same words, or the one the file came in by before.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, TOO_LARGE, TIER_LIMIT, TOKEN_REVOKED for a guest who is gone.
        """
        wanted = self.wanted(caller, asked)
        async with self._store.start(caller.user_id) as starting:
            same = await self.admit(starting, wanted, caller)
            if same is not None:
                return await starting.prolong(same, wanted.expire_time) if same.status == "active" else same
            await starting.insert(wanted)
        return wanted

    async def admit(self, starting: Starting, wanted: Upload, caller: Principal) -> Upload | None:
        """The upload that makes another one needless, as `start` says; None: there is room for it.

        Raises Failure: TIER_LIMIT, TOKEN_REVOKED.
        """
        standing = await starting.look(wanted)
        if standing.closed:
            raise Failure(Reason.TOKEN_REVOKED)
        if standing.same is None and standing.used + wanted.total_size > self._limits.quota_of(caller.tier):
            raise Failure(Reason.TIER_LIMIT, "Your files would take more room than your tier has.")
        return standing.same

    def wanted(self, caller: Principal, asked: Asked) -> Upload:
        """What is asked for as an upload, which is nowhere yet.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, TOO_LARGE.
        """
        now = self.now()
        filename = clean_name(asked.filename)
        if not asked.total_size:
            raise missing("total_size")
        if not math.isfinite(asked.total_size) or asked.total_size < 1 or asked.total_size != int(asked.total_size):
            raise invalid("total_size", "must be a whole number of bytes from 1")
        if not asked.mime_type:
            raise missing("mime_type")
        mime_type = asked.mime_type.lower()
        limit = self._limits.type_of(mime_type)
        if limit is None:
            raise invalid("mime_type", "is not one that /api/v1/uploads/limits lists", "UNKNOWN_VALUE")
        file_hash = parse_digest("file_hash", asked.file_hash)
        if asked.total_size > limit.max_size:
            raise Failure(
                Reason.TOO_LARGE,
                f"total_size: a file of this type has at most {limit.max_size} bytes",
                violations=[Violation("total_size", "OUT_OF_RANGE")],
            )
        return Upload(
            id=self._new_id(),
            user_id=caller.user_id,
            tenant_id=caller.tenant_id,
            filename=filename,
            mime_type=mime_type,
            total_size=int(asked.total_size),
            chunk_size=self._limits.chunk_size,
            file_hash=file_hash,
            status="active",
            contested=False,
            create_time=now,
            expire_time=now + timedelta(seconds=self._limits.expires_after_seconds),
            finish_time=None,
        )

    async def room(self, caller: Principal) -> Room:
        """How much the caller's files may take, and how much they do."""
        used = await self._store.used(caller.user_id, self.now())
        return Room(quota=self._limits.quota_of(caller.tier), used=used)

    async def find(self, caller: Principal, upload_id: str) -> Upload:
        """An upload of the caller. Raises Failure: UPLOAD_NOT_FOUND, UPLOAD_FORBIDDEN, UPLOAD_EXPIRED."""
        return own(await self._store.find(parse_upload_id(upload_id)), caller, self.now())

    async def taking(self, caller: Principal, upload_id: str) -> Upload:
        """As `find`, for somebody who sends chunks, whose claims tell whether any are still taken.

        From memory: of an active upload nothing else changes but the time that it has, and that only grows.
        """
        known = self._known.get(upload_id)
        if known is None or known.user_id != caller.user_id or known.expire_time <= self.now():
            known = await self.find(caller, upload_id)
            if known.status == "active":
                self._known[upload_id] = known
                if len(self._known) > MAX_KNOWN:
                    self._known.popitem(last=False)
        return known

    async def status(self, caller: Principal, upload_id: str) -> Status:
        """What is stored of an upload. Raises Failure as `find`."""
        return await self.standing(await self.find(caller, upload_id))

    async def standing(self, upload: Upload) -> Status:
        """What is stored of an upload that was found a moment ago. Raises Failure as `find`."""
        stored = await self._store.stored(upload.id)
        if not stored and upload.status == "active":  # it may have ended since, and its chunks are forgotten
            upload = alive(await self._store.find(upload.id), self.now())
        return Status(upload=upload, stored=stored if upload.status == "active" else range(upload.chunks))

    async def chunk(self, upload: Upload, index: int, data: bytes | memoryview, checksum: str) -> Progress:
        """Stores one chunk; the same chunk again is harmless.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, CHUNK_CHECKSUM, those of `find`, UNAVAILABLE.
        """
        digest = parse_digest("x-chunk-checksum", checksum)
        if not 0 <= index < upload.chunks:
            raise invalid("chunk_index", f"must be 0 to {upload.chunks - 1}")
        if len(data) != upload.size_of(index):
            raise invalid("content", f"must have {upload.size_of(index)} bytes, and has {len(data)}")
        if await self._digests.of(data) != digest:
            raise Failure(Reason.CHUNK_CHECKSUM, violations=[Violation("x-chunk-checksum", "MISMATCH")])
        if index not in await self._store.claim(upload.id, digest, [index], self.now()):
            return await self._stored_before(upload, index, digest)
        await kept(self._blobs.write_chunk(upload.id, index, index * upload.chunk_size, data))
        marked, stored = await self._store.store(upload.id, digest, [index])
        if not marked:
            return await self._overtaken(upload, index, digest)
        self._digests.stored(upload, index, data)
        return Progress(stored=stored, chunks=upload.chunks)

    async def _stored_before(self, upload: Upload, index: int, digest: bytes) -> Progress:
        chunk = await self._store.chunk(upload.id, index)
        if chunk is None or not chunk.stored:
            upload = await self._closed(upload)
        elif len(chunk.claim) == len(digest) and chunk.claim != digest:
            raise Failure(
                Reason.CHUNK_CHECKSUM,
                "Other bytes are stored under this index; cancel the upload and start a new one.",
                violations=[Violation("chunk_index", "CONFLICT")],
            )
        return (await self.standing(upload)).progress

    async def _overtaken(self, upload: Upload, index: int, digest: bytes) -> Progress:
        """The bytes are written and do not count: somebody else has claimed the chunk since, or ended the upload."""
        await self.clear(upload.id)
        chunk = await self._store.chunk(upload.id, index)
        if chunk is None:
            upload = await self._closed(upload)
        elif not (chunk.stored and chunk.claim == digest):
            raise Failure(Reason.UNAVAILABLE, "Another call sends other bytes for this chunk.", retry_after=1)
        return (await self.standing(upload)).progress

    async def _closed(self, upload: Upload) -> Upload:
        """An upload that does not take a chunk, because all of them are there.

        Raises Failure: as `find`; UNAVAILABLE when it takes chunks after all, and only the claim was lost.
        """
        upload = alive(await self._store.find(upload.id), self.now())
        if upload.status == "active":
            raise Failure(Reason.UNAVAILABLE, "The chunk was not stored; send it again.", retry_after=1)
        return upload

    async def clear(self, id: UUID) -> None:
        """After a write that does not count: removes what it has left of an upload that has ended meanwhile.

        Raises Failure(UNAVAILABLE).
        """
        async with self._store.hold(id) as held:  # who puts it together is waited for
            over = held.upload is None or held.upload.status not in ("active", "assembling")
        if over:
            await kept(self._blobs.discard(id))

    async def cancel(self, caller: Principal, upload_id: str) -> None:
        """Ends an upload and removes what is stored of it.

        Raises Failure: UPLOAD_COMPLETED, and as `find`; LockNotAvailable.
        """
        async with self._store.hold_soon(parse_upload_id(upload_id)) as held:
            upload = held.upload
            if upload is None:
                raise Failure(Reason.UPLOAD_NOT_FOUND)
            if upload.user_id != caller.user_id:
                raise Failure(Reason.UPLOAD_FORBIDDEN)
            if upload.status == "completed":
                raise Failure(Reason.UPLOAD_COMPLETED)
            cancelled = upload.status != "cancelled"
            if cancelled:
                check_alive(upload, self.now())
                await held.end("cancelled", self.now())
        if cancelled:
            self._outcomes.abandoned(upload)
        self._digests.forget(upload.id)
        await kept(gone(self._blobs, upload.id))


def own(upload: Upload | None, caller: Principal, now: datetime) -> Upload:
    """The upload again. Raises Failure: UPLOAD_NOT_FOUND, UPLOAD_FORBIDDEN, UPLOAD_EXPIRED."""
    if upload is not None and upload.user_id != caller.user_id:
        raise Failure(Reason.UPLOAD_FORBIDDEN)
    return alive(upload, now)


def alive(upload: Upload | None, now: datetime) -> Upload:
    """The upload again. Raises Failure: UPLOAD_NOT_FOUND, UPLOAD_EXPIRED."""
    if upload is None:
        raise Failure(Reason.UPLOAD_NOT_FOUND)
    check_alive(upload, now)
    return upload


def check_alive(upload: Upload, now: datetime) -> None:
    """Raises Failure (UPLOAD_NOT_FOUND, UPLOAD_EXPIRED) for an upload that has ended without a file."""
    if upload.status in _ENDED:
        why = f"The upload has failed. {upload.failure}" if upload.failure else _ENDED[upload.status]
        raise Failure(Reason.UPLOAD_NOT_FOUND, why)
    if upload.status == "expired" or (upload.status == "active" and upload.expire_time <= now):
        raise Failure(Reason.UPLOAD_EXPIRED)


async def gone(blobs: Blobs, id: UUID) -> None:
    """Removes the bytes of an upload that ended without a file.

    They may be a file already, when whoever put them together died before the row could say so. Raises BlobError.
    """
    await blobs.discard(id)
    await blobs.remove(id)


async def kept(doing: Awaitable[None]) -> None:
    """Waits for the store of blobs. Raises Failure(UNAVAILABLE) when it is away or full."""
    try:
        await doing
    except BlobsFull:
        raise Failure(Reason.UNAVAILABLE, "There is no room for files at the moment.", retry_after=FULL_PAUSE) from None
    except BlobError:
        raise Failure(Reason.UNAVAILABLE, retry_after=STORE_PAUSE) from None


def parse_upload_id(text: str) -> UUID:
    """The id of an upload. Raises Failure(UPLOAD_NOT_FOUND) for what never was one."""
    try:
        return UUID(parse_uuid("upload_id", text))
    except Failure:
        raise Failure(Reason.UPLOAD_NOT_FOUND) from None


def parse_digest(field: str, text: str) -> bytes:
    """A sha256 of 64 hexadecimal digits. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if not text:
        raise missing(field)
    if not _DIGEST.fullmatch(text):
        raise invalid(field, "must be a sha256 of 64 hexadecimal digits", "INVALID_FORMAT")
    return bytes.fromhex(text)


def clean_name(text: str) -> str:
    """A file's name without its directories, control and formatting characters; it is shown, and never a path.

    Raises Failure: FIELD_MISSING, FIELD_INVALID when nothing is left or it has more than 255 characters.
    """
    if not text:
        raise missing("filename")
    if len(text) > MAX_NAME_CHARS:
        raise invalid("filename", f"is longer than {MAX_NAME_CHARS} characters", "TOO_LONG")
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", text))[-1]
    name = "".join(one for one in last if unicodedata.category(one)[0] != "C").strip(" .")
    if not name:
        raise invalid("filename", "is no name of a file", "INVALID_FORMAT")
    if len(name) > MAX_NAME_CHARS:  # there are characters that the normal form writes as several
        raise invalid("filename", f"is longer than {MAX_NAME_CHARS} characters", "TOO_LONG")
    return name
