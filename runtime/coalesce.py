"""Owns asking once for what many callers want at about the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

# Seconds. Long enough to gather some calls of a busy process, short beside what a call takes in one.
INTERVAL: Final = 0.004

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Coalesced(Generic[K, V]):
    """Loads by key, many keys in one go: the first at once, and then at most one load in each INTERVAL.

    Nothing is kept: every answer was read after its caller asked. A caller who is alone never waits; one among many
    waits for a moment, and is served sooner for it, because a trip to the database costs more than what it fetches.
    """

    def __init__(self, load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._load = load
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def get(self, key: K) -> V | None:
        """The value of `key`, or None when there is none. Raises what the load raises."""
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="coalesced load")
        # One caller's cancellation must not reach the others who wait for the same key.
        return await asyncio.shield(future)

    async def _run(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            while self._waiting:
                if (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                self._next_at = loop.time() + INTERVAL
                batch, self._waiting = self._waiting, {}
                try:
                    found = await self._load(list(batch))
                except Exception as error:
                    for future in batch.values():
                        future.set_exception(error)
                        future.exception()  # read, so that a caller who went away leaves no complaint behind
                else:
                    for key, future in batch.items():
                        future.set_result(found.get(key))
        finally:
            self._task = None
