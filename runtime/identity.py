"""Owns who a token speaks for: every service verifies by itself, whatever stood in front of it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import jwt
from satchel.options.v1 import options_pb2 as options

from runtime import application_tokens
from runtime.application_tokens import ResolvedToken
from runtime.call import Principal
from runtime.contract import Policy
from runtime.errors import Failure, Reason
from runtime.foreign import ForeignTokens
from runtime.signed import (
    SHARED,
    PublicKey,
    audiences,
    check_shared,
    check_signature,
    check_times,
    parse,
    public_key,
)

ISSUER: Final = "satchel"
SIGNED: Final = "ES256"
MESH_AUDIENCE: Final = "satchel-mesh"
ACCESS_TOKEN_SECONDS: Final = 3600
SERVICE_TOKEN_SECONDS: Final = 300
# Access tokens are issued and verified on machines whose clocks may differ a little.
LEEWAY: Final = 5
MAX_TOKEN_CHARS: Final = 8192
CACHE_SIZE: Final = 10_000
# How long what is known of an application's token is believed; its end is learned from the feed before that.
APPLICATION_TOKEN_SECONDS: Final = 60
# A token with a key id that nobody knows must not make every service ask for the keys every time.
KEYS_PAUSE: Final = 5.0
# How long a call waits for the first news of ended sign-ins.
FIRST_NEWS: Final = 2.0

_NOBODY: Final = UUID(int=0)
_SERVICE: Final = re.compile(r"service:[a-z0-9_+-]{1,100}")


@dataclass(frozen=True)
class _Verified:
    principal: Principal
    expires_at: float
    good_until: float = math.inf
    """Then it is verified again."""


class Revocations:
    """Whose tokens are refused though they are alive: ended sign-ins, application tokens and accounts, and
    users of other issuers who were deleted here.
    """

    def __init__(
        self,
        *,
        patience: float = math.inf,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience`: seconds without news after which nobody can say any more that a sign-in was not ended."""
        self._patience = patience
        self._clock = clock
        self._monotonic = monotonic
        self._ended: OrderedDict[UUID, float] = OrderedDict()
        self._deleted: set[UUID] = set()
        self._heard_at = float("-inf")
        self._heard = asyncio.Event()

    def add(self, sign_in_ids: Iterable[UUID]) -> None:
        """News: remembers the ids until the last access token of each has expired; forgets those that have."""
        self._heard_at = self._monotonic()
        self._heard.set()
        now = self._clock()
        for sign_in_id in sign_in_ids:
            self._ended.setdefault(sign_in_id, now + ACCESS_TOKEN_SECONDS + LEEWAY)
        while self._ended and next(iter(self._ended.values())) < now:
            self._ended.popitem(last=False)

    def add_deleted(self, user_ids: Iterable[UUID]) -> None:
        """Remembers, for as long as this process runs, users who are to be refused whoever issues their tokens."""
        self._deleted.update(user_ids)

    def __contains__(self, sign_in_id: UUID) -> bool:
        return sign_in_id in self._ended

    async def check(self, principal: Principal) -> None:
        """Raises Failure: TOKEN_REVOKED for one of these, UNAVAILABLE when there was no news for too long."""
        if math.isfinite(self._patience) and not self._heard.is_set():
            # A process that has just started is about to ask.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), FIRST_NEWS)
        if principal.sign_in_id in self._ended or principal.user_id in self._deleted:
            raise Failure(Reason.TOKEN_REVOKED)
        if principal.issuer and not self._heard.is_set():
            # Its issuer may still speak for somebody who is deleted here, and nobody has told us yet who that is.
            raise Failure(Reason.UNAVAILABLE, retry_after=1)
        if self._monotonic() - self._heard_at > self._patience:
            raise Failure(Reason.UNAVAILABLE, "Nobody can say if this sign-in was ended; try again.", retry_after=1)


