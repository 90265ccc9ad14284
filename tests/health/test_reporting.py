"""What the services report of syncs and uploads: every door, once, with the right counts, whoever is away."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from satchel.sessions.v1 import device_sessions_pb2, device_sessions_pb2_grpc, sync_pb2, sync_pb2_grpc

from deploy.parts import running
from runtime import reporting
from runtime.config import Config
from runtime.server import serving
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part
from tests.factories import Phone, change, device_session, exercise_session, puzzle_session
from tests.health.recorder import Recorder, recorder
from tests.polling import until
from tests.sending import Sending, some_file
from tests.streams import change as said
from tests.streams import now, talking
from tests.websockets import line, record

SERVICES = ("auth", "sessions", "uploads", "websocket")
DEVICE = {
    "x-device-id": "phone-7",
    "x-platform": "ios",
    "x-network-type": "wifi",
    "x-app-version": "2.1.0",
    "x-os-version": "iOS 17.0",
}


@dataclass(frozen=True)
class Stand:
    """A mesh in this process, but for its health service."""

    edge: Edge
    health: Recorder
    channel: grpc.aio.Channel

    async def phone(self) -> Phone:
        return await self.edge.phone()

    async def told(self, phone: Phone, **counts: int) -> Any:
        """What was reported of the phone's user, as soon as it is this."""
        return await self.health.told({"user_id": phone.user_id}, **counts)


@asynccontextmanager
async def stand_of(config: Config, directory: Path, *names: str) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        health = await stack.enter_async_context(recorder(config.health_address))
        await stack.enter_async_context(serving(config, {name: ALL[name] for name in names or SERVICES}))
        edge = await stack.enter_async_context(envoy_for(config, directory))
        yield Stand(edge, health, await stack.enter_async_context(grpc.aio.insecure_channel(edge.target)))


@pytest.fixture(scope="module")
async def stand(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stand]:
    directory = tmp_path_factory.mktemp("reporting")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(reporting, "INTERVAL", 0.05)
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url, sweep_interval=0.1)
    async with stand_of(config, directory) as started:
        yield started
    monkeypatch.undo()


@pytest.fixture
async def phone(stand: Stand) -> Phone:
    return await stand.phone()


class TestPushesAndPulls:
    @pytest.mark.parametrize("door", ["JSON", "gRPC"])
    async def test_a_push_is_a_sync_with_its_items_conflicts_and_rejects(
        self, stand: Stand, phone: Phone, door: str
    ) -> None:
        id = str(uuid4())
        await push(stand, phone, door, change(id=id), change(domain="task", data={"title": "Buy bread"}))
        met = change(id=id, data={"text": "another"})
        await push(stand, phone, door, met, change(data={"text": 7}), change(domain="nothing"))
        sums = await stand.told(phone, syncs=2, items=5, conflicts=1, rejected=2)
        assert sums.duration_ms > 0
        assert {one.domain for one in stand.health.outcomes if one.user_id == phone.user_id} == {"journal"}
        assert (sums.last.tenant_id, sums.last.device_id, sums.last.HasField("clock_skew_ms")) == (1, "", False)

    async def test_a_push_of_which_nothing_is_taken_has_failed(self, stand: Stand, phone: Phone) -> None:
        await push(stand, phone, "JSON", change(domain="nothing"), change(data={"text": 7}))
        await stand.told(phone, syncs=1, failed_syncs=1, items=2, rejected=2)

    @pytest.mark.parametrize("body", ["{", "[]", '{"changes": []}', '{"changes": 7}'])
    async def test_a_push_that_cannot_be_read_has_failed(self, stand: Stand, phone: Phone, body: str) -> None:
        answer = await phone.call("POST", "/api/v1/sync/push", content=body)
        assert answer.status_code == 400
        await stand.told(phone, syncs=1, failed_syncs=1)

    async def test_a_pull_is_a_sync_of_its_domain_if_it_has_one(self, stand: Stand, phone: Phone) -> None:
        for domains in ("journal", "", "journal,task"):
            await phone.call("GET", "/api/v1/sync/pull", params={"domains": domains})
        pull = sync_pb2_grpc.SyncServiceStub(stand.channel).PullChanges
        await pull(sync_pb2.PullChangesRequest(domains=["task"]), metadata=phone.metadata)
        await stand.told(phone, syncs=4)
        for domain, syncs in (("journal", 1), ("task", 1), ("", 2)):
            assert stand.health.sums(user_id=phone.user_id, domain=domain).counts == {"syncs": syncs}

    async def test_calls_that_say_nothing_of_syncing_are_not_counted(self, stand: Stand, phone: Phone) -> None:
        assert (await phone.http.post("/api/v1/sync/push", json={"changes": [change()]})).status_code == 401
        bad = {"authorization": "Bearer x"}
        assert (await phone.http.post("/api/v1/sync/push", json={}, headers=bad)).status_code == 401
        for path in ("/v1/sessions", "/api/v1/sync/policies/1/journal", "/users/me/stats", "/meta/schemas"):
            assert (await phone.call("GET", path)).is_success
        await push(stand, phone, "JSON", change())
        await stand.told(phone, syncs=1, items=1)


