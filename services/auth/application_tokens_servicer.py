"""Owns the rpcs of application tokens: unpack, call, pack."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from satchel.auth.v1 import application_tokens_pb2 as pb
from satchel.auth.v1 import application_tokens_pb2_grpc as pb_grpc

from runtime.call import Principal, principal
from runtime.errors import missing
from runtime.ids import parse_uuid
from services.auth import application_tokens_convert as convert
from services.auth.application_tokens_domain import ApplicationTokens

Context = ServicerContext[Any, Any]


class ApplicationTokenServicer(pb_grpc.ApplicationTokenServiceServicer):
    """satchel.auth.v1.ApplicationTokenService."""

    def __init__(self, tokens: ApplicationTokens) -> None:
        self._tokens = tokens

    async def CreateApplicationToken(
        self, request: pb.CreateApplicationTokenRequest, context: Context
    ) -> pb.CreateApplicationTokenResponse:
        caller = principal()
        token, secret = await self._tokens.create(
            caller,
            _owner(caller, request.user_id),
            name=request.name,
            scopes=request.scopes,
            expire_time=convert.expire_time_from_pb(request),
        )
        return convert.create_response(token, secret)

    async def UpdateApplicationToken(
        self, request: pb.UpdateApplicationTokenRequest, context: Context
    ) -> pb.UpdateApplicationTokenResponse:
        token, secret = await self._tokens.update(
            principal(),
            UUID(parse_uuid("user_id", request.user_id)),
            UUID(parse_uuid("id", request.id)) if request.id else None,
            name=request.name,
            rotate=request.rotate,
            revoke=request.revoke,
        )
        return convert.update_response(token, secret)

    async def ListApplicationTokens(
        self, request: pb.ListApplicationTokensRequest, context: Context
    ) -> pb.ListApplicationTokensResponse:
        user_id = UUID(parse_uuid("user_id", request.user_id))
        return convert.list_response(await self._tokens.list(principal(), user_id))

    async def ResolveApplicationTokens(
        self, request: pb.ResolveApplicationTokensRequest, context: Context
    ) -> pb.ResolveApplicationTokensResponse:
        return convert.resolve_response(await self._tokens.resolve(request.digests))


def _owner(caller: Principal, user_id: str) -> UUID:
    if user_id:
        return UUID(parse_uuid("user_id", user_id))
    if caller.role == "service":
        raise missing("user_id")
    return caller.user_id
