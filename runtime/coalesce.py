"""Owns asking once for what many callers want at about the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar

# Seconds. Long enough to gather some calls of a busy process, short beside what a call takes in one.
INTERVAL: Final = 0.008

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Coalesced(Generic[K, V]):
    """Loads by key, many keys in one go: the first at once, and then at most one load in each interval.

    Nothing is kept: every answer was read after its caller asked. A caller who is alone never waits; one among many
    waits for a moment, and is served sooner for it, because a trip to the database costs more than what it fetches.
    """

    def __init__(self, load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, interval: float = INTERVAL) -> None:
        """`interval`: seconds from one load to the next."""
        self._load = load
        self._interval = interval
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def get(self, key: K) -> V | None:
        """The value of `key`, or None when there is none. Raises what the load raises."""
        loop = asyncio.get_running_loop()
        # One for each caller, so that the cancellation of one does not reach the others.
        future: asyncio.Future[V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._task is None:
            self._task = loop.create_task(self._run(loop), name="coalesced load")
        return await future

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._waiting:
                if (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                self._next_at = loop.time() + self._interval
                batch, self._waiting = self._waiting, {}
                try:
                    found = await self._load(list(batch))
                except Exception as error:
                    for future in _still_waiting(batch):
                        future.set_exception(error)
                else:
                    for key, futures in batch.items():
                        for future in _still_waiting({key: futures}):
                            future.set_result(found.get(key))
        finally:
            self._task = None


def _still_waiting(batch: Mapping[K, Sequence[asyncio.Future[V | None]]]) -> Iterator[asyncio.Future[V | None]]:
    """The futures of callers who have not gone away."""
    return (future for futures in batch.values() for future in futures if not future.done())