class TestTypedCalls:
    @pytest.mark.parametrize(
        ("call", "good", "bad", "domain"),
        [
            (("POST", "/sessions"), exercise_session(), exercise_session(duration=-1), "exercise"),
            (
                ("POST", "/workout_plans"),
                {"name": "Base", "steps": [{"type": "interval"}]},
                {"scheduled_date": "soon"},
                "workout_plan",
            ),
            (("PATCH", "/users/me/stats"), {"total_xp": 7}, {"total_xp": -1}, "stats"),
            (
                ("POST", "/health_metrics"),
                {"type": "weight", "value": 70, "unit": "kg", "timestamp": "2026-02-26T10:00:00Z"},
                {"type": "weight", "value": 70, "timestamp": "soon"},
                "health_metric",
            ),
        ],
        ids=lambda one: one[1] if isinstance(one, tuple) else "",
    )
    async def test_one_that_is_about_one_thing_counts_it(
        self, stand: Stand, phone: Phone, call: tuple[str, str], good: Any, bad: Any, domain: str
    ) -> None:
        answer = await phone.call(*call, json=good, headers=DEVICE)
        assert answer.is_success, answer.text
        assert (await phone.call(*call, json=bad, headers=DEVICE)).status_code == 400
        await stand.told(phone, syncs=2, failed_syncs=1, items=2, rejected=1)
        assert stand.health.sums(user_id=phone.user_id, domain=domain, device_id="phone-7").counts["syncs"] == 2

    async def test_puzzles(self, stand: Stand, phone: Phone) -> None:
        for sessions in ([puzzle_session(), puzzle_session(duration=-1)], [puzzle_session(duration=-1)] * 2):
            await phone.call("POST", "/v1/sessions", json={"sessions": sessions})
        await stand.told(phone, syncs=2, failed_syncs=1, items=4, rejected=3)
        assert stand.health.sums(user_id=phone.user_id).last.domain == "puzzle"

    async def test_recordings_of_devices(self, stand: Stand, phone: Phone) -> None:
        sessions = [device_session(), device_session(client_session_id="no")]
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions})
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions[1:]})
        stub = device_sessions_pb2_grpc.DeviceSessionServiceStub(stand.channel)
        await stub.BatchUpload(
            device_sessions_pb2.BatchUploadRequest(sessions=[{"device_type": "rower"}]), metadata=phone.metadata
        )
        await stand.told(phone, syncs=3, failed_syncs=2, items=4, rejected=3)
        assert stand.health.sums(user_id=phone.user_id, domain="bike").counts["syncs"] == 2

    async def test_measurements(self, stand: Stand, phone: Phone) -> None:
        good = {"type": "weight", "value": 70, "unit": "kg", "timestamp": "2026-02-26T10:00:00Z"}
        await phone.call("POST", "/health_metrics", json=[good, {"type": "weight"}, {}])
        await stand.told(phone, syncs=1, items=3, rejected=2)


