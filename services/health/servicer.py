"""Owns the health rpcs: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc as pb_grpc

from runtime.call import answer_status
from runtime.clock import utc_now
from services.health import convert
from services.health.domain import Mesh, status_of

Context = ServicerContext[Any, Any]
UNHEALTHY = 503


class HealthServicer(pb_grpc.HealthServiceServicer):
    """satchel.health.v1.HealthService."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def CheckMesh(self, request: pb.CheckMeshRequest, context: Context) -> pb.CheckMeshResponse:
        findings = await self._mesh.check()
        if status_of(findings) == "down":
            answer_status(UNHEALTHY)
        return convert.mesh_response(findings, utc_now())
