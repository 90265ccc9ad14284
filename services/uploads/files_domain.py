"""Owns files that have arrived: who may read which bytes of them, and how they end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid
from runtime.ids import parse_uuid
from services.uploads.blobs import BlobError, BlobMissing
from services.uploads.finalizing_domain import DOMAIN
from services.uploads.uploads_domain import STORE_PAUSE, Upload, gone, kept
from services.uploads.wholes_domain import ACTIVITY

if TYPE_CHECKING:
    from services.uploads.blobs import Blobs
    from services.uploads.links import Links
    from services.uploads.outbox_domain import Outbox
    from services.uploads.uploads_store import UploadStore

DEFAULT_LINK: Final = 3600
MAX_LINK: Final = 7 * 24 * 3600
ERASE_BATCH: Final = 100
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a reader asks for, as the headers say."""

    range: str
    if_range: str
    if_none_match: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The bytes that a reader gets."""

    upload: Upload
    start: int
    end: int
    """Behind the last byte."""
    partial: bool
    known: bool
    """Whether the reader has it already, and gets nothing."""

    @property
    def empty(self) -> bool:
        """Whether a part was asked for that the file does not have."""
        return self.partial and self.start >= self.end


@dataclass(frozen=True, kw_only=True)
class Erased:
    """How many rows an erasure has ended, and how many with the calls before."""

    uploads: int
    files: int
    total_uploads: int
    total_files: int
    total_bytes: int
    """Of the files."""


class Files:
    """Reads, lists and removes files."""

    def __init__(
        self,
        store: UploadStore,
        blobs: Blobs,
        links: Links,
        outbox: Outbox,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._links = links
        self._outbox = outbox
        self._now = now

    async def open(self, caller: Principal | None, name: str, expires: str, signature: str) -> Upload:
        """A file for its owner, or for whoever has a signed link to it.

        Raises Failure: MISSING_BEARER_TOKEN, NOT_FOUND, FORBIDDEN, FIELD_INVALID, LINK_EXPIRED.
        """
        id = _id_of(name)
        if signature:
            self._links.check(id, expires, signature, self._now())
        elif caller is None:
            raise Failure(Reason.MISSING_BEARER_TOKEN)
        file = await self._store.find(id)
        if file is None or file.status != "completed" or self._links.name(file) != name.lower():
            raise Failure(Reason.NOT_FOUND)
        if not signature and caller is not None and file.user_id != caller.user_id:
            raise Failure(Reason.FORBIDDEN)
        return file

    def reading(self, file: Upload, wanted: Wanted) -> Reading:
        """Which bytes of the file are read: RFC 9110, sections 13 and 14.

        A range that cannot be read, and several at once, count as none.
        """
        tag = f'"{file.file_hash.hex()}"'
        tags = [one.strip().removeprefix("W/") for one in wanted.if_none_match.split(",")]
        if tag in tags or tags == ["*"]:
            return Reading(upload=file, start=0, end=0, partial=False, known=True)
        found = _RANGE.fullmatch(wanted.range.strip())
        if found is None or wanted.if_range not in ("", tag):
            return Reading(upload=file, start=0, end=file.total_size, partial=False, known=False)
        first, last, suffix = found.groups()
        if suffix is not None:
            start, end = max(0, file.total_size - int(suffix)), file.total_size
        else:
            start, end = int(first), min(int(last) + 1, file.total_size) if last else file.total_size
            if last and int(last) < start:
                return Reading(upload=file, start=0, end=file.total_size, partial=False, known=False)
        return Reading(upload=file, start=start, end=end, partial=True, known=False)

    async def bytes_of(self, reading: Reading) -> AsyncIterator[bytes]:
        """The bytes, piece by piece. Raises Failure: NOT_FOUND when it was removed meanwhile, UNAVAILABLE."""
        try:
            async for piece in self._blobs.read(reading.upload.id, reading.start, reading.end):
                yield piece
        except BlobMissing:
            raise Failure(Reason.NOT_FOUND) from None
        except BlobError:
            raise Failure(Reason.UNAVAILABLE, retry_after=STORE_PAUSE) from None

    def url(self, file: Upload) -> str:
        """Where the file is read by its owner."""
        return self._links.url(file)

    async def signed_url(self, caller: Principal, file_id: str, seconds: int) -> tuple[str, datetime]:
        """A link for anybody, and when it dies. Raises Failure: FIELD_INVALID, NOT_FOUND, FORBIDDEN."""
        if not 0 <= seconds <= MAX_LINK:
            raise invalid("expires_in_seconds", f"must be 1 to {MAX_LINK}")
        file = _own(await self._store.find(_parse(file_id)), caller)
        until = (self._now() + timedelta(seconds=seconds or DEFAULT_LINK)).replace(microsecond=0)
        return self._links.signed_url(file, until), until

    async def page(self, caller: Principal, limit: int, before: tuple[datetime, UUID] | None) -> Sequence[Upload]:
        """The caller's files, newest first, below `before`."""
        return await self._store.files(caller.user_id, limit, before)

    async def delete(self, caller: Principal, file_id: str) -> None:
        """Removes a file, and ends its records in the feed. Raises Failure: NOT_FOUND, FORBIDDEN; LockNotAvailable."""
        async with self._store.hold_soon(_parse(file_id)) as held:
            deleted = held.upload is not None and held.upload.status == "deleted"
            file = _own(held.upload, caller, also=("deleted",))
            if not deleted:
                await held.end("deleted", self._now())
                await self._outbox.tell(held.connection, file, DOMAIN, None)
                if file.activity is not None:
                    await self._outbox.tell(held.connection, file, ACTIVITY, None)
        self._outbox.look()
        await kept(self._blobs.remove(file.id))

    async def erase(self, user_id: str) -> Erased:
        """Ends everything of a user whose records are erased elsewhere; may be repeated.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, UNAVAILABLE.
        """
        user, uploads, files = UUID(parse_uuid("user_id", user_id)), 0, 0
        while ids := await self._store.living_of(user, ERASE_BATCH):
            for id in ids:
                async with self._store.hold(id) as held:
                    if held.upload is None or held.upload.status not in ("active", "assembling", "completed"):
                        continue
                    is_file = held.upload.status == "completed"
                    await kept(gone(self._blobs, id))
                    await held.erase(self._now())
                files, uploads = files + is_file, uploads + (not is_file)
        await self._store.forget_user(user)
        total_uploads, total_files, total_bytes = await self._store.erased(user)
        return Erased(
            uploads=uploads,
            files=files,
            total_uploads=total_uploads,
            total_files=total_files,
            total_bytes=total_bytes,
        )

    async def adopt(self, guest_id: str, user_id: str, tenant_id: int) -> int:
        """Makes a guest's files and uploads an account's, whatever its quota; may be repeated. Returns how many.

        Raises Failure: FIELD_MISSING, FIELD_INVALID; UNAVAILABLE while the guest's feed lacks some of them.
        """
        guest, user = UUID(parse_uuid("guest_id", guest_id)), UUID(parse_uuid("user_id", user_id))
        if guest == user:
            raise invalid("guest_id", "must not be the account itself")
        if tenant_id < 1:
            raise invalid("tenant_id", "must be 1 or more")
        moved, told = await self._store.adopt(guest, user, tenant_id, domain=DOMAIN, now=self._now())
        self._outbox.look()
        if not told:
            raise Failure(Reason.UNAVAILABLE, "Not all was told of the guest yet.", retry_after=1)
        return moved


def check_not_empty(reading: Reading) -> None:
    """Raises Failure(RANGE_NOT_SATISFIABLE) for a part that the file does not have."""
    if reading.empty:
        raise Failure(Reason.RANGE_NOT_SATISFIABLE, f"The file has {reading.upload.total_size} bytes.")


def _own(file: Upload | None, caller: Principal, *, also: tuple[str, ...] = ()) -> Upload:
    if file is None or file.status not in ("completed", *also):
        raise Failure(Reason.NOT_FOUND)
    if file.user_id != caller.user_id:
        raise Failure(Reason.FORBIDDEN)
    return file


def _id_of(name: str) -> UUID:
    return _parse(name.partition(".")[0])


def _parse(text: str) -> UUID:
    try:
        return UUID(parse_uuid("file_id", text))
    except Failure:
        raise Failure(Reason.NOT_FOUND) from None