class TestDevices:
    async def test_a_call_says_who_it_is_by_headers(self, stand: Stand, phone: Phone) -> None:
        ahead = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
        headers = {**DEVICE, "x-client-time": ahead}
        await phone.call("POST", "/api/v1/sync/push", json={"changes": [change()]}, headers=headers)
        last = (await stand.told(phone, syncs=1, items=1)).last
        assert (last.device_id, last.platform, last.network_type) == ("phone-7", "ios", "wifi")
        assert (last.app_version, last.os_version) == ("2.1.0", "iOS 17.0")
        assert last.clock_skew_ms == pytest.approx(600_000, abs=20_000)

    async def test_a_stream_says_it_by_its_hello(self, stand: Stand, phone: Phone) -> None:
        words = {"platform": "android", "network_type": "cellular", "app_version": "3.0.0", "os_version": "14"}
        async with talking(stand.channel, phone.metadata, client_time=now(-600), **words) as talk:
            await talk.push(said())
            sums = await stand.told(phone, syncs=1, items=1)
            assert {name: getattr(sums.last, name) for name in words} == words
            assert sums.last.device_id == "phone-1"
            assert sums.last.clock_skew_ms == pytest.approx(-600_000, abs=20_000)
            await talk.say("beat", heartbeat=sync_pb2.Heartbeat(client_time=now()))
            await talk.hear("heartbeat_ack")
            await talk.push(said())
            last = (await stand.told(phone, syncs=2, items=2)).last
            assert last.clock_skew_ms == pytest.approx(0, abs=20_000)

    async def test_a_websocket_says_it_by_its_query_or_its_headers(self, stand: Stand, phone: Phone) -> None:
        ahead = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
        headers = {"X-Platform": "ios", "X-OS-Version": "iOS 17.0", "X-App-Version": "1.0.0", "X-Client-Time": ahead}
        query = {"device_id": "phone-9", "network_type": "wifi", "app_version": "2.0.0"}
        async with line(stand.edge, phone.access_token, headers=headers, **query) as one:
            await one.sync(records=[record()])
            last = (await stand.told(phone, syncs=1, items=1)).last
        assert (last.device_id, last.platform, last.network_type) == ("phone-9", "ios", "wifi")
        assert (last.app_version, last.os_version) == ("2.0.0", "iOS 17.0")
        assert last.clock_skew_ms == pytest.approx(600_000, abs=20_000)


class TestStreams:
    async def test_each_push_and_each_page_is_a_sync(self, stand: Stand, phone: Phone) -> None:
        id = str(uuid4())
        async with talking(stand.channel, phone.metadata, device_id="first") as talk:
            await talk.push(said(id=id), said("task", data={"title": "Buy bread"}))
            await talk.push(said(id=id, base_version=0, data={"text": "another"}), said("nothing"))
            await talk.push(said("nothing"))
        of_first = {"user_id": phone.user_id, "device_id": "first"}
        await stand.health.told(of_first, syncs=3, failed_syncs=1, items=5, conflicts=1, rejected=2)
        async with talking(stand.channel, phone.metadata, device_id="second", cursor="") as talk:
            assert len(await talk.changes()) == 2
            await stand.health.told({"user_id": phone.user_id, "device_id": "second"}, syncs=1)

    async def test_a_push_that_cannot_be_read_has_failed(self, stand: Stand, phone: Phone) -> None:
        async with talking(stand.channel, phone.metadata, device_id="first") as talk:
            await talk.say("push", push=sync_pb2.PushChangesRequest())
            await talk.hear("refusal")
            await talk.say("resolve", resolve=sync_pb2.ResolveConflictRequest(conflict_id="x"))
            await talk.hear("refusal")
            await talk.push(said())
        await stand.told(phone, syncs=2, failed_syncs=1, items=1)

    async def test_two_devices_of_a_user_are_counted_apart(self, stand: Stand, phone: Phone) -> None:
        for device, domain, times in (("first", "journal", 5), ("second", "task", 3)):
            async with talking(stand.channel, phone.metadata, device_id=device) as talk:
                for _ in range(times):
                    await talk.push(said(domain, data={"title": "Bread"}), said(domain, data={"title": "Butter"}))
            of = {"user_id": phone.user_id, "device_id": device, "domain": domain}
            await stand.health.told(of, syncs=times, items=2 * times)


