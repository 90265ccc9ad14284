"""Owns waiting for an answer no longer than one cares for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def within(seconds: float, ask: Callable[[], Awaitable[object]]) -> None:
    """Asks, and raises what asking raises, or TimeoutError when there is no answer in time.

    `asyncio.timeout` waits until what it has cancelled is over. That is long where it is most needed: psycopg spends
    ten seconds on a server that hangs, to take its question back. Here it is left to that by itself.
    """

    async def asked() -> None:
        await ask()

    task = asyncio.create_task(asked())
    task.add_done_callback(_seen)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    task.result()


def _seen(task: asyncio.Task[None]) -> None:
    """What came of it after all is nobody's concern any more, and nothing to complain of in the log."""
    if not task.cancelled():
        task.exception()
