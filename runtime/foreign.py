"""Owns the access tokens of issuers elsewhere that are as good here as our own: those of a Supabase project."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID, uuid5

from runtime.call import Principal
from runtime.config import Config
from runtime.errors import Failure, Reason
from runtime.issuers import Check, IssuerKeys, issuer_client
from runtime.signed import SHARED, Unproven, audiences, check_shared, check_times

AUDIENCE: Final = "authenticated"
# Their clocks are not ours.
LEEWAY: Final = 30.0
# Sign-ins that have no UUID of their own get one by their user and whatever names them.
_SIGN_INS: Final = UUID("5f0f5a0e-9d0c-5d0b-8a52-4d6f1f1b7c11")


class ForeignTokens:
    """Verifies the access tokens of one Supabase project, and says who they speak for here."""

    def __init__(self, *, issuer: str, check: Check, tenant_id: int, clock: Callable[[], float] = time.time) -> None:
        self.issuer: Final = issuer
        self._check = check
        self._tenant_id = tenant_id
        self._clock = clock

    async def verified(self, token: Unproven) -> tuple[Principal, float]:
        """Who a token with our issuer's name speaks for, and when it expires.

        Raises Failure: INVALID_TOKEN, TOKEN_EXPIRED, UNAVAILABLE when the issuer's keys cannot be had.
        """
        await self._check(token)
        claims = token.claims
        expires = check_times(claims, now=self._clock(), leeway=LEEWAY)
        if claims.get("iss") != self.issuer or AUDIENCE not in audiences(claims):
            raise Failure(Reason.INVALID_TOKEN)
        user_id = _uuid(claims.get("sub"))
        if user_id is None or not user_id.int:
            raise Failure(Reason.INVALID_TOKEN)
        session = claims.get("session_id")
        # What the project says of roles and metadata is about the project, whoever may write it there.
        return (
            Principal(
                user_id=user_id,
                sign_in_id=_uuid(session) or uuid5(_SIGN_INS, f"{user_id} {session!r}"),
                tenant_id=self._tenant_id,
                role="user",
                tier="free",
                issuer=self.issuer,
            ),
            expires,
        )


@asynccontextmanager
async def foreign_tokens(
    config: Config, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[ForeignTokens | None]:
    """Verifies the tokens of the project in the settings for as long as the block runs; None: there is none."""
    if not config.supabase_issuer:
        yield None
        return
    secret = config.supabase_jwt_secret.get_secret_value().encode()
    url = config.supabase_jwks_url
    async with issuer_client() as http:
        keys = None
        if url or not secret:
            known = url or f"{config.supabase_issuer.rstrip('/')}/.well-known/jwks.json"
            keys = IssuerKeys(http, issuer=config.supabase_issuer, jwks_url=known)

        async def check(token: Unproven) -> None:
            if token.algorithm == SHARED and secret:
                check_shared(token, secret)
            elif keys is not None:
                await keys.check(token)
            else:
                raise Failure(Reason.INVALID_TOKEN)

        yield ForeignTokens(issuer=config.supabase_issuer, check=check, tenant_id=config.supabase_tenant, clock=clock)


def _uuid(value: Any) -> UUID | None:
    """The UUID in the one spelling that everybody writes; None for anything else."""
    try:
        parsed = UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return parsed if parsed is not None and str(parsed) == value.lower() else None
