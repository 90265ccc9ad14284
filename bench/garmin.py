"""Garmin: activities from the stand-in to the user's feed, and how the service answers meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc
import psutil
from satchel.garmin.v1 import garmin_pb2, garmin_pb2_grpc
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc

from bench.report import Line
from bench.stack import Stack, stack
from bench.wire import channels, metadata, sign_up
from deploy.parts import ROOT

COUNT = 1000
BYTES = 100_000
WANTED = 50.0  # activities a second
LATE = 50.0  # milliseconds
GROWTH = 30.0  # MiB of the service
PATIENCE = 600.0  # seconds

_MIB = 2**20


@dataclass(frozen=True)
class _Garmin:
    url: str
    username: str
    password: str


async def lines(home: Path, *, workers: int, count: int = COUNT) -> list[Line]:
    """An account with `count` activities is linked, and all of them are brought."""
    async with _garmin(count) as garmin, stack(home, workers=workers, settings=_settings(garmin)) as running:
        (token,) = await sign_up(running.addresses["envoy"], 1)
        async with channels(running.addresses["envoy"], 1) as (opened,):
            stub = garmin_pb2_grpc.GarminServiceStub(opened)
            asked = garmin_pb2.LinkAccountRequest(username=garmin.username, password=garmin.password)
            await stub.LinkAccount(asked, metadata=metadata(token), timeout=60)
            # What the first one loads stays.
            await _synced(stub, token, garmin_pb2.SyncHealthRequest())
            before = _rss(running)
            started = time.monotonic()
            took, peak = await _synced(stub, token, garmin_pb2.SyncActivitiesRequest(since="2000-01-01"), running)
            await _in_feed(opened, token, count)
            seconds = time.monotonic() - started
    late = quantiles(took, n=100)[98] * 1000
    grown = (peak - before) / _MIB
    return [
        Line(
            name=f"Activities of {BYTES // 1000} KB from Garmin to the feed, {count:,}",
            figure=f"{count / seconds:.1f} a second",
            target=f"at least {WANTED:g}",
            met=count / seconds >= WANTED,
        ),
        Line(
            name=f"Its status meanwhile, through Envoy: p50 {median(took) * 1000:.1f} ms, p99",
            figure=f"{late:.1f} ms",
            target=f"at most {LATE:g} ms",
            met=late <= LATE,
        ),
        Line(
            name="What the Garmin service grows by meanwhile",
            figure=f"{grown:.0f} MiB (from {before / _MIB:.0f})",
            target=f"at most {GROWTH:g} MiB",
            met=grown <= GROWTH,
        ),
    ]


@asynccontextmanager
async def _garmin(count: int) -> AsyncIterator[_Garmin]:
    command = sys.executable, "-m", "bench.garmin_standin", str(count), str(BYTES)
    process: Process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _Garmin(**json.loads(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


def _settings(garmin: _Garmin) -> dict[str, str]:
    return {"SATCHEL_GARMIN_URL": garmin.url}


async def _synced(
    stub: garmin_pb2_grpc.GarminServiceAsyncStub, token: str, asked: Any, running: Stack | None = None
) -> tuple[list[float], int]:
    """How long each look at the status took until it was over, in seconds, and the most that the service held."""
    begin = stub.SyncHealth if isinstance(asked, garmin_pb2.SyncHealthRequest) else stub.SyncActivities
    await begin(asked, metadata=metadata(token), timeout=30)
    took: list[float] = []
    peak = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            started = time.perf_counter()
            status = await stub.GetSyncStatus(garmin_pb2.GetSyncStatusRequest(), metadata=metadata(token), timeout=30)
            took.append(time.perf_counter() - started)
            if running is not None:
                peak = max(peak, _rss(running))
            if status.status != "in_progress":
                break
            await asyncio.sleep(0.05)
    if status.status != "completed" or status.failed:
        raise RuntimeError(f"the synchronization did not do: {status}")
    return took, peak


async def _in_feed(opened: grpc.aio.Channel, token: str, count: int) -> None:
    """Returns when so many activities are in the user's feed."""
    stub = sync_pb2_grpc.SyncServiceStub(opened)
    seen, cursor = 0, ""
    async with asyncio.timeout(PATIENCE):
        while seen < count:
            asked = sync_pb2.PullChangesRequest(cursor=cursor, domains=["activity"], limit=1000)
            page = await stub.PullChanges(asked, metadata=metadata(token), timeout=30)
            seen += len(page.changes)
            cursor = page.next_cursor
            if not page.changes:
                await asyncio.sleep(0.05)


def _rss(running: Stack) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in running.pids("garmin"))
