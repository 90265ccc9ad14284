"""Health: a day of figures of many devices beside the bare SELECT."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Any, Final

import psycopg
from satchel.health.v1 import health_pb2, health_pb2_grpc

from bench.report import Line
from bench.rounds import Measure, Pair, rate
from bench.stack import Stack
from bench.sync import SELECT
from bench.wire import channels, metadata, sign_up

DEVICES: Final = 10_000
HOURS: Final = 24
DOMAINS: Final = ("journal", "task", "bike", "exercise", "health_metric")
# Of whoever signs up.
TENANT: Final = 1
MOST_MS: Final = 50.0

_FILL: Final = """
    INSERT INTO health.minutes (
        tenant_id, time, domain, syncs, failed_syncs, items, conflicts, rejected, duration_us, uploads_completed,
        uploads_abandoned, upload_bytes)
    SELECT %(tenant)s, minute, domain, 200, 3, 900, 20, 5, 40 * 1000 * 200, 4, 1, 4 << 20
    FROM generate_series(
        date_trunc('minute', now()) - make_interval(hours => %(hours)s), now(), interval '1 minute') AS minute,
        unnest(%(domains)s::text[]) AS domain
    ON CONFLICT DO NOTHING"""
_FILL_DEVICES: Final = """
    INSERT INTO health.devices (
        user_id, device_id, tenant_id, syncs, failed_syncs, items, conflicts, rejected, duration_us, uploads_completed,
        uploads_abandoned, upload_bytes, last_sync_time, say_time, platform, app_version)
    SELECT gen_random_uuid(), 'phone-' || number, %(tenant)s, 100 + number %% 900, number %% 30, 4000, number %% 50, 10,
        40 * 1000 * 500, 3, 1, 3 << 20, now() - make_interval(secs => number %% (%(hours)s * 3600)),
        now() - make_interval(secs => number %% (%(hours)s * 3600)), 'ios', '2.1.' || number %% 9
    FROM generate_series(1, %(devices)s) AS number"""
# What the figures are made of, with nothing around it.
_SELECT: Final = """
    SELECT counted.*, active.* FROM (
        SELECT sum(syncs)::int8, sum(failed_syncs)::int8, sum(items)::int8, sum(conflicts)::int8,
            sum(duration_us)::int8, sum(uploads_completed)::int8, sum(uploads_abandoned)::int8
        FROM health.minutes WHERE tenant_id = %b AND time >= now() - make_interval(hours => %b::int4)) AS counted, (
        SELECT count(*), avg(
            (syncs - failed_syncs) * 60::float8 / syncs
            + greatest(0, 20 - extract(epoch FROM now() - last_sync_time)::float8 / 86400 * 20)
            + greatest(0, 20 - conflicts * 20::float8 / syncs))
        FROM health.devices WHERE tenant_id = %b AND last_sync_time >= now() - make_interval(hours => %b::int4))
        AS active"""


async def pairs(stack: Stack, exit: AsyncExitStack, took: list[float]) -> list[Pair]:
    """Adds to `took` how long each GetSyncHealth took, in seconds."""
    (caller,) = await sign_up(stack.addresses["envoy"], 1)
    (channel,) = await exit.enter_async_context(channels(stack.addresses["health"], 1))
    connection = await exit.enter_async_context(
        await psycopg.AsyncConnection.connect(stack.database_url, autocommit=True)
    )
    await _fill(connection)
    return [
        Pair(
            name=f"GetSyncHealth, {HOURS} h of {DEVICES:,} devices, gRPC",
            floor_name=SELECT,
            unit="calls/s",
            figure=_figures(health_pb2_grpc.HealthServiceStub(channel), caller, took),
            floor=_selects(connection),
        ),
    ]


def figures(took: Sequence[float]) -> Line:
    """How long the figures take."""
    middle = median(took) * 1000
    return Line(
        name="One GetSyncHealth of those",
        figure=f"{middle:.1f} ms",
        target=f"at most {MOST_MS:g} ms",
        met=middle <= MOST_MS,
    )


async def _fill(connection: psycopg.AsyncConnection[Any]) -> None:
    values = {"tenant": TENANT, "hours": HOURS, "domains": list(DOMAINS), "devices": DEVICES}
    for statement in (_FILL, _FILL_DEVICES):
        await connection.execute(statement, values)
    for table in ("minutes", "devices"):
        await connection.execute(f"VACUUM ANALYZE health.{table}")


def _figures(stub: health_pb2_grpc.HealthServiceAsyncStub, token: str, took: list[float]) -> Measure:
    request = health_pb2.GetSyncHealthRequest(hours=HOURS)

    async def call() -> bool:
        started = time.perf_counter()
        answer = await stub.GetSyncHealth(request, metadata=metadata(token), timeout=30)
        took.append(time.perf_counter() - started)
        if answer.metrics.active_devices < DEVICES * 0.9:
            raise RuntimeError(f"figures of {answer.metrics.active_devices:.0f} devices")
        return True

    return _one(call)


def _selects(connection: psycopg.AsyncConnection[Any]) -> Measure:
    async def call() -> bool:
        cursor = await connection.execute(_SELECT, [TENANT, HOURS, TENANT, HOURS], prepare=True)
        return await cursor.fetchone() is not None

    return _one(call)


def _one(call: Callable[[], Awaitable[bool]]) -> Measure:
    return lambda seconds: rate([call], seconds)
