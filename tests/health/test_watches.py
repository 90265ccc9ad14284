"""Watching: the figures as they change, as server-sent events, across replicas, and for as long as one may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import pytest
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc as pb_grpc

from deploy.parts import running
from runtime.call import Principal, Watch
from runtime.errors import Failure, Reason
from runtime.server import serving
from services.health.alerts_domain import read_thresholds
from services.health.app import service as health
from services.health.counts import Counts
from services.health.sync_health_domain import SyncHealth, SyncPoint
from services.health.sync_health_metrics import Figures
from services.health.watches_domain import LONGEST_SILENCE, PER_USER, Snapshot, Watches
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.health.reports import Reporter, message, new_tenant, reporting
from tests.polling import until

PATH = "/api/v1/sync/health/watch"
Start = Callable[..., Awaitable[Edge]]


@pytest.fixture
async def reporter(edge: Edge) -> AsyncIterator[Reporter]:
    async with reporting(edge) as started:
        yield started


class Events:
    """What a REST caller hears."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self, seconds: float = 20) -> dict[str, Any]:
        """The next event. Raises StopAsyncIteration at the end of the stream."""
        async with asyncio.timeout(seconds):
            line = await anext(self._lines)
            assert line.startswith("data: "), line
            assert await anext(self._lines) == ""
        body: dict[str, Any] = json.loads(line.removeprefix("data: "))
        return body

    async def until_syncs(self, expected: int, seconds: float = 20) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while (event := await self.next(seconds))["metrics"]["total_syncs"] != expected:
                pass
        return event


@asynccontextmanager
async def watching(phone: Phone, **params: Any) -> AsyncIterator[Events]:
    async with phone.http.stream("GET", PATH, params=params, headers=phone.headers, timeout=30) as answer:
        yield Events(answer)