class Verifier:
    """Turns a bearer token into the principal it speaks for, and remembers the answer until the token expires."""

    def __init__(
        self,
        *,
        fetch_keys: Callable[[], Awaitable[Iterable[Mapping[str, str]]]],
        mesh_secret: bytes,
        revocations: Revocations,
        foreign: ForeignTokens | None = None,
        resolve: Callable[[bytes], Awaitable[ResolvedToken | None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fetch_keys` gives the public keys of the auth service as JSON Web Keys.

        Tokens that name the issuer of `foreign` are its to judge; None: only ours are good. `resolve` finds an
        application's token by its digest; None: such tokens are not taken.
        """
        self._foreign = foreign
        self._resolve = resolve
        self._fetch_keys = fetch_keys
        self._mesh_secret = mesh_secret
        self._revocations = revocations
        self._clock = clock
        self._keys: dict[str, PublicKey] = {}
        self._keys_at = float("-inf")
        self._fetching = asyncio.Lock()
        self._cache: OrderedDict[str, _Verified] = OrderedDict()

    async def principal(self, authorization: str | None) -> Principal:
        """Who `authorization` (the header's value) speaks for.

        Raises Failure with MISSING_BEARER_TOKEN, INVALID_TOKEN, TOKEN_EXPIRED, TOKEN_REVOKED, or UNAVAILABLE when the
        keys cannot be had.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Failure(Reason.MISSING_BEARER_TOKEN)
        known = self._cache.get(token)
        if known is None or known.good_until <= self._clock():
            known = await self._verify(token)
            self._cache[token] = known
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        if known.expires_at <= self._clock():
            self._cache.pop(token, None)
            raise Failure(Reason.TOKEN_EXPIRED)
        if known.principal.role != "service":
            await self._revocations.check(known.principal)
        return known.principal

    async def _verify(self, text: str) -> _Verified:
        if text.startswith(application_tokens.PREFIX):
            return await self._verify_application(text)
        token = parse(text, max_chars=MAX_TOKEN_CHARS)
        # Who it says has issued it decides which keys are tried, and each key is tried with its own algorithm only.
        if self._foreign is not None and token.claims.get("iss") == self._foreign.issuer:
            return _Verified(*await self._foreign.verified(token))
        if token.algorithm == SHARED:
            check_shared(token, self._mesh_secret)
            expires = self._check_claims(token.claims)
            if MESH_AUDIENCE not in audiences(token.claims):
                raise Failure(Reason.INVALID_TOKEN)
            try:
                actor = _service(token.claims.get("sub"))
            except ValueError:
                raise Failure(Reason.INVALID_TOKEN) from None
            principal = Principal(
                user_id=_NOBODY, sign_in_id=_NOBODY, tenant_id=0, role="service", tier="", actor=actor
            )
            return _Verified(principal, expires)
        if token.algorithm != SIGNED or token.kid is None:
            raise Failure(Reason.INVALID_TOKEN)
        check_signature(token, await self._key(token.kid))
        if "aud" in token.claims:  # it is meant for somebody, and ours are for everybody here
            raise Failure(Reason.INVALID_TOKEN)
        return _Verified(_principal(token.claims), self._check_claims(token.claims))

    def _check_claims(self, claims: Mapping[str, Any]) -> float:
        if claims.get("iss") != ISSUER:
            raise Failure(Reason.INVALID_TOKEN)
        return check_times(claims, now=self._clock(), leeway=LEEWAY)

    async def _verify_application(self, token: str) -> _Verified:
        if self._resolve is None or not application_tokens.is_well_formed(token):
            raise Failure(Reason.INVALID_TOKEN)
        found = await self._resolve(application_tokens.digest(token))
        if found is None:
            raise Failure(Reason.INVALID_TOKEN)
        if found.revoked:
            raise Failure(Reason.TOKEN_REVOKED)
        # An administrator's rights are not lent to programs.
        principal = Principal(
            user_id=found.user_id,
            sign_in_id=found.id,
            tenant_id=found.tenant_id,
            role="user",
            tier=found.tier,
            scopes=found.scopes,
        )
        return _Verified(principal, found.expires_at, self._clock() + APPLICATION_TOKEN_SECONDS)

    async def _key(self, kid: str) -> PublicKey:
        if kid not in self._keys:
            async with self._fetching:
                if kid not in self._keys and self._clock() - self._keys_at >= KEYS_PAUSE:
                    fetched = [public_key(key) for key in await self._fetch_keys()]
                    self._keys = {key.kid: key for key in fetched if key is not None and key.kid is not None}
                    self._keys_at = self._clock()
        if kid not in self._keys:
            raise Failure(Reason.INVALID_TOKEN)
        return self._keys[kid]


def _principal(claims: Mapping[str, Any]) -> Principal:
    """Who a token of ours speaks for. Raises Failure(INVALID_TOKEN)."""
    try:
        return Principal(
            user_id=UUID(claims["sub"]),
            sign_in_id=UUID(claims["sid"]),
            tenant_id=int(claims["tenant_id"]),
            role="admin" if claims["role"] == "admin" else "user",
            tier=str(claims["tier"]),
            guest=claims.get("guest") is True,
            actor=_service(claims["act"]["sub"]) if "act" in claims else "",
            scopes=frozenset(str(claims["scope"]).split()) if "scope" in claims else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise Failure(Reason.INVALID_TOKEN) from None


class ServiceTokens:
    """Mints the tokens that one service shows to another."""

    def __init__(self, secret: bytes, service: str, *, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._service = service
        self._clock = clock
        self._token = ""
        self._renew_at = float("-inf")

    def current(self) -> str:
        """A token with at least half its five minutes left."""
        now = self._clock()
        if now >= self._renew_at:
            claims: dict[str, Any] = {
                "iss": ISSUER,
                "aud": MESH_AUDIENCE,
                "sub": f"service:{self._service}",
                "iat": int(now),
                "exp": int(now) + SERVICE_TOKEN_SECONDS,
            }
            self._token = jwt.encode(claims, self._secret, algorithm="HS256")
            self._renew_at = now + SERVICE_TOKEN_SECONDS / 2
        return self._token


def authorize(access: int, principal: Principal) -> None:
    """Raises Failure(FORBIDDEN) unless `principal` may call rpcs with `access` (satchel.options.v1.Access)."""
    role = principal.role
    allowed = (
        (access in (options.ACCESS_USER, options.ACCESS_OPTIONAL) and role in ("user", "admin"))
        or (access == options.ACCESS_ADMIN and role == "admin")
        or (access == options.ACCESS_SERVICE and role == "service")
        or (access == options.ACCESS_OPERATOR and role in ("admin", "service"))
        or access == options.ACCESS_OWNER
    )
    if not allowed:
        raise Failure(Reason.FORBIDDEN)


def check_delegation(policy: Policy, principal: Principal) -> None:
    """Raises Failure(FORBIDDEN) unless the rpc is open to `principal`, who may call in a user's name and within scopes.

    An application's scope is read, write (which includes read), or one of them for one service, as in sessions:read.
    """
    if not principal.delegated:
        return
    if not policy.delegable:
        raise Failure(Reason.FORBIDDEN, "This takes a sign-in of the user.")
    if principal.scopes is None:
        return
    enough = ("read", "write") if policy.read_only else ("write",)
    service = policy.service.split(".")[1]
    if principal.scopes.isdisjoint([*enough, *(f"{service}:{one}" for one in enough)]):
        raise Failure(Reason.FORBIDDEN, f"The token lacks the scope {enough[0]} or {service}:{enough[0]}.")


def _service(subject: object) -> str:
    """The name of a service as a token gives it. Raises ValueError for anything else."""
    if not isinstance(subject, str) or not _SERVICE.fullmatch(subject):
        raise ValueError("no name of a service")
    return subject
