"""Owns the rpcs of puzzle sessions: unpack, call, pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import puzzle_sessions_pb2 as pb
from satchel.sessions.v1 import puzzle_sessions_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.documents import counted, items
from runtime.errors import Failure
from runtime.outcomes import Tally, carried, syncs
from services.sessions import puzzles_convert as convert
from services.sessions.batches import capture
from services.sessions.puzzles_domain import DOMAIN, PuzzleSessions, Submitted

Context = ServicerContext[Any, Any]


class PuzzleSessionServicer(pb_grpc.PuzzleSessionServiceServicer):
    """satchel.sessions.v1.PuzzleSessionService."""

    def __init__(self, sessions: PuzzleSessions) -> None:
        self._sessions = sessions

    @syncs(DOMAIN)
    async def UploadPuzzleSessions(
        self, request: pb.UploadPuzzleSessionsRequest, context: Context
    ) -> pb.UploadPuzzleSessionsResponse:
        return await self._upload(capture(convert.session_from_pb, counted(request.sessions, "sessions")))

    @syncs(DOMAIN)
    async def UploadPuzzleSessionsJson(
        self, request: pb.UploadPuzzleSessionsJsonRequest, context: Context
    ) -> pb.UploadPuzzleSessionsResponse:
        return await self._upload(capture(convert.session_from_json, items(request.document.data, "sessions")))

    async def _upload(self, submitted: Sequence[Submitted | Failure]) -> pb.UploadPuzzleSessionsResponse:
        carried(Tally(DOMAIN, len(submitted)))
        uploaded = await self._sessions.upload(principal(), submitted, idempotency_key())
        carried(Tally(DOMAIN, len(submitted), uploaded.conflicts, len(uploaded.rejected)))
        return convert.upload_response(uploaded)

    async def ListPuzzleSessions(
        self, request: pb.ListPuzzleSessionsRequest, context: Context
    ) -> pb.ListPuzzleSessionsResponse:
        page = await self._sessions.page(principal(), request.since, request.page_size, request.page_token)
        return convert.list_response(page)
