"""Owns the public keys of issuers elsewhere: fetched from them, kept for a while, never taken from a token."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from runtime.config import is_safe_url
from runtime.errors import Failure, Reason
from runtime.signed import ASYMMETRIC, PublicKey, Unproven, check_signature, public_key
from runtime.telemetry import logger

# Seconds, for a whole fetch; a call has fifteen.
FETCH_TIMEOUT: Final = 4.0
MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
# Keys are good for as long as their issuer says, within reason; with nothing said, for five minutes.
MIN_AGE: Final = 60.0
MAX_AGE: Final = 3600.0
AGE: Final = 300.0
# While the issuer cannot be reached its last keys stay good for so long.
STALE_AGE: Final = 24 * 3600.0
# Neither a token with a made-up key id nor an issuer that is away may make us ask all the time.
PAUSE: Final = 5.0

_SAYS_AGE: Final = re.compile(r"\bmax-age=(\d{1,9})\b")


class _BadAnswer(Exception):
    """An issuer answered something that is no key set."""


@asynccontextmanager
async def issuer_client() -> AsyncIterator[httpx.AsyncClient]:
    """What keys are fetched with, for as long as the block runs."""
    limits = httpx.Limits(max_connections=20, max_keepalive_connections=5, keepalive_expiry=30)
    headers = {"user-agent": "satchel", "accept": "application/json", "accept-encoding": "identity"}
    async with httpx.AsyncClient(
        timeout=FETCH_TIMEOUT, limits=limits, headers=headers, follow_redirects=False
    ) as client:
        yield client


class IssuerKeys:
    """The keys of one issuer; however many ask at once, one fetch is under way."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        issuer: str,
        jwks_url: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`jwks_url` empty: the one that the issuer's discovery document names."""
        self._http = http
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._clock = clock
        self._keys: tuple[PublicKey, ...] = ()
        self._fetched_at = float("-inf")
        self._fresh_until = float("-inf")
        self._asked_at = float("-inf")
        self._away = False
        self._fetching: asyncio.Task[None] | None = None

    async def check(self, token: Unproven) -> None:
        """Raises Failure: INVALID_TOKEN unless a key of the issuer has signed it, UNAVAILABLE without any keys."""
        if token.algorithm not in ASYMMETRIC:
            raise Failure(Reason.INVALID_TOKEN)
        if self._clock() >= self._fresh_until:
            await self._refresh()
        key = self._find(token)
        if key is None and self._keys:
            await self._refresh()
            key = self._find(token)
        if key is not None:
            return check_signature(token, key)
        if self._away or not self._keys:
            raise Failure(
                Reason.UNAVAILABLE, "The issuer of the token cannot be asked for its keys.", retry_after=PAUSE
            )
        raise Failure(Reason.INVALID_TOKEN)

    def _find(self, token: Unproven) -> PublicKey | None:
        if self._clock() >= self._fetched_at + STALE_AGE:
            self._keys = ()
        if token.kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == token.kid), None)

    async def _refresh(self) -> None:
        if self._fetching is None:
            if self._clock() < self._asked_at + PAUSE:
                return
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="fetch keys")
        # One caller who goes away does not end what the others wait for.
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys, age = await self._load()
            self._keys, self._away = keys, False
            self._fetched_at = self._clock()
            self._fresh_until = self._fetched_at + age
        except Exception as error:  # whatever an issuer answers, its last keys are good for a while
            self._away = True
            logger().warning("cannot fetch an issuer's keys", issuer=self._issuer, error=repr(error))
        finally:
            self._fetching = None

    async def _load(self) -> tuple[tuple[PublicKey, ...], float]:
        url = self._jwks_url or await self._discovered()
        document, age = await self._get(url)
        listed = document.get("keys")
        known = listed[:MAX_KEYS] if isinstance(listed, list) else []
        keys = tuple(key for one in known if isinstance(one, dict) and (key := public_key(one)))
        if not keys:
            raise _BadAnswer(f"{url} holds no key that could be used")
        return keys, age

    async def _discovered(self) -> str:
        document, _ = await self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        url = document.get("jwks_uri")
        if document.get("issuer") != self._issuer or not isinstance(url, str) or not is_safe_url(url):
            raise _BadAnswer("the discovery document is another issuer's, or names no safe jwks_uri")
        return url

    async def _get(self, url: str) -> tuple[dict[str, Any], float]:
        async with self._http.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise _BadAnswer(f"{url} answered {answer.status_code}")
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise _BadAnswer(f"{url} is too large")
        document = json.loads(body)
        if not isinstance(document, dict):
            raise _BadAnswer(f"{url} holds no JSON object")
        said = _SAYS_AGE.search(answer.headers.get("cache-control", ""))
        return document, min(max(float(said[1]), MIN_AGE), MAX_AGE) if said else AGE


Check = Callable[[Unproven], Awaitable[None]]
"""Raises Failure: INVALID_TOKEN unless the token's signature is its issuer's, UNAVAILABLE when that cannot be known."""
