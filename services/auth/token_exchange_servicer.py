"""Owns the rpc of token exchange: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import token_exchange_pb2 as pb
from satchel.auth.v1 import token_exchange_pb2_grpc as pb_grpc

from runtime.call import principal
from services.auth.token_exchange_domain import Exchange, TokenExchange

Context = ServicerContext[Any, Any]


class TokenExchangeServicer(pb_grpc.TokenExchangeServiceServicer):
    """satchel.auth.v1.TokenExchangeService."""

    def __init__(self, exchange: TokenExchange) -> None:
        self._exchange = exchange

    async def ExchangeToken(self, request: pb.ExchangeTokenRequest, context: Context) -> pb.ExchangeTokenResponse:
        token = await self._exchange.exchange(
            principal(),
            Exchange(
                grant_type=request.grant_type,
                subject_token=request.subject_token,
                subject_token_type=request.subject_token_type,
                requested_token_type=request.requested_token_type,
                scope=request.scope,
            ),
        )
        return pb.ExchangeTokenResponse(
            access_token=token.access_token,
            issued_token_type=token.issued_token_type,
            token_type="Bearer",  # noqa: S106  # the name of a type
            expires_in=token.expires_in,
            scope=" ".join(sorted(token.scopes or ())),
        )
