"""Owns the auth rpcs: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc

from runtime.call import principal, principal_if_any
from runtime.clock import from_timestamp
from services.auth import accounts_convert as convert
from services.auth.accounts_domain import Accounts, KnownAccounts
from services.auth.devices import device_of
from services.auth.sign_ins_domain import SignIns
from services.auth.tokens import AccessTokens

Context = ServicerContext[Any, Any]


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """satchel.auth.v1.AuthService."""

    def __init__(
        self, accounts: Accounts, known: KnownAccounts, sign_ins: SignIns, access_tokens: AccessTokens
    ) -> None:
        self._accounts = accounts
        self._known = known
        self._sign_ins = sign_ins
        self._access_tokens = access_tokens

    async def SignUp(self, request: auth_pb2.SignUpRequest, context: Context) -> auth_pb2.SignUpResponse:
        account, tokens = await self._accounts.sign_up(
            email=request.email,
            password=request.password,
            tenant_id=request.tenant_id,
            device=device_of(request.device_name),
            caller=principal_if_any(),
        )
        return convert.sign_up_response(account, tokens)

    async def SignIn(self, request: auth_pb2.SignInRequest, context: Context) -> auth_pb2.SignInResponse:
        account, tokens = await self._accounts.sign_in(
            email=request.email,
            password=request.password,
            code=request.code,
            device=device_of(request.device_name),
        )
        return convert.sign_in_response(account, tokens)

    async def Refresh(self, request: auth_pb2.RefreshRequest, context: Context) -> auth_pb2.RefreshResponse:
        tokens = await self._sign_ins.refresh(request.refresh_token, device_of(""))
        return auth_pb2.RefreshResponse(access_token=tokens.access, refresh_token=tokens.refresh)

    async def SignOut(self, request: auth_pb2.SignOutRequest, context: Context) -> auth_pb2.SignOutResponse:
        ended = await self._sign_ins.sign_out(principal(), request.scope)
        return auth_pb2.SignOutResponse(signed_out=ended)

    async def GetMe(self, request: auth_pb2.GetMeRequest, context: Context) -> auth_pb2.GetMeResponse:
        return convert.me_response(await self._known.of(principal()))

    async def DeleteMe(self, request: auth_pb2.DeleteMeRequest, context: Context) -> auth_pb2.DeleteMeResponse:
        return convert.delete_response(await self._accounts.delete(principal()))

    async def GetSubscriptionStatus(
        self, request: auth_pb2.GetSubscriptionStatusRequest, context: Context
    ) -> auth_pb2.GetSubscriptionStatusResponse:
        account = await self._known.of(principal())
        return convert.subscription_response(account.subscription)

    async def GetJwks(self, request: auth_pb2.GetJwksRequest, context: Context) -> auth_pb2.GetJwksResponse:
        return convert.jwks_response(self._access_tokens.public_keys())

    async def ListRevokedSignIns(
        self, request: auth_pb2.ListRevokedSignInsRequest, context: Context
    ) -> auth_pb2.ListRevokedSignInsResponse:
        since = from_timestamp("since", request.since) if request.HasField("since") else None
        deleted = await self._known.deleted_elsewhere(since)
        return convert.revoked_response(*await self._sign_ins.revoked_since(since), deleted)
