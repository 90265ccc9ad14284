"""Owns the rpcs of recorded sessions: unpack, call, pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import device_sessions_pb2 as pb
from satchel.sessions.v1 import device_sessions_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.documents import counted, items
from runtime.errors import Failure
from runtime.outcomes import carried, syncs
from services.sessions import device_sessions_convert as convert
from services.sessions.batches import capture
from services.sessions.device_sessions_domain import DeviceSessions, Recording, tally_of

Context = ServicerContext[Any, Any]


class DeviceSessionServicer(pb_grpc.DeviceSessionServiceServicer):
    """satchel.sessions.v1.DeviceSessionService."""

    def __init__(self, sessions: DeviceSessions) -> None:
        self._sessions = sessions

    @syncs()
    async def BatchUpload(self, request: pb.BatchUploadRequest, context: Context) -> pb.BatchUploadResponse:
        return await self._upload(capture(convert.recording_from_pb, counted(request.sessions, "sessions")))

    @syncs()
    async def BatchUploadJson(self, request: pb.BatchUploadJsonRequest, context: Context) -> pb.BatchUploadResponse:
        return await self._upload(capture(convert.recording_from_json, items(request.document.data, "sessions")))

    async def _upload(self, recordings: Sequence[Recording | Failure]) -> pb.BatchUploadResponse:
        tally = tally_of(recordings)
        carried(tally)
        uploaded = await self._sessions.upload(principal(), recordings, idempotency_key())
        carried(tally._replace(rejected=uploaded.counts["error"]))
        return convert.upload_response(uploaded)
