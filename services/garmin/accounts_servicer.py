"""Owns the rpcs of linked accounts: unpack, call, pack."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from satchel.garmin.v1 import garmin_pb2 as pb

from runtime.call import header, principal
from runtime.ids import parse_uuid
from services.garmin import accounts_convert as convert
from services.garmin.accounts_domain import Accounts

Context = ServicerContext[Any, Any]


class AccountRpcs:
    """The part of satchel.garmin.v1.GarminService that links and forgets."""

    _accounts: Accounts

    async def LinkAccount(self, request: pb.LinkAccountRequest, context: Context) -> pb.LinkAccountResponse:
        mfa_required = await self._accounts.link(
            principal(), request.username, request.password, request.mfa_code, authorization=header("authorization")
        )
        return convert.link_response(mfa_required)

    async def VerifyMfa(self, request: pb.VerifyMfaRequest, context: Context) -> pb.VerifyMfaResponse:
        await self._accounts.verify(principal(), request.mfa_code)
        return pb.VerifyMfaResponse(message=convert.LINKED)

    async def GetLink(self, request: pb.GetLinkRequest, context: Context) -> pb.GetLinkResponse:
        return convert.get_response(await self._accounts.get(principal().user_id))

    async def UnlinkAccount(self, request: pb.UnlinkAccountRequest, context: Context) -> pb.UnlinkAccountResponse:
        return pb.UnlinkAccountResponse(unlinked=await self._accounts.unlink(principal().user_id))

    async def EraseUserLink(self, request: pb.EraseUserLinkRequest, context: Context) -> pb.EraseUserLinkResponse:
        await self._accounts.erase(UUID(parse_uuid("user_id", request.user_id)))
        return pb.EraseUserLinkResponse()
