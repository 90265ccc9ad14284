"""Owns the rpcs of a user's totals: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import stats_pb2 as pb
from satchel.sessions.v1 import stats_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.outcomes import syncs
from services.sessions import stats_convert as convert
from services.sessions.stats_domain import KEY, UserStats

Context = ServicerContext[Any, Any]


class StatsServicer(pb_grpc.StatsServiceServicer):
    """satchel.sessions.v1.StatsService."""

    def __init__(self, stats: UserStats) -> None:
        self._stats = stats

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        return convert.get_response(await self._stats.get(principal()))

    @syncs(KEY.domain, items=1)
    async def UpdateStats(self, request: pb.UpdateStatsRequest, context: Context) -> pb.UpdateStatsResponse:
        given = convert.given_from_pb(request)
        return convert.update_response(await self._stats.update(principal(), given, idempotency_key()))