class TestEvents:
    async def test_figures_come_at_once_and_when_something_is_reported(self, edge: Edge, reporter: Reporter) -> None:
        tenant = new_tenant()
        admin = await edge.administrator(tenant_id=tenant)
        async with watching(admin, hours=2) as events:
            assert events.answer.status_code == 200
            assert events.answer.headers["content-type"] == "text/event-stream"
            assert events.answer.headers["cache-control"] == "no-cache"
            first = await events.next()
            assert (first["health_status"], first["metrics"]["total_syncs"], first["points"]) == ("healthy", 0, [])
            await reporter.report(message(tenant, str(uuid4()), "a", syncs=10, failed_syncs=5))
            event = await events.until_syncs(10)
            assert event.keys() == {"health_status", "metrics", "alerts", "points", "server_time"}
            assert (event["health_status"], event["metrics"]["active_devices"]) == ("degraded", 1)
            assert sum(one["syncs"] for one in event["points"]) == 10
            await reporter.report(message(tenant, str(uuid4()), "a", syncs=1))
            await events.until_syncs(11)

    async def test_what_concerns_another_tenant_is_not_heard(self, edge: Edge, reporter: Reporter) -> None:
        tenant = new_tenant()
        admin = await edge.administrator(tenant_id=tenant)
        async with watching(admin) as events:
            await events.next()
            await reporter.report(message(tenant + 1))
            with pytest.raises(TimeoutError):
                await events.next(seconds=2.5)

    @pytest.mark.parametrize(
        ("params", "status", "code"),
        [
            ({"hours": -1}, 400, "SYNC_001"),
            ({"hours": 2161}, 400, "SYNC_001"),
            ({"tenant_id": -1}, 400, "SYNC_001"),
            ({"tenant_id": 1}, 403, "AUTH_FORBIDDEN"),
        ],
    )
    async def test_what_is_refused_is_refused_as_anywhere(
        self, edge: Edge, params: dict[str, int], status: int, code: str
    ) -> None:
        admin = await edge.administrator(tenant_id=new_tenant())
        answer = await admin.call("GET", PATH, params=params)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert answer.json()["error"]["code"] == code

    async def test_who_is_no_administrator_hears_nothing(self, edge: Edge, phone: Phone) -> None:
        answer = await phone.call("GET", PATH)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "AUTH_FORBIDDEN")

    async def test_a_sixth_stream_of_one_user_is_refused_and_an_ended_one_makes_room(self, edge: Edge) -> None:
        admin = await edge.administrator(tenant_id=new_tenant())
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(watching(admin)) for _ in range(PER_USER - 1)]
            await asyncio.gather(*(events.next() for events in streams))
            async with watching(admin) as events:
                await events.next()
                answer = await admin.call("GET", PATH)
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RATE_001")
                assert int(answer.headers["retry-after"]) > 0

            async def has_room() -> bool:
                async with watching(admin) as events:
                    return events.answer.status_code == 200

            await until(has_room)

    async def test_signing_out_ends_the_stream(self, edge: Edge) -> None:
        admin = await edge.administrator(tenant_id=new_tenant())
        async with watching(admin) as events:
            await events.next()
            assert (await admin.call("POST", "/v1/auth/signout", json={"scope": "this"})).status_code == 200
            with pytest.raises(StopAsyncIteration):
                while True:
                    await events.next(seconds=10)
        assert (await admin.call("GET", PATH)).status_code == 401

    async def test_a_grpc_caller_is_told_why_the_stream_ends(self, edge: Edge) -> None:
        admin = await edge.administrator(tenant_id=new_tenant())
        async with grpc.aio.insecure_channel(edge.target) as channel:
            stub = pb_grpc.HealthServiceStub(channel)
            call = stub.WatchSyncHealth(pb.WatchSyncHealthRequest(), metadata=admin.metadata, timeout=30)
            assert (await call.read()).health_status == "healthy"
            assert (await admin.call("POST", "/v1/auth/signout", json={"scope": "this"})).status_code == 200
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_a_stream_ends_with_its_lifetime(self, own_edge: Start) -> None:
        edge = await own_edge(stream_lifetime=1.0)
        admin = await edge.administrator()
        async with watching(admin) as events:
            await events.next()
            with pytest.raises(StopAsyncIteration):
                while True:
                    await events.next(seconds=10)

    async def test_who_reads_nothing_keeps_nobody_else_from_hearing(self, edge: Edge, reporter: Reporter) -> None:
        tenant = new_tenant()
        admin = await edge.administrator(tenant_id=tenant)
        async with watching(admin) as slow, watching(admin) as quick:
            await quick.next()
            for number in range(1, 4):
                await reporter.report(message(tenant))
                await quick.until_syncs(number)
            await slow.until_syncs(3)

    async def test_a_stopping_process_ends_its_streams(self, database_url: str, redis_url: str, tmp_path: Path) -> None:
        config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
        async with running(service_part("all", config, tmp_path)) as process, envoy_for(config, tmp_path) as edge:
            await until_healthy(edge)
            admin = await edge.administrator()
            async with watching(admin) as events:
                await events.next()
                stopping = asyncio.create_task(process.stop())
                with pytest.raises(StopAsyncIteration):
                    while True:
                        await events.next(seconds=10)
                await asyncio.wait_for(stopping, 20)


class TestReplicas:
    @pytest.mark.parametrize("with_redis", [True, False])
    async def test_a_report_that_reaches_another_replica_is_heard(
        self, own_edge: Start, redis_url: str, tmp_path: Path, with_redis: bool
    ) -> None:
        edge = await own_edge(redis_url=redis_url if with_redis else "")
        admin = await edge.administrator()
        shared = {f"{name}_address": edge.mesh.address(name) for name in ("auth", "sessions", "uploads")}
        settings = edge.mesh.config
        urls = {"database_url": settings.database_url, "redis_url": settings.redis_url}
        other = config_for(settings.home, **shared, **urls)
        async with (
            serving(other, {"health": health}),
            grpc.aio.insecure_channel(other.health_address) as channel,
            watching(admin) as events,
        ):
            await events.next()
            reporter = Reporter(other, channel)
            for number in (1, 2):
                await reporter.report(message(1))
                await events.until_syncs(number, seconds=10)


