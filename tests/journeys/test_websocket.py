"""The WebSocket door through the edge: seed 003's dialogue, errors, ends, and what no phone may do to it."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deploy.edge import reaches_all
from deploy.parts import Child, running
from runtime.config import SERVICES
from runtime.server import serving
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.websockets import PATIENCE, Frame, Line, line, record, voice

# The frames of seed 003, server to client, with their examples' values.
SYNC_RESPONSE = {
    "type": "sync_response",
    "payload": {
        "synced_items": 10,
        "failed_items": 2,
        "conflicts": [],
        "errors": [{"item_id": "uuid", "error": "validation_failed", "message": "Missing required field"}],
    },
    "timestamp": "2025-09-28T12:00:01Z",
}
HEARTBEAT_ACK = {"type": "heartbeat_ack", "payload": {"server_time": "2025-09-28T12:00:00.123Z"}}
CONFLICT = {
    "type": "conflict",
    "payload": {
        "conflict_id": "uuid",
        "domain": "journal",
        "mobile_id": "uuid",
        "server_version": 5,
        "client_version": 4,
        "server_data": {},
        "resolution_options": ["accept_server", "accept_client", "merge"],
    },
}
SERVER_PUSH = {
    "type": "server_push",
    "payload": {"updates": [{"entity_type": "task", "entity_id": "uuid", "operation": "update", "data": {}}]},
}


def assert_like(found: Any, shown: Any, place: str = "frame") -> None:
    """Everything that the seed shows is there, with its type; more may be."""
    assert type(found) is type(shown), f"{place}: {found!r} is not like {shown!r}"
    if isinstance(shown, dict):
        for key, value in shown.items():
            assert key in found, f"{place}: no {key} in {found!r}"
            assert_like(found[key], value, f"{place}.{key}")
    elif isinstance(shown, list) and shown:
        assert found, f"{place} is empty"
        for one in found:
            assert_like(one, shown[0], place)
    elif isinstance(shown, str) and shown.startswith("2025-"):
        pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d" + (r"\.\d{3}Z" if "." in shown else "Z")
        assert re.fullmatch(pattern, found), f"{place}: {found}"


async def conflicted(one: Line) -> tuple[str, Frame]:
    """Brings about a conflict that waits for a person: the record's id, and the answer's payload."""
    sent = record()
    assert (await one.sync(records=[sent]))["synced_items"] == 1
    stale = {**sent, "client_version": 5, "operation": "update", "data": {"title": "Another", "text": "It snowed."}}
    return sent["mobile_id"], await one.sync(records=[stale])


NOBODYS = "4b5f8f0e-8c39-4f0e-9a3c-1d2e3f405162"  # the id of no conflict


class TestSeed:
    async def test_a_sync_as_the_seed_shows_it(self, edge: Edge, phone: Phone) -> None:
        frame = {
            "type": "sync",
            "payload": {
                "idempotency_key": "sha256_hash_of_request",
                "voice_data": [
                    {
                        "verification_id": str(uuid4()),
                        "timestamp": "2025-09-28T12:00:00Z",
                        "verified": True,
                        "confidence_score": 0.95,
                        "quality_score": 0.88,
                        "processing_time_ms": 150,
                    }
                ],
                "behavioral_data": [{"session_id": str(uuid4()), "events": [{"tap": 1}], "duration_ms": 60000}],
            },
        }
        async with line(edge, phone.access_token) as one:
            await one.say(frame)
            answer = await one.hear()
            assert_like(answer, {**SYNC_RESPONSE, "payload": {**SYNC_RESPONSE["payload"], "errors": []}})
            assert answer["payload"]["synced_items"] == 2
            assert answer["payload"]["failed_items"] == 0
            assert answer["payload"]["conflicts"] == answer["payload"]["errors"] == []
            again = await one.ask(frame, "sync_response")
            assert (again["synced_items"], again["failed_items"]) == (2, 0)
            await one.beat()  # and nothing else was said

    async def test_a_heartbeat_as_the_seed_shows_it(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            await one.say({"type": "heartbeat", "payload": {"client_time": "2025-09-28T12:00:00Z"}})
            assert_like(await one.hear(), HEARTBEAT_ACK)

    async def test_errors_as_the_seed_shows_them(self, edge: Edge, phone: Phone) -> None:
        bad = [
            voice(confidence_score=1.5),
            voice(quality_score=-0.1),
            voice(processing_time_ms=-1),
            voice(timestamp=5),
            voice(verified="yes"),
            {"verification_id": str(uuid4()), "verified": True},
            voice(verification_id="not an id"),
        ]
        async with line(edge, phone.access_token) as one:
            await one.say({"type": "sync", "payload": {"voice_data": [voice(), *bad, "nonsense", voice()]}})
            answer = await one.hear()
            assert_like(answer, SYNC_RESPONSE)
            payload = answer["payload"]
        assert payload["synced_items"] == 2
        assert payload["failed_items"] == len(payload["errors"]) == len(bad) + 1
        assert {error["error"] for error in payload["errors"]} == {"validation_failed"}
        by_id = {error["item_id"]: error for error in payload["errors"]}
        assert by_id[bad[0]["verification_id"]]["field"] == "voice_data[1].confidence_score"
        assert by_id["not an id"]["field"] == "voice_data[7].verification_id"

    async def test_a_conflict_and_its_resolution_as_the_seed_shows_them(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge(admin_email="boss@example.com")
        admin, phone = await edge.phone(email="boss@example.com"), await edge.phone()
        policy = {"resolution_policy": "manual", "notify_on_conflict": True}
        assert (await admin.call("PUT", "/api/v1/sync/policies/1/journal", json=policy)).status_code == 200
        async with line(edge, phone.access_token, device_id="a") as one:
            async with line(edge, phone.access_token, device_id="b") as other:
                await other.beat()  # it hears what comes after its hello
                id, payload = await conflicted(one)
                assert (payload["synced_items"], payload["failed_items"]) == (0, 0)
                (conflict,) = payload["conflicts"]
                assert_like(conflict, CONFLICT["payload"])
                assert (conflict["mobile_id"], conflict["server_data"]["title"]) == (id, "A day")
                heard = {frame["type"]: frame for frame in (await other.hear(), await other.hear())}
                assert_like(heard["server_push"], SERVER_PUSH)
                told = heard["conflict"]
                assert_like(told, CONFLICT)
                assert told["payload"] == conflict
            frame = {
                "type": "resolve_conflict",
                "payload": {"conflict_id": conflict["conflict_id"], "resolution": "merge", "client_data": {"a": 1}},
            }
            resolved = await one.ask(frame, "conflict_resolved")
            assert (resolved["conflict_id"], resolved["resolution_result"]) == (conflict["conflict_id"], "resolved")
            assert (resolved["winning_version"], resolved["version"]) == ("merged", 2)
            await one.hear("server_push")
            refused = await one.ask(frame, "error")
            assert refused["code"] == "SYNC_004"

    async def test_what_one_device_syncs_is_pushed_to_the_other(self, edge: Edge, phone: Phone) -> None:
        async with (
            line(edge, phone.access_token, device_id="a") as one,
            line(edge, phone.access_token, device_id="b") as other,
        ):
            await other.beat()  # it hears what comes after its hello
            id = str(uuid4())
            assert (await one.sync(task=[{"id": id, "title": "Wash up"}]))["synced_items"] == 1
            pushed = await other.hear()
            assert_like(pushed, SERVER_PUSH)
            (update,) = pushed["payload"]["updates"]
            assert (update["entity_type"], update["entity_id"], update["operation"]) == ("task", id, "create")
            await one.sync(task=[{"id": id, "client_version": 1, "title": "Wash up", "done": True}])
            (update,) = (await other.hear("server_push"))["payload"]["updates"]
            assert (update["operation"], update["data"]) == ("update", {"title": "Wash up", "done": True})
            await one.sync(task=[{"id": id, "client_version": 2, "operation": "delete"}])
            (update,) = (await other.hear("server_push"))["payload"]["updates"]
            assert (update["operation"], update["data"], update["version"]) == ("delete", {}, 3)
            await one.beat()  # who pushed it is not told of it


class TestSync:
    async def test_a_cursor_brings_what_was_missed(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            first = await one.sync(records=[record() for _ in range(3)])
            second = await one.sync(records=[record("task", data={"title": "x"})])
        async with line(edge, phone.access_token, cursor=first["next_cursor"]) as one:
            pushed = (await one.hear("server_push"))["payload"]
            assert [update["entity_type"] for update in pushed["updates"]] == ["task"]
            assert pushed["next_cursor"] == second["next_cursor"]
        async with line(edge, phone.access_token, cursor="") as one:
            assert len((await one.hear("server_push"))["payload"]["updates"]) == 4
        async with line(edge, phone.access_token, cursor="", domains="task") as one:
            assert len((await one.hear("server_push"))["payload"]["updates"]) == 1
        async with line(edge, phone.access_token) as one:
            await one.beat()  # and nothing before it

    async def test_a_key_that_comes_again_with_something_else_is_refused(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            await one.sync(idempotency_key="k", voice_data=[voice()])
            frame = {"type": "sync", "payload": {"idempotency_key": "k", "voice_data": [voice()]}, "request_id": "7"}
            await one.say(frame)
            answer = await one.hear("error")
            assert (answer["payload"]["code"], answer["request_id"]) == ("SYNC_003", "7")
            assert (await one.sync(voice_data=[voice()]))["synced_items"] == 1

    async def test_a_thousand_items_are_taken_and_one_more_is_not(self, edge: Edge, phone: Phone) -> None:
        items = [record() for _ in range(1000)]
        async with line(edge, phone.access_token) as one:
            assert (await one.sync(records=items))["synced_items"] == 1000
            refused = await one.ask({"type": "sync", "payload": {"records": [*items, record()]}}, "error")
            assert refused["code"] == "SYNC_001"
            assert "1001" in refused["message"]
            await one.beat()

    async def test_a_record_of_five_megabytes_fails_alone(self, edge: Edge, phone: Phone) -> None:
        huge = record(data={"title": "x", "text": uuid4().hex * (5 * 1024 * 1024 // 32)})
        async with line(edge, phone.access_token) as one:
            answer = await one.sync(records=[huge, record()])
            assert (answer["synced_items"], answer["failed_items"]) == (1, 1)
            assert answer["errors"][0]["item_id"] == huge["mobile_id"]

    async def test_whole_numbers_past_what_a_double_holds_arrive_as_they_were(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            await one.sync(records=[record(data={"title": "x", "text": "y", "n": 2**53 + 1})])
        async with line(edge, phone.access_token, cursor="") as one:
            (update,) = (await one.hear("server_push"))["payload"]["updates"]
            assert update["data"]["n"] == 2**53 + 1

    async def test_a_feed_of_many_pages_arrives_whole(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            for _ in range(3):
                await one.sync(records=[record() for _ in range(1000)])
        found: set[str] = set()
        async with line(edge, phone.access_token, cursor="") as one:
            while len(found) < 3000:
                found |= {one["entity_id"] for one in (await one.hear("server_push"))["payload"]["updates"]}
            await one.beat()

    async def test_a_phone_that_asks_for_it_is_welcomed(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token, hello="1") as one:
            welcome = (await one.hear("welcome"))["payload"]
            assert welcome["limits"]["max_changes"] == 1000
            assert welcome["domains"]["journal"] >= 1
            assert welcome["cursor"]


class TestErrors:
    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            ("{", "SYNC_001"),
            ("[1]", "SYNC_001"),
            (b"\x00\x01", "SYNC_001"),
            ({"payload": {}}, "SYNC_002"),
            ({"type": "sync"}, "SYNC_002"),
            ({"type": "dance", "payload": {}}, "SYNC_001"),
            ({"type": "sync", "payload": {"voice_data": "x"}}, "SYNC_001"),
            ({"type": "resolve_conflict", "payload": {"conflict_id": NOBODYS, "resolution": "no"}}, "SYNC_001"),
            ({"type": "resolve_conflict", "payload": {"conflict_id": NOBODYS}}, "SYNC_002"),
            (
                {"type": "resolve_conflict", "payload": {"conflict_id": NOBODYS, "resolution": "accept_server"}},
                "NOT_FOUND",
            ),
        ],
        ids=str,
    )
    async def test_what_cannot_be_done_is_refused_and_the_connection_stays(
        self, edge: Edge, phone: Phone, frame: Any, code: str
    ) -> None:
        async with line(edge, phone.access_token) as one:
            await one.say(frame)
            answer = await one.hear("error")
            assert answer["payload"]["code"] == code
            assert answer["payload"]["message"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer["timestamp"])
            await one.beat()


class TestHandshake:
    @pytest.mark.parametrize("path", ["/ws/mobile/sync/", "/ws/mobile/sync"])
    async def test_the_token_is_taken_from_each_of_its_places(self, edge: Edge, phone: Phone, path: str) -> None:
        token = phone.access_token
        offer = {"subprotocols": ["bearer", token]}
        async with (
            line(edge, token, path=path) as by_header,
            line(edge, path=path, client=offer) as by_protocol,
            line(edge, path=path, token=token) as by_query,
            line(edge, path=path, access_token=token) as by_other_name,
        ):
            for one in (by_header, by_protocol, by_query, by_other_name):
                await one.beat()
            assert by_protocol.socket.subprotocol == "bearer"
            assert by_header.socket.subprotocol is None

    async def test_frames_are_compressed(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            assert "permessage-deflate" in one.socket.response.headers["Sec-WebSocket-Extensions"]
            await one.beat()
        async with line(edge, phone.access_token, client={"compression": None}) as one:
            assert "Sec-WebSocket-Extensions" not in one.socket.response.headers
            await one.beat()

    async def test_other_paths_and_other_protocols_are_declined_in_http(self, edge: Edge, phone: Phone) -> None:
        answer = await edge.http.get("/ws/mobile/sync/?device_id=a")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "SYNC_001")
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{edge.port}/ws/other", proxy=None)
        assert caught.value.response.status_code == 404
        assert json.loads(caught.value.response.body)["error"]["code"] == "NOT_FOUND"


class TestEnds:
    @pytest.mark.parametrize("device_id", ["", "a b", "x" * 256, "../etc", "ü"])
    async def test_a_bad_device_is_4400(self, edge: Edge, phone: Phone, device_id: str) -> None:
        async with line(edge, phone.access_token, device_id=device_id) as one:
            code, (error,) = await one.end()
            assert (code, error["type"]) == (4400, "error")
            assert error["payload"]["code"] in ("SYNC_001", "SYNC_002")

    @pytest.mark.parametrize(
        "query",
        [
            {"cursor": "nonsense"},
            {"domains": "nothing"},
            {"os_version": "x" * 65},
            {f"p{number}": "" for number in range(65)},
        ],
    )
    async def test_a_bad_hello_is_4400(self, edge: Edge, phone: Phone, query: dict[str, str]) -> None:
        async with line(edge, phone.access_token, **query) as one:
            code, (error,) = await one.end()
            assert (code, error["payload"]["code"]) == (4400, "SYNC_001")

    @pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "ümlaut"])
    async def test_a_bad_token_is_4401(self, edge: Edge, token: str) -> None:
        async with line(edge, **({"token": token} if token else {})) as one:
            code, (error,) = await one.end()
            assert (code, error["payload"]["code"]) == (4401, "AUTH_001")

    async def test_a_sign_out_ends_the_connection_with_4401(self, edge: Edge) -> None:
        phone = await edge.phone()
        async with line(edge, phone.access_token) as one:
            await one.beat()
            assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "this"})).status_code == 200
            code, (error,) = await one.end()
            assert (code, error["payload"]["code"]) == (4401, "AUTH_001")

    async def test_an_app_that_is_too_old_is_4426(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(admin_email="boss@example.com")
        admin, phone = await edge.phone(email="boss@example.com"), await edge.phone()
        versions = {"latest_version": "2.1.0", "min_supported_version": "2.0.0", "store_url": "https://example.com/app"}
        answer = await admin.call("PUT", "/meta/app_version/ios", json=versions)
        assert answer.status_code == 200, answer.text
        async with line(edge, phone.access_token, headers={"X-App-Version": "1.9.9", "X-Platform": "ios"}) as one:
            code, (error,) = await one.end()
            assert (code, error["payload"]["code"]) == (4426, "SYNC_005")
        async with line(edge, phone.access_token, app_version="2.0.0", platform="ios", hello="1") as one:
            assert (await one.hear("welcome"))["payload"]["update_available"] is True

    async def test_a_frame_of_more_than_eight_megabytes_is_1009(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            await one.say("x" * (8 * 1024 * 1024 + 1))
            code, _ = await one.end()
            assert code == 1009

    async def test_silence_is_4408_though_the_server_speaks(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(stream_idle_timeout=1.5)
        phone = await edge.phone()
        async with line(edge, phone.access_token, device_id="silent") as silent:

            async def speak() -> None:
                async with line(edge, phone.access_token, device_id="other") as other:
                    while True:
                        await other.sync(records=[record()])
                        await asyncio.sleep(0.1)

            speaking = asyncio.create_task(speak())
            code, frames = await silent.end()
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        assert code == 4408
        assert {frame["type"] for frame in frames[:-1]} == {"server_push"}
        assert frames[-1]["type"] == "error"

    async def test_one_connection_too_many_is_4429(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(streams_per_user=2)
        phone, other = await edge.phone(), await edge.phone()
        async with (
            line(edge, phone.access_token) as first,
            line(edge, phone.access_token) as second,
            line(edge, other.access_token) as foreign,
            line(edge, phone.access_token) as third,
        ):
            code, (error,) = await third.end()
            assert (code, error["payload"]["code"]) == (4429, "RATE_001")
            for one in (first, second, foreign):
                await one.beat()

    async def test_three_refusals_for_the_rate_are_4429(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(rate_limits="on")
        phone = await edge.phone()
        async with line(edge, phone.access_token) as one:
            for _ in range(100):
                await one.sync(voice_data=[voice()])
            for _ in range(3):
                await one.say({"type": "sync", "payload": {"voice_data": [voice()]}})
            code, frames = await one.end()
            assert code == 4429
            assert {frame["payload"]["code"] for frame in frames} == {"RATE_001"}
            assert frames[0]["payload"]["retry_after"] > 0

    async def test_the_end_of_its_life_is_1001(self, own_edge: Callable[..., Awaitable[Edge]]) -> None:
        edge = await own_edge(stream_lifetime=0.5)
        phone = await edge.phone()
        async with line(edge, phone.access_token) as one:
            code, (error,) = await one.end()
            assert code == 1001
            assert "retry_after" in error["payload"]


class TestAbuse:
    async def test_a_flood_is_cut(self, edge: Edge, phone: Phone) -> None:
        async with line(edge, phone.access_token) as one:
            room = asyncio.Semaphore(100)

            async def flood() -> None:
                with suppress(ConnectionClosed):
                    while await room.acquire():
                        await one.say({"type": "heartbeat", "payload": {}})

            flooding = asyncio.create_task(flood())
            kinds = Counter[str]()
            with pytest.raises(ConnectionClosed) as caught:
                async with asyncio.timeout(6 * PATIENCE):
                    while True:
                        kinds[json.loads(await one.socket.recv())["type"]] += 1
                        room.release()
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 4429
            assert kinds["error"] >= 3
            assert set(kinds) == {"error", "heartbeat_ack"}

    async def test_a_phone_that_never_reads_is_cut_and_the_others_do_not_notice(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge(stream_idle_timeout=5)
        phone = await edge.phone()
        text = uuid4().hex
        async with line(edge, phone.access_token, device_id="writer") as writer:
            for _ in range(16):
                items = [record(data={"title": "x", "text": _noise(text, n)}) for n in range(5)]
                assert (await writer.sync(records=items))["synced_items"] == 5
            options = {"max_queue": 1, "compression": None, "ping_interval": None}
            async with line(edge, phone.access_token, cursor="", client=options) as one:
                transport = one.socket.transport
                transport.pause_reading()
                async with asyncio.timeout(PATIENCE):
                    while _connections() > 1:
                        await writer.beat()
                        await asyncio.sleep(0.1)
                transport.abort()
            await writer.beat()


class TestProcesses:
    async def test_a_stopping_door_sends_phones_away_with_4503_after_their_answers(
        self, database_url: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with _mesh(database_url, redis_url, tmp_path, "websocket") as (edge, parts):
            phone = await edge.phone()
            async with line(edge, phone.access_token) as one:
                await one.beat()
                stopping = asyncio.create_task(parts["websocket"].stop())
                code, frames = await one.end()
                assert code == 4503
                assert 0 < frames[-1]["payload"]["retry_after"] <= 5
                await stopping
            with pytest.raises(InvalidStatus) as caught:
                async with line(edge, phone.access_token):
                    pass
            assert caught.value.response.status_code == 503
            assert json.loads(caught.value.response.body)["error"]["code"] == "UNAVAILABLE"

    async def test_phones_are_told_when_sessions_is_away_and_get_in_when_it_is_back(
        self, database_url: str, redis_url: str, tmp_path: Path
    ) -> None:
        async with _mesh(database_url, redis_url, tmp_path, "sessions") as (edge, parts):
            phone = await edge.phone()
            async with line(edge, phone.access_token) as one:
                await one.beat()
                parts["sessions"].kill()
                await parts["sessions"].wait()
                code, (error,) = await one.end()
                assert (code, error["payload"]["code"]) == (4503, "UNAVAILABLE")
            async with line(edge, phone.access_token) as one:
                code, (error,) = await one.end()
                assert code == 4503
                assert error["payload"]["retry_after"] > 0
            await parts["sessions"].start()
            async with asyncio.timeout(PATIENCE):
                while not await _beats(edge, phone):
                    pass

    async def test_a_token_is_in_no_log(self, database_url: str, redis_url: str, tmp_path: Path) -> None:
        async with _mesh(database_url, redis_url, tmp_path, *SERVICES, log_level="debug") as (edge, _):
            phone = await edge.phone()
            token = phone.access_token
            for given in ({"token": token}, {"access_token": token}, {"client": {"subprotocols": ["bearer", token]}}):
                async with line(edge, **given) as one:
                    await one.beat()
                    await one.ask("nonsense", "error")
            async with line(edge, token, device_id="a b", access_token=token) as one:
                await one.end()
            async with line(edge, token=f"{token}x") as one:
                assert (await one.end())[0] == 4401
        logs = {file.name: file.read_text(errors="replace") for file in tmp_path.rglob("*.log")}
        assert {"websocket.log", "sessions.log", "auth.log", "envoy.log"} <= set(logs)
        assert '"event":"websocket"' in logs["websocket.log"]
        assert "/ws/mobile/sync/" in logs["envoy.log"]
        secret = token.rpartition(".")[2]
        assert not [name for name, text in logs.items() if secret in text or token[:40] in text]


def _noise(text: str, number: int) -> str:
    """200 KB that no compression makes small."""
    return Random(f"{text}{number}").randbytes(100_000).hex()


def _connections() -> float:
    """Phones that the door of this process holds."""
    return REGISTRY.get_sample_value("websocket_connections") or 0


async def _beats(edge: Edge, phone: Phone) -> bool:
    try:
        async with line(edge, phone.access_token) as one:
            await one.beat()
            return True
    except (ConnectionClosed, AssertionError, InvalidStatus):
        return False


@asynccontextmanager
async def _mesh(
    database_url: str, redis_url: str, directory: Path, *names: str, **settings: str
) -> AsyncIterator[tuple[Edge, dict[str, Child]]]:
    """Services of these `names` as processes, by their names; the others are in this one."""
    config = config_for(directory / "home", database_url=database_url, redis_url=redis_url)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, directory))
        await stack.enter_async_context(serving(config, {name: ALL[name] for name in SERVICES if name not in names}))
        parts = {
            name: await stack.enter_async_context(running(service_part(name, config, directory, **settings)))
            for name in names
        }
        await until_healthy(edge)
        async with asyncio.timeout(PATIENCE):
            while not await reaches_all(directory / "admin.sock"):
                await asyncio.sleep(0.05)
        yield edge, parts
