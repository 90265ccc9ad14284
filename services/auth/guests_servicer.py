"""Owns the rpcs of guests: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import guests_pb2 as pb
from satchel.auth.v1 import guests_pb2_grpc as pb_grpc

from runtime.call import principal
from services.auth import guests_convert as convert
from services.auth.devices import device_of
from services.auth.guests_domain import Guests
from services.auth.merges_domain import Merges

Context = ServicerContext[Any, Any]


class GuestServicer(pb_grpc.GuestServiceServicer):
    """satchel.auth.v1.GuestService."""

    def __init__(self, guests: Guests, merges: Merges) -> None:
        self._guests = guests
        self._merges = merges

    async def CreateGuest(self, request: pb.CreateGuestRequest, context: Context) -> pb.CreateGuestResponse:
        guest, tokens = await self._guests.create(request.tenant_id, device_of(request.device_name))
        return convert.guest_response(guest, tokens)

    async def MergeGuest(self, request: pb.MergeGuestRequest, context: Context) -> pb.MergeGuestResponse:
        begun = await self._merges.begin(principal(), request.guest_refresh_token, request.guest_access_token)
        return convert.merge_response(begun)
