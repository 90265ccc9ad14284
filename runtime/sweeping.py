"""Owns when what has grown too old is swept away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

_chance: Final = random.Random()  # noqa: S311  # spreads load, guards nothing


@asynccontextmanager
async def sweeping(round: Callable[[], Awaitable[object]], interval: float) -> AsyncIterator[None]:
    """Sweeps for as long as the block runs, with a pause of about `interval` seconds after each round.

    `round` never raises: what fails is left to the next one.
    """

    async def sweep() -> None:
        while True:
            # Replicas that start together must not sweep together for ever.
            await asyncio.sleep(interval * _chance.uniform(0.5, 1.5))
            await round()

    task = asyncio.create_task(sweep(), name="sweep")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
