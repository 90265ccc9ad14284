"""Owns the rpcs of puzzle sessions: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import puzzle_sessions_pb2 as pb
from satchel.sessions.v1 import puzzle_sessions_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.documents import counted, items
from services.sessions import puzzles_convert as convert
from services.sessions.batches import capture
from services.sessions.puzzles_domain import PuzzleSessions

Context = ServicerContext[Any, Any]


class PuzzleSessionServicer(pb_grpc.PuzzleSessionServiceServicer):
    """satchel.sessions.v1.PuzzleSessionService."""

    def __init__(self, sessions: PuzzleSessions) -> None:
        self._sessions = sessions

    async def UploadPuzzleSessions(
        self, request: pb.UploadPuzzleSessionsRequest, context: Context
    ) -> pb.UploadPuzzleSessionsResponse:
        submitted = capture(convert.session_from_pb, counted(request.sessions, "sessions"))
        return convert.upload_response(await self._sessions.upload(principal(), submitted, idempotency_key()))

    async def UploadPuzzleSessionsJson(
        self, request: pb.UploadPuzzleSessionsJsonRequest, context: Context
    ) -> pb.UploadPuzzleSessionsResponse:
        submitted = capture(convert.session_from_json, items(request.document.data, "sessions"))
        return convert.upload_response(await self._sessions.upload(principal(), submitted, idempotency_key()))

    async def ListPuzzleSessions(
        self, request: pb.ListPuzzleSessionsRequest, context: Context
    ) -> pb.ListPuzzleSessionsResponse:
        page = await self._sessions.page(principal(), request.since, request.page_size, request.page_token)
        return convert.list_response(page)
