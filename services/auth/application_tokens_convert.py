"""Owns the two shapes of application tokens: domain values and messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from satchel.auth.v1 import application_tokens_pb2 as pb

from runtime.application_tokens import ResolvedToken
from runtime.clock import format_time, from_timestamp, to_timestamp
from services.auth.application_tokens_domain import ApplicationToken


def expire_time_from_pb(message: pb.CreateApplicationTokenRequest) -> datetime | None:
    """When the token is to expire, if at all. Raises Failure(FIELD_INVALID)."""
    return from_timestamp("expires_at", message.expires_at) if message.HasField("expires_at") else None


def create_response(token: ApplicationToken, secret: str) -> pb.CreateApplicationTokenResponse:
    """A token that was created."""
    return pb.CreateApplicationTokenResponse(**_values(token), token=secret)


def update_response(token: ApplicationToken, secret: str) -> pb.UpdateApplicationTokenResponse:
    """A token that was changed, or its successor."""
    return pb.UpdateApplicationTokenResponse(**_values(token), token=secret, revoked=token.revoke_time is not None)


def list_response(tokens: Iterable[ApplicationToken]) -> pb.ListApplicationTokensResponse:
    """Tokens without their secrets."""
    return pb.ListApplicationTokensResponse(tokens=[pb.ApplicationToken(**_values(token)) for token in tokens])


def resolve_response(found: Mapping[bytes, ResolvedToken]) -> pb.ResolveApplicationTokensResponse:
    """Tokens as services see them."""
    return pb.ResolveApplicationTokensResponse(tokens=[_resolved(digest, one) for digest, one in found.items()])


def _resolved(digest: bytes, token: ResolvedToken) -> pb.ResolvedToken:
    message = pb.ResolvedToken(
        digest=digest,
        id=str(token.id),
        user_id=str(token.user_id),
        tenant_id=token.tenant_id,
        tier=token.tier,
        scopes=sorted(token.scopes),
        revoked=token.revoked,
    )
    if math.isfinite(token.expires_at):
        message.expire_time.FromMicroseconds(round(token.expires_at * 1e6))
    return message


def _values(token: ApplicationToken) -> dict[str, Any]:
    return {
        "id": str(token.id),
        "user_id": str(token.account_id),
        "name": token.name,
        "scopes": sorted(token.scopes),
        "created_at": to_timestamp(token.create_time),
        "expires_at": _time_or_null(token.expire_time),
        "last_used_at": _time_or_null(token.last_use_time),
    }


def _time_or_null(time: datetime | None) -> Value:
    return Value(null_value=NULL_VALUE) if time is None else Value(string_value=format_time(time))
