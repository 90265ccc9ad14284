"""A health service that writes down what it is told, and goes away when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc as pb_grpc

PATIENCE = 30.0
COUNTS = (
    *("syncs", "failed_syncs", "items", "conflicts", "rejected"),
    *("uploads_completed", "uploads_abandoned", "upload_bytes"),
)


@dataclass(frozen=True)
class Sums:
    """What was reported, added up; only what is not 0."""

    counts: dict[str, int]
    duration_ms: float
    last: pb.Outcome


class Recorder(pb_grpc.HealthServiceServicer):
    """Counts each batch once, as the real one does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.outcomes: list[pb.Outcome] = []
        self.dropped = 0
        self.attempts: list[tuple[str, int]] = []
        """Reporter and number of each batch that came, those that came again included."""
        self.sizes: list[int] = []
        self.tokens: list[str] = []
        self.silent = False
        """Whether what is taken is not acknowledged."""
        self.refusing = False
        self._seen: set[tuple[str, int]] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        pb_grpc.add_HealthServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest, context: Any) -> pb.ReportOutcomesResponse:
        batch = request.reporter, request.number
        self.attempts.append(batch)
        self.tokens.append(str(dict(context.invocation_metadata() or ())["authorization"]))
        if self.refusing:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "never")
        if batch not in self._seen:
            self._seen.add(batch)
            self.outcomes += request.outcomes
            self.dropped += request.dropped
            self.sizes.append(len(request.outcomes))
        if self.silent:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return pb.ReportOutcomesResponse()

    def sums(self, **of: Any) -> Sums:
        """Of the outcomes whose fields are so, such as `user_id`."""
        found = [one for one in self.outcomes if all(getattr(one, name) == value for name, value in of.items())]
        sums = {name: int(sum(getattr(one, name) for one in found)) for name in COUNTS}
        return Sums(
            {name: value for name, value in sums.items() if value},
            sum(one.duration_ms for one in found),
            found[-1] if found else pb.Outcome(),
        )

    async def told(self, of: dict[str, Any], **counts: int) -> Sums:
        """The sums, as soon as they are these; what is not named is 0."""
        async with asyncio.timeout(PATIENCE):
            while (sums := self.sums(**of)).counts != counts:
                await asyncio.sleep(0.02)
        return sums

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def recorder(address: str) -> AsyncIterator[Recorder]:
    """A recorder on `address`, for as long as the block runs."""
    made = Recorder(address)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
