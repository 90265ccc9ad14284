"""Owns a process's server: starts services on their addresses with the contract around them, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import platform
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import grpc
import psycopg
import uvloop
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime import contract
from runtime.breaking import cut_lines
from runtime.config import Config, ConfigError, from_environment
from runtime.database import database
from runtime.foreign import foreign_tokens
from runtime.identity import Revocations, ServiceTokens, Verifier
from runtime.interceptors import ContractInterceptor
from runtime.keys import mesh_secret
from runtime.limits import RateLimiter
from runtime.mesh import STREAM_OPTIONS, Acting, AuthClient, channel, watch_revocations
from runtime.migrations import head, migrate
from runtime.readiness import Readiness, readiness_of
from runtime.reporting import reporting
from runtime.single_user import single_user
from runtime.telemetry import log_to_stderr, logger, serve_metrics
from runtime.tracing import traced

# The edge refuses bodies over 8 MiB with 413 before a message of this size is reached.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

DATABASE_INTERVAL: Final = 0.5
CUT_WITHIN: Final = 1.0
# Allocations between two looks of Python's collector, and between the rarer ones. With the default, 700, 10 and 10, it
# looks several times in the middle of a batch.
GARBAGE_THRESHOLD: Final = (20_000, 20, 20)

# Options of mallopt(3) by their numbers: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (bytes), M_ARENA_MAX.
_MALLOC: Final = {-3: 32 * 1024 * 1024, -1: 32 * 1024 * 1024, -8: 2}

Service = Callable[[Config, grpc.aio.Server], AbstractAsyncContextManager[None]]
"""A service: given the settings and a server it adds itself, for as long as its block runs."""


@asynccontextmanager
async def serving(
    config: Config, services: Mapping[str, Service], *, ready: threading.Event | None = None
) -> AsyncIterator[grpc.aio.Server]:
    """Serves `services` (by their names in Config) for as long as the block runs, then drains.

    `ready` is set while calls are taken and the database is there.

    Raises runtime.contract.ContractError when an rpc has no policy, RuntimeError when an address is taken.
    """
    policies = contract.policies()
    for name in services:
        await _migrated(config, name)
    async with AsyncExitStack() as stack:
        secret = mesh_secret(config.keys)
        auth_channel = await stack.enter_async_context(channel(config.auth_address, STREAM_OPTIONS))
        tokens = ServiceTokens(secret, "+".join(services))
        auth = AuthClient(auth_channel, tokens)
        revocations = Revocations(patience=config.revocation_patience)
        foreign = await stack.enter_async_context(foreign_tokens(config))
        verifier = Verifier(
            fetch_keys=auth.keys,
            mesh_secret=secret,
            revocations=revocations,
            foreign=foreign,
            resolve=auth.resolve,
        )
        limiter = RateLimiter(config.redis_url) if config.limits_on else None
        if limiter is not None:
            stack.push_async_callback(limiter.close)
        draining = asyncio.Event()
        anybody = single_user(config, auth.find_user, Acting(auth_channel, tokens), verifier)
        if anybody is not None:
            logger().warning("calls without a token act as one user", email=config.single_user)
        # Ends behind the calls in flight, so that they are reported, too.
        outcomes = await stack.enter_async_context(reporting(config, "+".join(services)))
        contract_interceptor = ContractInterceptor(
            policies,
            verifier=verifier,
            limiter=limiter,
            call_timeout=config.call_timeout,
            draining=draining,
            single_user=anybody,
            outcomes=outcomes,
        )
        server = grpc.aio.server(
            interceptors=[contract_interceptor],
            options=(
                ("grpc.so_reuseport", int(config.share_address)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # The edge lets 32 KiB of headers through; gRPC refuses more than 8 KiB by chance, as a full quota.
                ("grpc.max_metadata_size", 64 * 1024),
                ("grpc.absolute_max_metadata_size", 80 * 1024),
                ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
                # Windows that grow with the line's speed would let in what nobody has asked for yet, a MiB per call.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ),
        )
        readiness = readiness_of(server)
        readiness.ready = ready or readiness.ready
        names = _add_infrastructure(server, readiness)
        for service in services.values():
            await stack.enter_async_context(service(config, server))
        for address in dict.fromkeys(config.address(name) for name in services):
            server.add_insecure_port(address)
        await server.start()
        ports = {int(config.address(name).rpartition(":")[2]) for name in services}
        stack.push_async_callback(
            _drain, server, readiness, draining, contract_interceptor, ports, config.drain_timeout
        )
        await stack.enter_async_context(watch_revocations(auth, revocations))
        await readiness.begin(names)
        if any(head(name) for name in services):
            # A connection of its own: that all others are busy is no reason to be called away.
            db = await stack.enter_async_context(database(config.database_url, connections=1, name="readiness"))
            await stack.enter_async_context(readiness.following_database(db.ping, names))
        yield server


def main(services: Mapping[str, Service]) -> None:
    """Runs `services` until SIGTERM or SIGINT.

    Exits with a sentence when a setting, or what it names, is wrong; the code says that starting again would not help.
    """
    try:
        config = from_environment()
        log_to_stderr("+".join(services), config.log_level)
        with traced(config.otlp_endpoint, "+".join(services)):
            uvloop.run(_until_signal(config, services))
    except ConfigError as error:
        print(f"satchel: {error}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)


async def _until_signal(config: Config, services: Mapping[str, Service]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ready = threading.Event()
    serve_metrics(config.metrics_address, ready=ready.is_set)
    async with serving(config, services, ready=ready):
        _settle_garbage()
        _settle_memory()
        logger().info("serving", addresses={name: config.address(name) for name in services})
        await stop.wait()
        logger().info("draining")


def _settle_garbage() -> None:
    """What a process has loaded is never garbage, and what a batch makes goes by itself: the collector looks less."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLD)


def _settle_memory() -> None:
    """Where malloc is glibc's: what is freed after a message of some MiB is used again for the next one.

    Otherwise each one comes from the system page by page and goes back.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC.items():
            mallopt(option, value)


async def _migrated(config: Config, service: str) -> None:
    """Waits until the service's schema is what its code needs, for as long as the database is away."""
    while True:
        try:
            return await asyncio.to_thread(migrate, config.database_url, service)
        except psycopg.OperationalError as error:
            logger().warning("waiting for the database", error=str(error))
            await asyncio.sleep(DATABASE_INTERVAL)


async def _drain(
    server: grpc.aio.Server,
    readiness: Readiness,
    draining: asyncio.Event,
    interceptor: ContractInterceptor,
    ports: Collection[int],
    grace: float,
) -> None:
    """Tells probes first, so that no new call is sent here, then streams, then lets the calls in flight finish."""
    await readiness.end()
    draining.set()
    # Beyond the grace only for as long as it takes to see what it has left.
    stopping = asyncio.ensure_future(server.stop(grace + CUT_WITHIN))
    await asyncio.wait({stopping}, timeout=grace)
    if not stopping.done() and interceptor.half_answered:
        logger().warning("answers are broken off", answers=interceptor.half_answered, connections=cut_lines(ports))
    await server.stop(0)
    await stopping


def _add_infrastructure(server: grpc.aio.Server, readiness: Readiness) -> Sequence[str]:
    """Health checks, and a reflection that knows every service of the mesh, so that one process can answer for all.

    Returns the names of those services.
    """
    health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
    names: Sequence[str] = [service.full_name for service in contract.services()]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return names