class TestWebSockets:
    @pytest.mark.parametrize(
        ("frame", "items"),
        [
            ("{", 0),
            (b"\x00", 0),
            ({"type": "sync", "payload": []}, 0),
            ({"type": "sync", "payload": {"voice_data": [1, {}]}}, 2),
        ],
        ids=str,
    )
    async def test_a_frame_that_cannot_be_read_is_a_failed_sync_of_its_device(
        self, stand: Stand, phone: Phone, frame: Any, items: int
    ) -> None:
        async with line(stand.edge, phone.access_token, device_id="phone-9") as one:
            await one.say(frame)
            await one.hear()
            await one.beat()
            counts = {"items": items, "rejected": items} if items else {}
            of = {"user_id": phone.user_id, "device_id": "phone-9"}
            await stand.health.told(of, syncs=1, failed_syncs=1, **counts)

    async def test_a_frame_that_holds_something_good_is_one_sync(self, stand: Stand, phone: Phone) -> None:
        async with line(stand.edge, phone.access_token) as one:
            await one.sync(records=[record(), record(data={"text": 7}), 7])
            await stand.told(phone, syncs=1, items=2, rejected=1)

    async def test_a_stranger_counts_for_nothing(self, stand: Stand) -> None:
        before = len(stand.health.outcomes)
        async with line(stand.edge, "nobody", device_id="stranger") as one:
            await one.say("{")
            await one.end()
        friend = await stand.phone()
        await push(stand, friend, "JSON", change())
        await stand.told(friend, syncs=1, items=1)
        assert not [one for one in stand.health.outcomes[before:] if one.device_id == "stranger"]


class TestUploads:
    async def test_a_file_counts_once_however_often_it_is_finalized(self, stand: Stand, phone: Phone) -> None:
        sending = await Sending.started(phone, some_file(1.5))
        await sending.rest()
        calls = [phone.call("POST", f"{sending.path}/finalize", headers=DEVICE) for _ in range(4)]
        assert all(answer.is_success for answer in await asyncio.gather(*calls))
        await sending.finalized()
        await Sending.started(phone, sending.data)  # known already: nothing is sent
        await push(stand, phone, "JSON", change())
        sums = await stand.told(phone, uploads_completed=1, upload_bytes=len(sending.data), syncs=1, items=1)
        assert sums.duration_ms > 0
        device = stand.health.sums(user_id=phone.user_id, device_id="phone-7")
        assert device.counts == {"uploads_completed": 1, "upload_bytes": len(sending.data)}

    async def test_one_that_is_cancelled_is_abandoned_once(self, stand: Stand, phone: Phone) -> None:
        sending = await Sending.started(phone, some_file(1))
        for _ in range(3):
            assert (await phone.call("DELETE", sending.path)).is_success
        await push(stand, phone, "JSON", change())
        await stand.told(phone, uploads_abandoned=1, syncs=1, items=1)

    async def test_one_that_is_not_what_was_announced_is_abandoned(self, stand: Stand, phone: Phone) -> None:
        sending = await Sending.started(phone, some_file(1))
        sending.data = some_file(1)
        await sending.chunk(0)
        for _ in range(2):
            assert not (await phone.call("POST", f"{sending.path}/finalize")).is_success
        await push(stand, phone, "JSON", change())
        await stand.told(phone, uploads_abandoned=1, syncs=1, items=1)

    async def test_one_that_is_left_is_abandoned_when_its_time_is_over(self, stand: Stand, phone: Phone) -> None:
        sending = await Sending.started(phone, some_file(1))
        url = stand.edge.mesh.config.database_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            over = "UPDATE uploads.uploads SET expire_time = now() - interval '1 second' WHERE id = %s"
            await connection.execute(over, [sending.id])
        await stand.told(phone, uploads_abandoned=1)


