"""Owns the upload rpcs: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.uploads.v1 import uploads_pb2 as pb
from satchel.uploads.v1 import uploads_pb2_grpc as pb_grpc

from runtime.call import answer_headers, answer_status, header, principal, principal_if_any
from runtime.clock import to_timestamp
from runtime.interceptors import decoded_by, taken_in_turn
from runtime.paging import decode_token, next_token, page_size
from services.uploads import convert
from services.uploads.active_domain import ActiveUploads
from services.uploads.activities_domain import own_id
from services.uploads.chunk_messages import ChunkMessage, ContentMessage, read_chunk, read_content
from services.uploads.files_domain import Files, Reading, check_not_empty
from services.uploads.finalizing_domain import Finalizer
from services.uploads.imports_domain import Imports
from services.uploads.limits_domain import UploadLimits
from services.uploads.streamed_domain import Streamed
from services.uploads.uploads_domain import Uploads

# Enough to keep the disk and all cores busy; each one is a chunk in memory, in one process.
CHUNKS_AT_ONCE: Final = 12

Context = ServicerContext[Any, Any]


class UploadServicer(pb_grpc.UploadServiceServicer):
    """satchel.uploads.v1.UploadService."""

    def __init__(
        self,
        limits: UploadLimits,
        uploads: Uploads,
        streamed: Streamed,
        finalizer: Finalizer,
        files: Files,
        imports: Imports,
        active: ActiveUploads,
    ) -> None:
        self._limits = limits
        self._uploads = uploads
        self._streamed = streamed
        self._finalizer = finalizer
        self._files = files
        self._imports = imports
        self._active = active

    async def GetUploadLimits(self, request: pb.GetUploadLimitsRequest, context: Context) -> pb.GetUploadLimitsResponse:
        return convert.limits_response(self._limits, await self._uploads.room(principal()))

    async def InitUpload(self, request: pb.InitUploadRequest, context: Context) -> pb.InitUploadResponse:
        upload = await self._uploads.start(principal(), convert.asked_from_pb(request))
        return convert.init_response(upload, self._finalizer.receipt_of(upload))

    @taken_in_turn(read_chunk, at_once=CHUNKS_AT_ONCE)
    async def UploadChunk(  # type: ignore[override]  # what comes is read without a copy
        self, request: ChunkMessage, context: Context
    ) -> pb.UploadChunkResponse:
        upload = await self._uploads.taking(principal(), request.upload_id)
        checksum = header("x-chunk-checksum") or request.checksum
        progress = await self._uploads.chunk(upload, request.chunk_index, request.data, checksum)
        return convert.chunk_response(request.chunk_index, progress)

    async def UploadChunks(
        self, requests: AsyncIterator[pb.UploadChunksRequest], context: Context
    ) -> pb.UploadChunksResponse:
        first = await anext(requests, pb.UploadChunksRequest())
        upload = await self._uploads.find(principal(), first.upload_id)
        return convert.chunks_response(*await self._streamed.chunks(upload, convert.chunks_from_pb(first, requests)))

    @decoded_by(read_content)
    async def UploadContent(  # type: ignore[override]  # what comes is read without a copy
        self, requests: AsyncIterator[ContentMessage], context: Context
    ) -> pb.UploadContentResponse:
        first = await anext(requests, ContentMessage())
        upload = await self._uploads.find(principal(), first.upload_id)
        offset = convert.offset_of(header("upload-offset"), first)
        pieces = convert.pieces_from_pb(first, requests)
        return convert.content_response(*await self._streamed.content(upload, offset, pieces))

    async def GetUploadStatus(self, request: pb.GetUploadStatusRequest, context: Context) -> pb.GetUploadStatusResponse:
        status = await self._uploads.status(principal(), request.upload_id)
        answer_headers(("upload-offset", str(status.offset)))
        return convert.status_response(status)

    async def FinalizeUpload(self, request: pb.FinalizeUploadRequest, context: Context) -> pb.FinalizeUploadResponse:
        return convert.finalize_response(await self._finalizer.finalize(principal(), request.upload_id))

    async def CancelUpload(self, request: pb.CancelUploadRequest, context: Context) -> pb.CancelUploadResponse:
        await self._uploads.cancel(principal(), request.upload_id)
        return pb.CancelUploadResponse(cancelled=True, message="Upload session cancelled and cleaned up")

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> AsyncIterator[HttpBody]:
        reading = await self._reading(request)
        content_type = reading.upload.mime_type
        async for piece in self._files.bytes_of(reading):
            yield HttpBody(content_type=content_type, data=piece)
            content_type = ""

    async def HeadFile(self, request: pb.HeadFileRequest, context: Context) -> pb.HeadFileResponse:
        file = (await self._reading(request)).upload
        return pb.HeadFileResponse(file=convert.file_to_pb(file, self._files.url(file)))

    async def _reading(self, request: pb.GetFileRequest | pb.HeadFileRequest) -> Reading:
        file = await self._files.open(principal_if_any(), request.name, request.expires, request.signature)
        reading = self._files.reading(file, convert.wanted_of(header))
        answer_headers(*convert.file_headers(reading))
        check_not_empty(reading)
        answer_status(304 if reading.known else 206 if reading.partial else 200)
        return reading

    async def CreateSignedUrl(self, request: pb.CreateSignedUrlRequest, context: Context) -> pb.CreateSignedUrlResponse:
        url, until = await self._files.signed_url(principal(), request.file_id, request.expires_in_seconds)
        return pb.CreateSignedUrlResponse(url=url, expires_at=to_timestamp(until))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        limit = page_size(request.page_size)
        found = await self._files.page(principal(), limit + 1, convert.before_from(decode_token(request.page_token)))
        files = [convert.file_to_pb(file, self._files.url(file)) for file in found[:limit]]
        return convert.files_response(files, next_token(found, limit, convert.place_of))

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        await self._files.delete(principal(), request.file_id)
        return pb.DeleteFileResponse(deleted=True)

    async def AddActivity(self, requests: AsyncIterator[pb.AddActivityRequest], context: Context) -> HttpBody:
        first = await anext(requests, pb.AddActivityRequest())
        own_id(principal(), first.user_id)
        form = convert.form_from_pb(first, requests)
        async with self._imports.handed_over(principal(), first.form.content_type, form) as handed:
            outcome = await self._imports.add(principal(), handed)
        answer_status(201 if outcome.created else 200)
        return convert.activity_document(outcome)

    async def ListActiveUploads(
        self, request: pb.ListActiveUploadsRequest, context: Context
    ) -> pb.ListActiveUploadsResponse:
        limit = page_size(request.page_size)
        before = convert.before_from(decode_token(request.page_token))
        found, total = await self._active.page(principal(), limit + 1, before)
        return convert.active_response(found[:limit], total, next_token(found, limit, convert.active_place_of))

    async def EraseUserFiles(self, request: pb.EraseUserFilesRequest, context: Context) -> pb.EraseUserFilesResponse:
        return convert.erased_response(await self._files.erase(request.user_id))

    async def AdoptFiles(self, request: pb.AdoptFilesRequest, context: Context) -> pb.AdoptFilesResponse:
        moved = await self._files.adopt(request.guest_id, request.user_id, request.tenant_id)
        return pb.AdoptFilesResponse(moved=moved)
