"""Owns the health rpcs: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc as pb_grpc

from runtime.call import answer_headers, answer_status, principal, watch
from runtime.clock import utc_now
from runtime.paging import page_size
from services.health import convert, devices_convert, outcomes_convert, sync_health_convert
from services.health.devices_domain import KnownDevices
from services.health.domain import Mesh, status_of
from services.health.outcomes_domain import Outcomes
from services.health.sync_health_domain import SyncHealth
from services.health.watches_domain import Watches

Context = ServicerContext[Any, Any]
UNHEALTHY = 503


class HealthServicer(pb_grpc.HealthServiceServicer):
    """satchel.health.v1.HealthService."""

    def __init__(
        self, mesh: Mesh, outcomes: Outcomes, sync_health: SyncHealth, devices: KnownDevices, watches: Watches
    ) -> None:
        self._mesh = mesh
        self._outcomes = outcomes
        self._sync_health = sync_health
        self._devices = devices
        self._watches = watches

    async def CheckMesh(self, request: pb.CheckMeshRequest, context: Context) -> pb.CheckMeshResponse:
        findings = await self._mesh.check()
        if status_of(findings) == "down":
            answer_status(UNHEALTHY)
        return convert.mesh_response(findings, utc_now())

    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest, context: Context) -> pb.ReportOutcomesResponse:
        await self._outcomes.take(outcomes_convert.report_from_pb(request))
        return pb.ReportOutcomesResponse()

    async def GetSyncHealth(self, request: pb.GetSyncHealthRequest, context: Context) -> pb.GetSyncHealthResponse:
        report = await self._sync_health.get(principal(), request.tenant_id, request.hours)
        return sync_health_convert.health_response(report)

    async def GetDeviceHealth(self, request: pb.GetDeviceHealthRequest, context: Context) -> pb.GetDeviceHealthResponse:
        return devices_convert.device_response(await self._devices.get(principal(), request.device_id))

    async def ListDeviceHealth(
        self, request: pb.ListDeviceHealthRequest, context: Context
    ) -> pb.ListDeviceHealthResponse:
        page = await self._devices.page(
            principal(),
            request.tenant_id,
            order=request.order_by,
            app_version=request.app_version,
            limit=page_size(request.page_size),
            after=devices_convert.place_from_token(request.page_token),
        )
        return devices_convert.page_response(page)

    async def ListSyncPoints(self, request: pb.ListSyncPointsRequest, context: Context) -> pb.ListSyncPointsResponse:
        step, points = await self._sync_health.points(principal(), sync_health_convert.course_from_pb(request))
        return sync_health_convert.points_response(step, points)

    async def WatchSyncHealth(
        self, request: pb.WatchSyncHealthRequest, context: Context
    ) -> AsyncIterator[pb.WatchSyncHealthResponse]:
        answer_headers(("cache-control", "no-cache"))
        seen = self._watches.watch(principal(), request.tenant_id, request.hours, watch())
        async with aclosing(seen) as snapshots:
            async for snapshot in snapshots:
                yield sync_health_convert.watch_response(snapshot)

    async def EraseUserDevices(
        self, request: pb.EraseUserDevicesRequest, context: Context
    ) -> pb.EraseUserDevicesResponse:
        forgotten, in_all = await self._devices.erase(request.user_id)
        return pb.EraseUserDevicesResponse(devices=forgotten, total_devices=in_all)
