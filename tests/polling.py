"""Waiting for what comes about by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> float:
    """Seconds until the condition holds; asks again and again, for so long at most."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() < started + seconds, f"still not so after {seconds} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - started