class Store:
    """Figures as they are said to be, and how often they were asked for."""

    def __init__(self) -> None:
        self.syncs = self.asked = 0
        self.away = False

    async def figures(self, tenant_id: int, since: datetime, now: datetime) -> Figures:
        self.asked += 1
        if self.away:
            raise ConnectionError("away")
        return Figures(counts=Counts(syncs=self.syncs), devices=0, score=None, dropped=0)

    async def points(self, tenant_id: int, since: datetime, step: str, domain: str) -> list[SyncPoint]:
        return []


CALLER = Principal(user_id=UUID(int=1), sign_in_id=UUID(int=2), tenant_id=7, role="admin", tier="free")


def watches(store: Store, **given: Any) -> Watches:
    now = lambda: datetime(2026, 2, 26, 10, tzinfo=UTC)  # noqa: E731
    health = SyncHealth(store, read_thresholds(), now=now)  # type: ignore[arg-type]
    return Watches(health, lifetime=60, now=now, **{"per_user": 1000, "interval": 0.2, **given})


def watch() -> Watch:
    async def nothing(_: str = "") -> None: ...

    return Watch(recheck=nothing, count=nothing, cut=lambda: None, synced=lambda *_: None, draining=asyncio.Event())


class TestTogether:
    async def test_however_many_watch_a_window_it_is_read_once_an_interval(self) -> None:
        store = Store()
        watched, versions = watches(store), 0

        async def follow(place: int) -> None:
            nonlocal versions
            async with aclosing(watched.watch(CALLER, 7, 1, watch())) as snapshots:
                async for snapshot in snapshots:
                    if snapshot.report.metrics.total_syncs == 5:
                        return

        began = asyncio.get_running_loop().time()
        followers = [asyncio.create_task(follow(place)) for place in range(200)]
        for number in range(1, 6):
            await asyncio.sleep(0.25)
            store.syncs = number
            watched.reported([7])
        await asyncio.wait_for(asyncio.gather(*followers), 20)
        assert store.asked <= (asyncio.get_running_loop().time() - began) / 0.2 + 1
        assert not watched._windows

    async def test_an_outage_is_waited_out_by_who_watches_and_told_to_who_begins(self) -> None:
        store = Store()
        watched = watches(store, interval=0.05)
        async with aclosing(watched.watch(CALLER, 7, 1, watch())) as snapshots:
            assert (await anext(snapshots)).report.metrics.total_syncs == 0
            store.away = True
            asked = store.asked

            async def tried() -> bool:
                return store.asked > asked + 2

            await until(tried)
            with pytest.raises(ConnectionError):
                async with aclosing(watched.watch(CALLER, 7, 2, watch())) as others:
                    await anext(others)
            store.away, store.syncs = False, 3
            assert (await asyncio.wait_for(anext(snapshots), 10)).report.metrics.total_syncs == 3

    async def test_a_process_that_is_about_to_stop_takes_no_watcher(self) -> None:
        stopping = watch()
        stopping.draining.set()
        with pytest.raises(Failure) as caught:
            await anext(watches(Store()).watch(CALLER, 7, 1, stopping))
        assert caught.value.reason is Reason.UNAVAILABLE

    async def test_who_takes_long_with_one_snapshot_gets_the_newest_next(self) -> None:
        """Nothing is kept for a slow reader but that there is something newer."""
        store = Store()
        watched = watches(store, interval=0.02)
        async with (
            aclosing(watched.watch(CALLER, 7, 1, watch())) as slow,
            aclosing(watched.watch(CALLER, 7, 1, watch())) as quick,
            asyncio.timeout(20),
        ):
            await anext(slow)
            await anext(quick)
            for number in range(1, 6):
                store.syncs = number
                watched.reported([7])
                assert (await anext(quick)).report.metrics.total_syncs == number
            assert (await anext(slow)).report.metrics.total_syncs == 5

    async def test_a_watcher_hears_though_nothing_happens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("services.health.watches_domain.LONGEST_SILENCE", 0.6)
        heard: list[Snapshot] = []
        async with (
            aclosing(watches(Store(), interval=0.1).watch(CALLER, 7, 1, watch())) as snapshots,
            asyncio.timeout(20),
        ):
            async for snapshot in snapshots:
                heard.append(snapshot)
                if len(heard) == 3:
                    break
        assert timedelta(seconds=LONGEST_SILENCE) < timedelta(seconds=15)
