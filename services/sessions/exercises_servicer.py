"""Owns the rpcs of exercise sessions: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import exercise_sessions_pb2 as pb
from satchel.sessions.v1 import exercise_sessions_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.outcomes import syncs
from services.sessions import exercises_convert as convert
from services.sessions.exercises_domain import DOMAIN, ExerciseSessions

Context = ServicerContext[Any, Any]


class ExerciseSessionServicer(pb_grpc.ExerciseSessionServiceServicer):
    """satchel.sessions.v1.ExerciseSessionService."""

    def __init__(self, sessions: ExerciseSessions) -> None:
        self._sessions = sessions

    @syncs(DOMAIN, items=1)
    async def CreateExerciseSession(
        self, request: pb.CreateExerciseSessionRequest, context: Context
    ) -> pb.CreateExerciseSessionResponse:
        data = convert.data_from_pb(request)
        return convert.create_response(await self._sessions.create(principal(), request.id, data, idempotency_key()))

    async def GetExerciseSession(
        self, request: pb.GetExerciseSessionRequest, context: Context
    ) -> pb.GetExerciseSessionResponse:
        return convert.get_response(await self._sessions.get(principal(), request.id))

    async def ListExerciseSessions(
        self, request: pb.ListExerciseSessionsRequest, context: Context
    ) -> pb.ListExerciseSessionsResponse:
        page = await self._sessions.page(principal(), request.exercise_id, request.page_size, request.page_token)
        return convert.list_response(page)
