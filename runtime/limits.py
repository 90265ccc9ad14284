"""Owns how often a caller may call: moving windows shared through Redis, or per process while Redis is away."""

from __future__ import annotations

import hashlib
import math
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from satchel.options.v1 import options_pb2 as options

from runtime.addresses import network_of
from runtime.call import Call
from runtime.contract import Limit
from runtime.errors import Failure, Reason
from runtime.telemetry import LIMITS_LOCAL, logger

# How long Redis is left alone after it failed, so that its absence costs one attempt a second and not one a call.
REDIS_PAUSE: Final = 1.0
REDIS_TIMEOUT: Final = 0.25
MAX_EMAIL_CHARS: Final = 254
MAX_NAMED_CHARS: Final = 16 * 1024


@dataclass(frozen=True)
class Standing:
    """Where a caller stands in one window."""

    allowed: bool
    limit: int
    remaining: int
    reset: int
    """Seconds until a call is allowed again, or the window is empty; from 1."""


class RateLimiter:
    """Counts calls in moving windows, in Redis where it can and in this process where it must."""

    def __init__(self, redis_url: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`redis_url` as Config.redis_url; empty: counts stay in this process."""
        self._monotonic = monotonic
        self._local = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None
        self._redis: RedisStorage | None = None
        self._retry_at = 0.0
        if redis_url:
            url = redis_url.replace("unix://", "redis+unix://", 1) if redis_url.startswith("unix://") else redis_url
            self._redis = RedisStorage(
                f"async+{url}",
                implementation="redispy",
                socket_timeout=REDIS_TIMEOUT,
                socket_connect_timeout=REDIS_TIMEOUT,
            )
            self._shared = MovingWindowRateLimiter(self._redis)

    async def admit(self, call: Call, request: Any) -> tuple[tuple[str, str], ...]:
        """Counts the call and returns the RateLimit headers of the tightest window.

        Raises Failure(RATE_LIMITED) with those headers on the call when a window is full.
        """
        tightest: Standing | None = None
        for limit in call.policy.limits:
            standing = await self._count(limit, _caller(limit, call, request), call.policy.method)
            if tightest is None or (standing.allowed, standing.remaining) < (
                tightest.allowed,
                tightest.remaining,
            ):
                tightest = standing
            if not standing.allowed:
                break
        if tightest is None:
            return ()
        headers = (
            ("ratelimit-limit", str(tightest.limit)),
            ("ratelimit-remaining", str(tightest.remaining)),
            ("ratelimit-reset", str(tightest.reset)),
        )
        if not tightest.allowed:
            call.headers += headers
            message = f"Too many requests; try again in {in_words(tightest.reset)}."
            raise Failure(Reason.RATE_LIMITED, message, retry_after=tightest.reset)
        return headers

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            await cast(Any, self._redis.bridge).storage.aclose()

    async def _count(self, limit: Limit, caller: str, method: str) -> Standing:
        item = RateLimitItemPerSecond(limit.count, limit.window, namespace="satchel")
        if self._shared is not None and self._monotonic() >= self._retry_at:
            try:
                return await _hit(self._shared, item, method, caller)
            except Exception as error:  # whatever the client raises, a call must not fail for want of a counter
                self._retry_at = self._monotonic() + REDIS_PAUSE
                logger().warning("rate limits are counted per process: Redis is away", error=str(error))
        if self._shared is not None:
            LIMITS_LOCAL.inc()
        return await _hit(self._local, item, method, caller)


def in_words(seconds: float) -> str:
    """A time to wait, for people: whole seconds up to a minute and a half, then whole minutes, never too few."""
    number, unit = (math.ceil(seconds), "second") if seconds <= 90 else (math.ceil(seconds / 60), "minute")
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def spent(headers: Iterable[tuple[str, str]], retry_after: float) -> list[tuple[str, str]]:
    """The headers of an answer that says to wait, so that its RateLimit ones say the same, whoever made it wait."""
    said = {"ratelimit-remaining": "0", "ratelimit-reset": str(max(1, math.ceil(retry_after)))}
    return [(name, said.get(name, value)) for name, value in headers]


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItemPerSecond, method: str, caller: str) -> Standing:
    allowed = await limiter.hit(item, method, caller)
    window = await limiter.get_window_stats(item, method, caller)
    reset = max(1, int(window.reset_time - time.time()) + 1)
    return Standing(allowed, item.amount, window.remaining if allowed else 0, min(reset, item.get_expiry()))


def _caller(limit: Limit, call: Call, request: Any) -> str:
    if limit.scope == options.SCOPE_USER and call.principal is not None:
        return str(call.principal.user_id)
    if limit.scope == options.SCOPE_IP_AND_ACCOUNT:
        named = str(getattr(request, limit.account_field))
        account = unicodedata.normalize("NFC", named[:MAX_NAMED_CHARS]).strip().lower()
        if len(account) > MAX_EMAIL_CHARS:  # no e-mail, but a token, of which many begin alike
            account = hashlib.sha256(account.encode("utf-8", "replace")).hexdigest()
        return f"{network_of(call.client_ip)} {account}"
    return network_of(call.client_ip)
