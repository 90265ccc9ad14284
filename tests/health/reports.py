"""What other services report, and how they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import grpc
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc as pb_grpc

from runtime.clock import to_timestamp, utc_now
from runtime.config import Config
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from services.health.counts import Counts
from services.health.outcomes_domain import Outcome, Report, Said
from tests.conftest import Edge


def new_tenant() -> int:
    """A tenant that no other test has."""
    return 20_000_000 + uuid4().int % 900_000_000


def message(tenant_id: int, user_id: str = "", device_id: str = "", **given: Any) -> pb.Outcome:
    """An outcome as a message; a sync of a journal that went well, just now."""
    time = given.pop("time", None) or utc_now()
    fields = {"domain": "journal", "syncs": 1, "duration_ms": 100.0, **given}
    return pb.Outcome(tenant_id=tenant_id, user_id=user_id, device_id=device_id, time=to_timestamp(time), **fields)


def outcome(
    tenant_id: int, time: datetime, *, user_id: UUID | None = None, device_id: str = "", domain: str = "", **given: Any
) -> Outcome:
    """An outcome as a domain value; `given` are counts, and what the device said."""
    said = {name: given.pop(name) for name in tuple(given) if name in Said._fields}
    return Outcome(
        tenant_id=tenant_id,
        user_id=user_id,
        device_id=device_id,
        domain=domain,
        time=time,
        counts=Counts(**given),
        said=Said(**said),
    )


def report(*outcomes: Outcome, reporter: UUID | None = None, number: int = 1, dropped: int = 0) -> Report:
    return Report(reporter=reporter or uuid4(), number=number, outcomes=outcomes, dropped=dropped)


class Reporter:
    """A process of another service."""

    def __init__(self, config: Config, channel: grpc.aio.Channel) -> None:
        self._config = config
        self.stub = pb_grpc.HealthServiceStub(channel)
        self.id = str(uuid4())
        self.number = 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {ServiceTokens(mesh_secret(self._config.keys), 'sessions').current()}"),)

    async def report(self, *outcomes: pb.Outcome, number: int | None = None, dropped: int = 0) -> None:
        """Sends a batch, the next one unless its number is given."""
        if number is None:
            self.number = number = self.number + 1
        request = pb.ReportOutcomesRequest(reporter=self.id, number=number, outcomes=outcomes, dropped=dropped)
        await self.stub.ReportOutcomes(request, metadata=self.metadata, timeout=20)

    async def erase(self, user_id: str) -> pb.EraseUserDevicesResponse:
        request = pb.EraseUserDevicesRequest(user_id=user_id)
        return await self.stub.EraseUserDevices(request, metadata=self.metadata, timeout=20)


@asynccontextmanager
async def reporting(edge: Edge) -> AsyncIterator[Reporter]:
    """A reporter, by way of the edge."""
    async with grpc.aio.insecure_channel(edge.target) as channel:
        yield Reporter(edge.mesh.config, channel)
