"""Owns the rpcs of recorded sessions: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import device_sessions_pb2 as pb
from satchel.sessions.v1 import device_sessions_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.documents import counted, items
from services.sessions import device_sessions_convert as convert
from services.sessions.batches import capture
from services.sessions.device_sessions_domain import DeviceSessions

Context = ServicerContext[Any, Any]


class DeviceSessionServicer(pb_grpc.DeviceSessionServiceServicer):
    """satchel.sessions.v1.DeviceSessionService."""

    def __init__(self, sessions: DeviceSessions) -> None:
        self._sessions = sessions

    async def BatchUpload(self, request: pb.BatchUploadRequest, context: Context) -> pb.BatchUploadResponse:
        recordings = capture(convert.recording_from_pb, counted(request.sessions, "sessions"))
        return convert.upload_response(await self._sessions.upload(principal(), recordings, idempotency_key()))

    async def BatchUploadJson(self, request: pb.BatchUploadJsonRequest, context: Context) -> pb.BatchUploadResponse:
        recordings = capture(convert.recording_from_json, items(request.document.data, "sessions"))
        return convert.upload_response(await self._sessions.upload(principal(), recordings, idempotency_key()))
