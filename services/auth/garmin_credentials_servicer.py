"""Owns the rpcs of Garmin credentials: unpack, call, pack."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from satchel.auth.v1 import garmin_credentials_pb2 as pb
from satchel.auth.v1 import garmin_credentials_pb2_grpc as pb_grpc

from runtime.call import principal
from runtime.ids import parse_uuid
from services.auth import garmin_credentials_convert as convert
from services.auth.garmin_credentials_domain import GarminCredentialVault

Context = ServicerContext[Any, Any]


class GarminCredentialServicer(pb_grpc.GarminCredentialServiceServicer):
    """satchel.auth.v1.GarminCredentialService."""

    def __init__(self, credentials: GarminCredentialVault) -> None:
        self._credentials = credentials

    async def CreateGarminCredentials(
        self, request: pb.CreateGarminCredentialsRequest, context: Context
    ) -> pb.CreateGarminCredentialsResponse:
        user_id = UUID(parse_uuid("user_id", request.user_id))
        texts, expire_time = convert.texts_from_pb(request), convert.expire_time_from_pb(request)
        return convert.create_response(await self._credentials.create(principal(), user_id, texts, expire_time))

    async def UpdateGarminCredentials(
        self, request: pb.UpdateGarminCredentialsRequest, context: Context
    ) -> pb.UpdateGarminCredentialsResponse:
        user_id = UUID(parse_uuid("user_id", request.user_id))
        texts, expire_time = convert.texts_from_pb(request), convert.expire_time_from_pb(request)
        return convert.update_response(await self._credentials.update(principal(), user_id, texts, expire_time))

    async def GetGarminCredentials(
        self, request: pb.GetGarminCredentialsRequest, context: Context
    ) -> pb.GetGarminCredentialsResponse:
        user_id = UUID(parse_uuid("user_id", request.user_id))
        return convert.get_response(await self._credentials.get(user_id))

    async def DeleteGarminCredentials(
        self, request: pb.DeleteGarminCredentialsRequest, context: Context
    ) -> pb.DeleteGarminCredentialsResponse:
        await self._credentials.delete(principal(), UUID(parse_uuid("user_id", request.user_id)))
        return pb.DeleteGarminCredentialsResponse()
