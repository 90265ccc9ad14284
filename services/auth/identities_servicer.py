"""Owns the rpcs of OpenID identities: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import sso_pb2, sso_pb2_grpc

from runtime.call import principal, principal_if_any
from services.auth import identities_convert as convert
from services.auth.devices import device_of
from services.auth.identities_domain import Identities

Context = ServicerContext[Any, Any]


class SsoServicer(sso_pb2_grpc.SsoServiceServicer):
    """satchel.auth.v1.SsoService."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def SignInWithProvider(
        self, request: sso_pb2.SignInWithProviderRequest, context: Context
    ) -> sso_pb2.SignInWithProviderResponse:
        opened = await self._identities.sign_in(
            provider=request.provider,
            id_token=request.id_token,
            nonce=request.nonce,
            full_name=request.full_name,
            tenant_id=request.tenant_id,
            code=request.code,
            device=device_of(request.device_name),
            caller=principal_if_any(),
        )
        return convert.sign_in_response(*opened)

    async def ListIdentities(
        self, request: sso_pb2.ListIdentitiesRequest, context: Context
    ) -> sso_pb2.ListIdentitiesResponse:
        return convert.list_response(await self._identities.identities(principal()))

    async def LinkIdentity(
        self, request: sso_pb2.LinkIdentityRequest, context: Context
    ) -> sso_pb2.LinkIdentityResponse:
        identity = await self._identities.link(
            principal(), provider=request.provider, id_token=request.id_token, nonce=request.nonce
        )
        return sso_pb2.LinkIdentityResponse(identity=convert.identity_to_pb(identity))

    async def UnlinkIdentity(
        self, request: sso_pb2.UnlinkIdentityRequest, context: Context
    ) -> sso_pb2.UnlinkIdentityResponse:
        ended = await self._identities.unlink(principal(), request.provider)
        return sso_pb2.UnlinkIdentityResponse(signed_out=ended)
