"""Owns the rpcs of devices: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import devices_pb2 as pb
from satchel.auth.v1 import devices_pb2_grpc as pb_grpc

from runtime.call import principal
from services.auth import devices_convert as convert
from services.auth.devices_domain import Devices

Context = ServicerContext[Any, Any]


class DeviceServicer(pb_grpc.DeviceServiceServicer):
    """satchel.auth.v1.DeviceService."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    async def ListDevices(self, request: pb.ListDevicesRequest, context: Context) -> pb.ListDevicesResponse:
        caller = principal()
        page = await self._devices.page(caller, request.page_size, request.page_token)
        return convert.list_response(page, current=caller.sign_in_id)

    async def DeleteDevice(self, request: pb.DeleteDeviceRequest, context: Context) -> pb.DeleteDeviceResponse:
        return pb.DeleteDeviceResponse(signed_out=await self._devices.sign_out(principal(), request.id))
