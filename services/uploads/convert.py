"""Owns the shapes of uploads and files: messages on one side, domain values on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from datetime import datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

import orjson
from google.api.httpbody_pb2 import HttpBody
from satchel.uploads.v1 import uploads_pb2 as pb

from runtime.clock import to_timestamp
from runtime.errors import invalid
from runtime.ids import parse_uuid
from services.uploads.active_domain import ActiveUpload
from services.uploads.activities_domain import Added
from services.uploads.chunk_messages import ContentMessage
from services.uploads.files_domain import Erased, Reading, Wanted
from services.uploads.finalizing_domain import Receipt
from services.uploads.imports_domain import Imported, ImportReceipt
from services.uploads.limits_domain import UploadLimits
from services.uploads.streamed_domain import SentChunk
from services.uploads.uploads_domain import Asked, Progress, Room, Status, Upload


def limits_response(limits: UploadLimits, room: Room) -> pb.GetUploadLimitsResponse:
    """What this server takes, and has room for."""
    types = [
        pb.TypeLimit(name=one.name, mime_types=list(one.mime_types), max_size=one.max_size) for one in limits.types
    ]
    return pb.GetUploadLimitsResponse(
        chunk_size=limits.chunk_size,
        types=types,
        expires_after_seconds=limits.expires_after_seconds,
        quota_bytes=room.quota,
        used_bytes=room.used,
    )


def asked_from_pb(request: pb.InitUploadRequest) -> Asked:
    """What a phone wants to send."""
    return Asked(
        filename=request.filename,
        total_size=request.total_size,
        mime_type=request.mime_type,
        file_hash=request.file_hash,
    )


def init_response(upload: Upload, receipt: Receipt | None) -> pb.InitUploadResponse:
    """An upload that was started; `receipt` of one that is completed."""
    return pb.InitUploadResponse(
        upload_id=str(upload.id),
        chunk_size=upload.chunk_size,
        total_chunks=upload.chunks,
        expires_at=to_timestamp(upload.expire_time),
        file=None if receipt is None else finalize_response(receipt),
    )


async def chunks_from_pb(
    first: pb.UploadChunksRequest, rest: AsyncIterator[pb.UploadChunksRequest]
) -> AsyncIterator[SentChunk]:
    """Chunks as they came; the first one has told whose they are."""
    yield SentChunk(index=first.chunk_index, data=first.data, checksum=first.checksum)
    async for one in rest:
        if one.upload_id not in ("", first.upload_id):
            raise invalid("upload_id", "must be the same for all chunks of a stream")
        yield SentChunk(index=one.chunk_index, data=one.data, checksum=one.checksum)


async def pieces_from_pb(first: ContentMessage, rest: AsyncIterator[ContentMessage]) -> AsyncIterator[memoryview]:
    """The bytes of a stream, as they came."""
    yield first.data
    async for one in rest:
        yield one.data


async def form_from_pb(
    first: pb.AddActivityRequest, rest: AsyncIterator[pb.AddActivityRequest]
) -> AsyncIterator[bytes]:
    """The bytes of a form, as they came."""
    yield first.form.data
    async for one in rest:
        yield one.form.data


def activity_document(outcome: Added | Imported) -> HttpBody:
    """What became of a recording, or of an archive of them, as a JSON document."""
    document = _added_document(outcome) if isinstance(outcome, Added) else _imported_document(outcome)
    return HttpBody(content_type="application/json", data=orjson.dumps(document))


def _added_document(added: Added) -> dict[str, Any]:
    return {
        "activity_id": str(added.upload.id),
        "status": "created" if added.created else "duplicate",
        "file_url": added.file_url,
        "activity": added.data,
    }


def _imported_document(imported: Imported) -> dict[str, Any]:
    return {
        "results": [_receipt_document(one) for one in imported.receipts],
        "created": imported.created,
        "duplicates": imported.count("duplicate"),
        "failed": imported.count("error"),
        "skipped": imported.count("skipped"),
        "ignored": imported.ignored,
        "complete": imported.complete,
    }


def _receipt_document(receipt: ImportReceipt) -> dict[str, Any]:
    document: dict[str, Any] = {"filename": receipt.filename, "status": receipt.status}
    if receipt.added is not None:
        document["activity_id"] = str(receipt.added.upload.id)
        document["file_url"] = receipt.added.file_url
    if receipt.failure is not None:
        document["error"] = receipt.failure.message.removeprefix("file: ")
    return document


def offset_of(header: str, first: ContentMessage) -> float:
    """Where a stream begins, by the header or by its first message. Raises Failure(FIELD_INVALID)."""
    if not header:
        return first.offset
    if not header.isascii() or not header.isdigit() or len(header) > 16:
        raise invalid("upload-offset", "must be a whole number of bytes", "INVALID_FORMAT")
    return int(header)


def chunk_response(index: int, progress: Progress) -> pb.UploadChunkResponse:
    """One chunk that is stored."""
    return pb.UploadChunkResponse(
        uploaded=True,
        chunk_index=index,
        remaining_chunks=progress.remaining,
        progress_pct=progress.percent,
    )


def chunks_response(count: int, progress: Progress) -> pb.UploadChunksResponse:
    """Chunks that are stored."""
    return pb.UploadChunksResponse(
        uploaded_chunks=count, remaining_chunks=progress.remaining, progress_pct=progress.percent
    )


def content_response(offset: int, progress: Progress) -> pb.UploadContentResponse:
    """A stretch that is stored."""
    return pb.UploadContentResponse(offset=offset, remaining_chunks=progress.remaining, progress_pct=progress.percent)


def status_response(status: Status) -> pb.GetUploadStatusResponse:
    """What is stored of an upload."""
    return pb.GetUploadStatusResponse(
        upload_id=str(status.upload.id),
        status=status.upload.status,
        uploaded_chunks=status.stored,
        missing_chunks=status.missing,
        progress_pct=status.progress.percent,
        expires_at=to_timestamp(status.upload.expire_time),
    )


def finalize_response(receipt: Receipt) -> pb.FinalizeUploadResponse:
    """What an upload has become."""
    return pb.FinalizeUploadResponse(
        finalized=True,
        file_url=receipt.file_url,
        file_size=receipt.file_size,
        checksum=receipt.checksum.hex(),
    )


def file_to_pb(file: Upload, url: str) -> pb.File:
    """A file."""
    return pb.File(
        id=str(file.id),
        filename=file.filename,
        mime_type=file.mime_type,
        file_size=file.total_size,
        checksum=file.file_hash.hex(),
        file_url=url,
        created_at=to_timestamp(file.finish_time or file.create_time),
    )


def wanted_of(header: Callable[[str], str]) -> Wanted:
    """What a reader asks for, by the headers of the call."""
    return Wanted(range=header("range"), if_range=header("if-range"), if_none_match=header("if-none-match"))


def before_from(token: tuple[datetime, str] | None) -> tuple[datetime, UUID] | None:
    """Where a page begins, by the token of the one before. Raises Failure(FIELD_INVALID)."""
    return None if token is None else (token[0], UUID(parse_uuid("page_token", token[1])))


def place_of(file: Upload) -> tuple[datetime | None, str]:
    """Where a file stands in a list."""
    return file.finish_time, str(file.id)


def active_place_of(active: ActiveUpload) -> tuple[datetime | None, str]:
    """Where an upload that is on its way stands in a list."""
    return active.upload.create_time, str(active.upload.id)


def active_response(active: Iterable[ActiveUpload], total: int, next_token: str) -> pb.ListActiveUploadsResponse:
    """A page of uploads that are on their way."""
    return pb.ListActiveUploadsResponse(
        uploads=[_active_to_pb(one) for one in active], total=total, next_page_token=next_token
    )


def _active_to_pb(active: ActiveUpload) -> pb.ActiveUpload:
    upload, progress = active.upload, active.progress
    return pb.ActiveUpload(
        upload_id=str(upload.id),
        user_id=str(upload.user_id),
        filename=upload.filename,
        mime_type=upload.mime_type,
        total_size=upload.total_size,
        status=upload.status,
        stored_chunks=progress.stored,
        total_chunks=progress.chunks,
        progress_pct=progress.percent,
        created_at=to_timestamp(upload.create_time),
        expires_at=to_timestamp(upload.expire_time),
    )


def files_response(files: Iterable[pb.File], next_token: str) -> pb.ListFilesResponse:
    """A page of files."""
    return pb.ListFilesResponse(files=files, next_page_token=next_token)


def erased_response(erased: Erased) -> pb.EraseUserFilesResponse:
    """What an erasure came to."""
    return pb.EraseUserFilesResponse(**asdict(erased))


def file_headers(reading: Reading) -> list[tuple[str, str]]:
    """What the answer's headers tell of a file; x-file-* become the headers of that name at the edge."""
    file, length = reading.upload, reading.end - reading.start
    if reading.empty:
        return [("content-range", f"bytes */{file.total_size}")]
    headers = [
        ("etag", f'"{file.file_hash.hex()}"'),
        ("accept-ranges", "bytes"),
        # Kept, and asked for each time: it may have been deleted, and who asks next on this device may be another user.
        ("cache-control", "private, no-cache"),
        ("vary", "authorization"),
        ("x-content-type-options", "nosniff"),
        ("content-disposition", _disposition(file)),
        ("last-modified", format_datetime(file.finish_time or file.create_time, usegmt=True)),
        ("x-file-content-type", file.mime_type),
    ]
    if reading.partial:
        headers.append(("content-range", f"bytes {reading.start}-{reading.end - 1}/{file.total_size}"))
    if not reading.known:
        headers.append(("x-file-content-length", str(length)))
    return headers


def _disposition(file: Upload) -> str:
    """RFC 6266: what a browser shows is shown, the rest is saved under the name that the phone gave."""
    kind = "inline" if file.mime_type.partition("/")[0] in ("image", "audio", "video") else "attachment"
    plain = "".join(one if one.isascii() and one.isprintable() and one not in '"\\%' else "_" for one in file.filename)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(file.filename, safe='')}"
