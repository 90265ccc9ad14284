"""Reporting: the CPU time that telling and counting how a push went takes, beside that of the push."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple
from uuid import UUID, uuid4

import psutil
import psycopg
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc

from bench import batches
from bench.report import Line
from bench.servers import LOOPBACK
from bench.stack import Stack
from bench.sync import push_for, user_of
from bench.wire import channels, metadata, sign_up
from deploy.parts import Part, running
from deploy.redis import redis_part
from deploy.sockets import free_port
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import HealthClient
from runtime.outcomes import Device, Outcomes, Tally, Unnoted
from runtime.reporting import INTERVAL, LONGEST_REST, Reporter

ROUNDS: Final = 3
SECONDS: Final = 6.0
USERS: Final = 10
PHONES: Final = 200
MOST: Final = 0.02
QUIET: Final = "SATCHEL_REPORT_OUTCOMES=off"

_AT_ONCE: Final = 16
_TURN: Final = 2.0  # seconds: so many batches are built beforehand
_BEAT: Final = 0.02  # seconds
# More than ever lies between two reports: within it the last of what was noted is told.
_SETTLED: Final = 1.2 * INTERVAL * LONGEST_REST + 0.5

Load = Callable[[float], Awaitable[int]]
"""Pushes for about so many seconds; returns how many pushes that were."""


class Caller(NamedTuple):
    """A phone, and whose it is."""

    tenant_id: int
    user_id: UUID
    token: str
    device: Device


class _Cost(NamedTuple):
    """Seconds of CPU time for a push."""

    push: float
    """In the sessions process."""
    told: float
    """Noting and reporting how it went, counting it, and what the database does for that."""


async def lines(stack: Stack, home: Path) -> list[Line]:
    """A phone that pushes 100 changes at a time, and many that push one each."""
    async with AsyncExitStack() as exit:
        tokens = await sign_up(stack.addresses["envoy"], USERS)
        phones = [_caller(number, tokens[number % USERS]) for number in range(PHONES)]
        process, address = await exit.enter_async_context(_quiet(stack, home))
        (channel,) = await exit.enter_async_context(channels(address, 1))
        (health,) = await exit.enter_async_context(channels(stack.addresses["health"], 1))
        client = HealthClient(health, ServiceTokens(mesh_secret(home / "keys"), "sessions"))
        listeners = await _listeners(stack)
        template, stub = batches.push_template(), sync_pb2_grpc.SyncServiceStub(channel)

        async def by_one(seconds: float) -> int:
            stored, _ = await push_for(seconds, channel, phones[0].token, template)
            return stored // batches.SIZE

        loads: list[tuple[str, Load, Sequence[Caller], int]] = [
            (f"Telling how a {batches.SIZE}-change push went, CPU time", by_one, phones[:1], batches.SIZE),
            (f"Telling how a push of 1 change went, {PHONES} phones", partial(_by_many, stub, phones), phones, 1),
        ]
        return [
            _line(name, [await _cost(process, load, client, listeners, callers, size) for _ in range(ROUNDS)])
            for name, load, callers, size in loads
        ]


async def _cost(
    process: psutil.Process,
    load: Load,
    client: HealthClient,
    listeners: Sequence[psutil.Process],
    callers: Sequence[Caller],
    size: int,
) -> _Cost:
    """What the pushes take; then what it takes to tell of as many, as fast, from this process."""
    spent, begun, pushes = -_spent([process]), time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < SECONDS:
        pushes += await load(_TURN)
    spent += _spent([process])
    heard = -_spent(listeners)
    noted = await _noted(Outcomes(), client, callers, size, pushes / took)
    heard += _spent(listeners)
    idle = -_spent(listeners)
    unnoted = await _noted(Unnoted(), client, callers, size, pushes / took)
    idle += _spent(listeners)
    told = round(pushes / took * SECONDS)
    return _Cost(spent / pushes, (noted - unnoted + heard - idle) / told)


async def _noted(outcomes: Outcomes, client: HealthClient, callers: Sequence[Caller], size: int, rate: float) -> float:
    """The seconds of CPU time in which this process notes so many pushes a second, and tells of all of them."""
    phones, due, noted = cycle(callers), round(rate * SECONDS), 0
    reporter = Reporter(outcomes, partial(client.report, uuid4()))
    telling = asyncio.create_task(reporter.run())
    spent, begun = -time.process_time(), time.perf_counter()
    while noted < due:
        await asyncio.sleep(_BEAT)
        ready = min(due, round((time.perf_counter() - begun) * rate))
        for one in islice(phones, ready - noted):
            outcomes.synced(one, one.device, Tally("journal", size), seconds=0.01)
        noted = ready
    await asyncio.sleep(_SETTLED)
    spent += time.process_time()
    telling.cancel()
    if outcomes.waiting or not await reporter.flush():  # also what could not be reported yet
        raise RuntimeError("not all was told")
    return spent


def _spent(processes: Iterable[psutil.Process]) -> float:
    """Seconds of CPU time so far."""
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _caller(number: int, token: str) -> Caller:
    return Caller(1, user_of(token), token, Device(f"phone-{number}", "ios", "wifi", f"2.1.{number % 9}", "18.1", 40.0))


async def _by_many(stub: sync_pb2_grpc.SyncServiceAsyncStub, callers: Sequence[Caller], seconds: float) -> int:
    phones, pushed, started = cycle(callers), 0, time.perf_counter()

    async def push() -> None:
        nonlocal pushed
        while time.perf_counter() - started < seconds:
            phone = next(phones)
            change = sync_pb2.Change(
                domain="journal", id=str(uuid4()), operation="UPSERT", base_version=0, data='{"title":"Berlin"}'
            )
            answer = await stub.PushChanges(
                sync_pb2.PushChangesRequest(changes=[change]),
                metadata=(*metadata(phone.token), ("x-device-id", phone.device.id)),
                timeout=30,
            )
            if answer.receipts[0].status != "APPLIED":
                raise RuntimeError(str(answer))
            pushed += 1

    await asyncio.gather(*(push() for _ in range(_AT_ONCE)))
    return pushed


async def _listeners(stack: Stack) -> list[psutil.Process]:
    """The health service's processes, and PostgreSQL's that serve them."""
    async with await psycopg.AsyncConnection.connect(stack.database_url) as connection:
        found = await connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'satchel-health'")
        serving = [pid for (pid,) in await found.fetchall()]
    return [psutil.Process(pid) for pid in [*stack.pids("health"), *serving]]


@asynccontextmanager
async def _quiet(stack: Stack, home: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    """A sessions process on the stack's database that reports nothing, and its address."""
    address, redis = f"{LOOPBACK}:{free_port()}", redis_part(home / "run")
    part = Part(
        name="quiet",
        command=[sys.executable, "-m", "services.sessions"],
        log=home.with_name("quiet.log"),
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("SATCHEL_")},
            "SATCHEL_HOME": str(home),
            "SATCHEL_DATABASE_URL": stack.database_url,
            "SATCHEL_REDIS_URL": redis.url if redis else "",
            "SATCHEL_RATE_LIMITS": "off",
            "SATCHEL_AUTH_ADDRESS": stack.addresses["auth"],
            "SATCHEL_SESSIONS_ADDRESS": address,
            "SATCHEL_REPORT_OUTCOMES": "off",
        },
    )
    async with running(part) as child:
        yield psutil.Process(child.pid), address


def _line(name: str, costs: Sequence[_Cost]) -> Line:
    shares = [one.told / one.push for one in costs]
    return Line(
        name=name,
        figure=f"{median(one.told for one in costs) * 1e6:,.0f} µs a push",
        floor=f"{median(one.push for one in costs) * 1e6:,.0f} µs (the push, {QUIET})",
        ratio=f"{median(shares):.3f}",
        spread=f"{min(shares):.3f} to {max(shares):.3f}",
        target=f"at most {MOST:g}",
        met=median(shares) <= MOST,
    )
