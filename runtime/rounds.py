"""Owns how work that waits in a table is gone through: at once when there is more of it, and every second anyway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final

from runtime.telemetry import logger

# How often the table is looked at though nobody hinted: another replica may have stopped in the middle.
LOOK_INTERVAL: Final = 1.0
FIRST_PAUSE: Final = timedelta(seconds=1)
LONGEST_PAUSE: Final = timedelta(minutes=1)


def pause_after(failures: int) -> timedelta:
    """How long something is left alone that fails, having failed so many times in a row before."""
    doublings: int = 2 ** min(failures, 10)
    return min(FIRST_PAUSE * doublings, LONGEST_PAUSE)


class Rounds:
    """Goes through what is due, round after round."""

    def __init__(self, carry_out: Callable[[], Awaitable[None]], *, name: str) -> None:
        """`carry_out` goes through all that is due; it raises when it cannot even look."""
        self._carry_out = carry_out
        self._name = name
        self._wake = asyncio.Event()
        self._failing = False

    def look(self) -> None:
        """There is something new."""
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Goes through what falls due for as long as the block runs."""
        task = asyncio.create_task(self._run(), name=self._name)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._carry_out()
                self._failing = False
            except Exception as error:  # the work will be there when the database is
                if not self._failing:
                    logger().warning("cannot look for work", work=self._name, error=repr(error))
                self._failing = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_INTERVAL)
