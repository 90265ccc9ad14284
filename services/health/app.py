"""Owns how the health service is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from satchel.health.v1 import health_pb2_grpc as satchel_health_pb2_grpc
from satchel.health.v1 import page_pb2_grpc, reference_pb2_grpc

from runtime.clock import utc_now
from runtime.config import SERVICES, Config
from runtime.database import database
from runtime.mesh import channel
from runtime.readiness import ALIVE, BLOBS
from runtime.sweeping import sweeping
from services.health.alerts_domain import read_thresholds
from services.health.devices_domain import KnownDevices
from services.health.devices_store import DeviceStore
from services.health.domain import PROBE_TIMEOUT, Mesh, Part
from services.health.outcomes_domain import Outcomes
from services.health.outcomes_store import OutcomeStore
from services.health.page_files import read_page
from services.health.page_servicer import PageServicer
from services.health.reference_files import read_reference
from services.health.reference_servicer import ReferenceServicer
from services.health.servicer import HealthServicer
from services.health.sweeps_domain import Sweeps
from services.health.sweeps_store import SweepStore
from services.health.sync_health_domain import SyncHealth
from services.health.sync_health_store import SyncHealthStore
from services.health.watches_domain import Watches

# Beside those of the probes, which must not wait for a query.
CONNECTIONS: Final = 4

# A connector to somebody else's world: without it phones sync as ever.
OPTIONAL: Final = frozenset({"garmin"})


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the health service to `server` for as long as the block runs."""
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(channel(address))
            for name in SERVICES
            if (address := config.address(name))
        }
        parts = [
            Part(
                name=name,
                needed=name not in OPTIONAL,
                probe=_grpc_probe(channels[name], ALIVE) if name in channels else None,
            )
            for name in SERVICES
        ]
        # Where files live, as the one service sees it that goes there.
        parts.append(Part(name="blobs", needed=True, probe=_grpc_probe(channels["uploads"], BLOBS)))
        db = await stack.enter_async_context(database(config.database_url, connections=2, name="health"))
        parts.append(Part(name="postgres", needed=True, probe=db.ping))
        redis = Redis.from_url(config.redis_url) if config.redis_url else None
        if redis is not None:
            stack.push_async_callback(redis.aclose)
        parts.append(Part(name="redis", needed=False, probe=_redis_probe(redis) if redis else None))
        counted = await stack.enter_async_context(
            database(config.database_url, connections=min(CONNECTIONS, config.database_connections), name="health")
        )
        sync_health = SyncHealth(SyncHealthStore(counted), read_thresholds(config.alerts), now=utc_now)
        watches = Watches(sync_health, lifetime=config.stream_lifetime, now=utc_now)
        await stack.enter_async_context(watches.running(config.redis_url))
        outcomes = Outcomes(OutcomeStore(counted), reported=watches.reported, now=utc_now)
        devices = KnownDevices(DeviceStore(counted), now=utc_now)
        sweeps = Sweeps(SweepStore(counted), now=utc_now)
        await stack.enter_async_context(sweeping(sweeps.round, config.sweep_interval))
        servicer = HealthServicer(Mesh(parts), outcomes, sync_health, devices, watches)
        satchel_health_pb2_grpc.add_HealthServiceServicer_to_server(servicer, server)
        page_pb2_grpc.add_PageServiceServicer_to_server(PageServicer(read_page()), server)
        reference_pb2_grpc.add_ReferenceServiceServicer_to_server(ReferenceServicer(read_reference()), server)
        yield


def _grpc_probe(channel: grpc.aio.Channel, name: str) -> Callable[[], Awaitable[None]]:
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def probe() -> None:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=PROBE_TIMEOUT)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ConnectionError(f"{name} is not serving")

    return probe


def _redis_probe(redis: Redis) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        await redis.ping()

    return probe
