"""Owns whether a process can do its work: what it answers to grpc.health.v1 and /readyz, and how it finds out.

A service is SERVING while its process reaches the database. The edge asks for ALIVE instead, which says no more than
that the process takes calls: it then sends calls on while the database is away, and the service answers each in its
caller's dialect, with the time to come again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final
from weakref import WeakKeyDictionary

import grpc
from grpc_health.v1 import health, health_pb2

from runtime.patience import within
from runtime.telemetry import DEPENDENCY_UP, logger

# Names beside those of services, as grpc.health.v1 is asked for them.
ALIVE: Final = "alive"
BLOBS: Final = "blobs"

# Seconds between two looks, and how long an answer may take.
INTERVAL: Final = 1.0
PATIENCE: Final = 1.0
# Two in a row: one slow answer of a busy machine is not the end of a service.
FAILURES: Final = 2

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

Probe = Callable[[], Awaitable[object]]
"""Raises when what it asks is away."""


class Readiness:
    """What a process says of itself: nothing good before `begin`, and never again after `end`."""

    def __init__(self) -> None:
        self.servicer: Final = health.aio.HealthServicer()
        """Of grpc.health.v1."""
        self.ready = threading.Event()
        """Set while this process can do its work; read from other threads."""
        self._ended = False

    async def begin(self, services: Sequence[str]) -> None:
        """The process takes calls to `services`, by their full names."""
        for name in (ALIVE, "", *services):
            await self.servicer.set(name, _SERVING)
        self.ready.set()

    async def end(self) -> None:
        """It takes no more."""
        self._ended = True
        self.ready.clear()
        await self.servicer.enter_graceful_shutdown()

    @asynccontextmanager
    async def following_database(self, probe: Probe, services: Sequence[str]) -> AsyncIterator[None]:
        """Says of the process and of `services` that they are ready while the database is, while the block runs."""

        async def tell(reachable: bool) -> None:
            if not self._ended:
                (self.ready.set if reachable else self.ready.clear)()
            for name in ("", *services):
                await self._say(name, reachable)

        async with _following("postgres", probe, tell, INTERVAL):
            yield

    @asynccontextmanager
    async def telling(self, name: str, probe: Probe, *, interval: float) -> AsyncIterator[None]:
        """Answers for something else that services stand on, by `name`, for as long as the block runs."""
        async with _following(name, probe, lambda reachable: self._say(name, reachable), interval):
            yield

    async def _say(self, name: str, good: bool) -> None:
        await self.servicer.set(name, _SERVING if good else _NOT_SERVING)


_of_servers: Final[WeakKeyDictionary[grpc.aio.Server, Readiness]] = WeakKeyDictionary()


def readiness_of(server: grpc.aio.Server) -> Readiness:
    """What the process of a server says of itself."""
    return _of_servers.setdefault(server, Readiness())


@asynccontextmanager
async def _following(
    name: str, probe: Probe, tell: Callable[[bool], Awaitable[None]], interval: float
) -> AsyncIterator[None]:
    """Tells when what `probe` asks is there, and when it no longer is, for as long as the block runs."""

    async def follow() -> None:
        said: bool | None = None
        failures = 0
        while True:
            try:
                await within(PATIENCE, probe)
                failures = 0
            except Exception as error:  # whatever it was, it was not the answer
                failures += 1
                if failures == FAILURES:
                    logger().warning("a dependency is away", dependency=name, error=repr(error))
            reachable = failures == 0
            if said is not reachable and (reachable or failures >= FAILURES):
                if said is False:
                    logger().info("a dependency is back", dependency=name)
                said = reachable
                DEPENDENCY_UP.labels(name).set(reachable)
                await tell(reachable)
            await asyncio.sleep(interval)

    task = asyncio.create_task(follow(), name=f"follow {name}")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