class TestFaults:
    @pytest.fixture
    def config(self, database_url: str, redis_url: str, tmp_path: Path) -> Config:
        return config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)

    async def test_with_health_away_everything_works_and_is_told_later(self, config: Config, tmp_path: Path) -> None:
        async with stand_of(config, tmp_path, "auth", "sessions") as stand:
            phone = await stand.phone()
            await push(stand, phone, "JSON", change())
            await stand.told(phone, syncs=1, items=1)
            await stand.health.stop()
            for _ in range(5):
                assert (await push(stand, phone, "JSON", change())).is_success
            await stand.health.start()
            stand.health.silent = True
            attempts = len(stand.health.attempts)
            await stand.health.until(lambda: len(stand.health.attempts) > attempts + 1)
            stand.health.silent = False
            await push(stand, phone, "JSON", change())
            await stand.told(phone, syncs=7, items=7)
            assert stand.health.dropped == 0

    async def test_what_fails_for_a_reason_of_ours_is_a_failed_sync(self, config: Config, tmp_path: Path) -> None:
        config = config.model_copy(update={"call_timeout": 4.0})
        async with stand_of(config, tmp_path, "auth", "sessions") as stand:
            phone = await stand.phone()
            await push(stand, phone, "JSON", change())
            async with await psycopg.AsyncConnection.connect(config.database_url) as connection:
                await connection.execute("LOCK TABLE sessions.feeds")
                assert (await push(stand, phone, "JSON", change(), change())).status_code == 504
                await connection.rollback()
            await stand.told(phone, syncs=2, failed_syncs=1, items=3)

    async def test_a_service_that_stops_says_what_it_has_left(self, config: Config, tmp_path: Path) -> None:
        async with stand_of(config, tmp_path, "auth") as stand:
            phone = await stand.phone()
            async with sessions_process(stand, tmp_path, signal.SIGTERM):
                for _ in range(3):
                    await push(stand, phone, "JSON", change())
            assert stand.health.sums(user_id=phone.user_id).counts == {"syncs": 3, "items": 3}

    async def test_a_service_that_is_killed_counts_nothing_twice(self, config: Config, tmp_path: Path) -> None:
        async with stand_of(config, tmp_path, "auth") as stand:
            phone, other = await stand.phone(), await stand.phone()
            async with sessions_process(stand, tmp_path, signal.SIGKILL):
                await push(stand, phone, "JSON", change())
                await stand.told(phone, syncs=1, items=1)
                stand.health.silent = True
                await push(stand, phone, "JSON", change())
                await stand.told(phone, syncs=2, items=2)
            stand.health.silent = False
            async with sessions_process(stand, tmp_path, signal.SIGTERM):
                await push(stand, other, "JSON", change())
                await stand.told(other, syncs=1, items=1)
            assert stand.health.sums(user_id=phone.user_id).counts == {"syncs": 2, "items": 2}

    async def test_reporting_can_be_turned_off(self, config: Config, tmp_path: Path) -> None:
        async with stand_of(config.model_copy(update={"report_outcomes": "off"}), tmp_path) as stand:
            phone = await stand.phone()
            await push(stand, phone, "JSON", change())
            async with talking(stand.channel, phone.metadata, device_id="first") as talk:
                await talk.push(said())
        assert not stand.health.attempts


@asynccontextmanager
async def sessions_process(stand: Stand, directory: Path, ending: signal.Signals) -> AsyncIterator[None]:
    """The sessions service as a process of its own, which is ended so."""
    part = replace(service_part("sessions", stand.edge.mesh.config, directory), stop_signal=ending)

    async def answers() -> bool:
        return (await stand.edge.http.get("/meta/schemas")).is_success

    async with running(part):
        await until(answers)
        yield


async def push(stand: Stand, phone: Phone, door: str, *changes: dict[str, Any]) -> Any:
    if door == "JSON":
        return await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
    messages = [
        sync_pb2.Change(
            domain=one["domain"], id=one["id"], operation="UPSERT", base_version=0, data=json.dumps(one["data"])
        )
        for one in changes
    ]
    stub = sync_pb2_grpc.SyncServiceStub(stand.channel)
    return await stub.PushChanges(sync_pb2.PushChangesRequest(changes=messages), metadata=phone.metadata)
