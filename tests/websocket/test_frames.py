"""The translation between seed 003's frames and the Sync stream: pure, so thousands of shapes are tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from satchel.sessions.v1 import sync_pb2 as pb
from websockets.datastructures import Headers

from runtime.errors import Failure, Reason, Violation, rpc_status
from services.websocket import answers, handshake, partings, requests
from services.websocket.requests import Asked, Item

NOW = datetime(2025, 9, 28, 12, 0, 1, 123456, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
YEARS = (datetime(1970, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001, what hypothesis wants
NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)
# Anything a JSON text can say, whole numbers as far as the product stores them.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(), JSON, max_size=5)


def asked(frame: Any) -> requests.Request:
    return requests.request_of(requests.opened(frame if isinstance(frame, str | bytes) else json.dumps(frame)))


def sync(**payload: Any) -> requests.Request:
    return asked({"type": "sync", "payload": payload})


def told(message: pb.SyncResponse, request: Asked | None = None) -> Any:
    frame = answers.frame_of(message, request or Asked(), NOW)
    return None if frame is None else json.loads(frame)


def refusal_of(frame: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        asked(frame)
    return caught.value


class TestSync:
    def test_the_lists_of_the_seed_become_changes_of_their_domains(self) -> None:
        voice = {"verification_id": "v-1", "timestamp": "2025-09-28T12:00:00Z", "verified": True}
        behaviour = {"session_id": "s-1", "events": [1], "duration_ms": 60000}
        message, known = sync(idempotency_key="k", voice_data=[voice], behavioral_data=[behaviour])
        assert message is not None
        assert message.push.idempotency_key == "k"
        assert [(one.domain, one.id, one.operation, json.loads(one.data)) for one in message.push.changes] == [
            ("voice_verification", "v-1", "UPSERT", voice),
            ("behavioral_session", "s-1", "UPSERT", behaviour),
        ]
        assert not message.push.changes[0].HasField("base_version")
        assert [item.place for item in known.items] == ["voice_data[0]", "behavioral_data[0]"]

    @given(NAMES, NAMES, st.integers(0, 2**31 - 1), OBJECTS, st.datetimes(*YEARS))
    def test_a_record_keeps_what_it_says(
        self, domain: str, id: str, version: int, data: Mapping[str, Any], time: datetime
    ) -> None:
        record = {"domain": domain, "mobile_id": id, "client_version": version, "operation": "update", "data": data,
                  "client_timestamp": time.isoformat() + "Z"}  # fmt: skip
        message, _ = sync(records=[record])
        assert message is not None
        (change,) = message.push.changes
        assert (change.domain, change.id, change.base_version, change.operation) == (domain, id, version, "UPSERT")
        assert json.loads(change.data) == data
        assert change.client_time.ToDatetime() == time

    @pytest.mark.parametrize("name", ["journal", "task", "attendance", "ticket", "work_order", "anything"])
    @pytest.mark.parametrize(
        "item",
        [
            {"mobile_id": "1", "client_version": 4, "title": "x"},
            {"id": "1", "base_version": 4, "data": {"title": "x"}, "operation": "create"},
            {
                "id": "1",
                "client_version": 4,
                "operation": "UPSERT",
                "title": "x",
                "client_time": "2025-09-28T12:00:00Z",
            },
        ],
    )
    def test_a_list_with_a_domains_name_is_taken(self, name: str, item: dict[str, Any]) -> None:
        message, _ = sync(**{name: [item]})
        assert message is not None
        (change,) = message.push.changes
        assert (change.domain, change.id, change.base_version, change.operation) == (name, "1", 4, "UPSERT")
        assert json.loads(change.data) == {"title": "x"}

    def test_a_deletion_has_no_data(self) -> None:
        message, _ = sync(task=[{"id": "1", "operation": "delete", "data": {"a": 1}}])
        assert message is not None
        assert (message.push.changes[0].operation, message.push.changes[0].data) == ("DELETE", "")

    @pytest.mark.parametrize(
        ("key", "item", "field"),
        [
            ("voice_data", 5, "voice_data[1]"),
            ("voice_data", None, "voice_data[1]"),
            ("voice_data", [], "voice_data[1]"),
            ("voice_data", {}, "voice_data[1].verification_id"),
            ("behavioral_data", {"id": "1"}, "behavioral_data[1].session_id"),
            ("records", {"mobile_id": "1"}, "records[1].domain"),
            ("records", {"domain": "journal"}, "records[1].mobile_id"),
            ("records", {"domain": 1, "id": "1"}, "records[1].domain"),
            ("journal", {"id": 1}, "journal[1].id"),
            ("journal", {"id": "1", "client_version": "4"}, "journal[1].client_version"),
            ("journal", {"id": "1", "client_version": True}, "journal[1].client_version"),
            ("journal", {"id": "1", "base_version": 2**31}, "journal[1].base_version"),
            ("journal", {"id": "1", "operation": 5}, "journal[1].operation"),
            ("journal", {"id": "1", "client_time": "yesterday"}, "journal[1].client_time"),
            ("journal", {"id": "1", "client_timestamp": 5}, "journal[1].client_timestamp"),
            ("journal", {"id": "\ud83d"}, "journal[1].id"),
            ("journal", {"id": "1", "text": "cut \ud83d"}, "journal[1]"),
            ("journal", {"id": "1", "data": {"text": "cut \ud83d"}}, "journal[1].data"),
            ("journal", {"id": "1", "number": 10**400, "text": "\ud83d"}, "journal[1]"),
        ],
    )
    def test_a_bad_item_is_refused_alone_and_by_its_place(self, key: str, item: Any, field: str) -> None:
        good = {"verification_id": "a", "session_id": "a", "domain": "journal", "id": "a"}
        message, known = sync(**{key: [good, item, good]})
        assert message is not None
        assert len(message.push.changes) == 2
        response = pb.Receipts(receipts=[pb.Receipt(status="APPLIED", version=1)] * 2)
        payload = told(pb.SyncResponse(receipts=response), known)["payload"]
        assert (payload["synced_items"], payload["failed_items"], payload["conflicts"]) == (2, 1, [])
        (error,) = payload["errors"]
        assert (error["error"], error["field"]) == ("validation_failed", field)
        assert error["message"].startswith(field)

    def test_where_every_item_is_bad_nothing_is_asked(self) -> None:
        message, known = sync(voice_data=[1, 2])
        assert message is None
        frame = json.loads(answers.refused_frame(known, NOW))
        assert frame["type"] == "sync_response"
        assert (frame["payload"]["synced_items"], frame["payload"]["failed_items"]) == (0, 2)

    @pytest.mark.parametrize("payload", [{}, {"voice_data": []}, {"voice_data": None}, {"note": "x", "extra": {}}])
    def test_a_phone_with_nothing_to_say_is_answered_with_zeros(self, payload: Any) -> None:
        message, known = sync(**payload)
        assert message is None
        assert json.loads(answers.refused_frame(known, NOW))["payload"]["synced_items"] == 0

    def test_a_thousand_items_are_taken_and_one_more_is_not(self) -> None:
        items = [{"id": str(number), "a": 1} for number in range(1000)]
        message, _ = sync(journal=items[:400], task=items[400:])
        assert message is not None
        assert len(message.push.changes) == 1000
        assert refusal_of({"type": "sync", "payload": {"journal": items, "task": items[:1]}}).reason is (
            Reason.FIELD_INVALID
        )

    @given(JSON)
    def test_no_payload_breaks_the_translation(self, payload: Any) -> None:
        for kind in ("sync", "heartbeat", "resolve_conflict"):
            try:
                message, known = asked({"type": kind, "payload": payload})
            except Failure as failure:
                json.loads(answers.error_frame(failure, NOW))
                continue
            json.loads(answers.refused_frame(known, NOW))
            assert message is None or pb.SyncRequest.FromString(message.SerializeToString()) == message

    @given(st.dictionaries(st.sampled_from(["voice_data", "behavioral_data", "records", "journal", "x"]) | st.text(),
                           st.lists(JSON | st.fixed_dictionaries({}, optional={
                               "id": JSON, "mobile_id": JSON, "verification_id": JSON, "session_id": JSON,
                               "domain": JSON, "client_version": JSON, "operation": JSON, "data": JSON,
                               "client_time": JSON, "atomic_group": JSON}), max_size=3), max_size=3))  # fmt: skip
    def test_every_item_is_either_asked_or_refused(self, payload: dict[str, Any]) -> None:
        try:
            message, known = sync(**payload)
        except Failure as failure:
            json.loads(answers.error_frame(failure, NOW))
            return
        count = 0 if message is None else len(message.push.changes)
        assert count == len(known.items)
        assert count + len(known.refused) == sum(len(items) for items in payload.values())
        json.loads(answers.refused_frame(known, NOW))


class TestFrames:
    @pytest.mark.parametrize(
        ("frame", "code"),
        [
            ("{", "SYNC_001"),
            ("", "SYNC_001"),
            ("[]", "SYNC_001"),
            ("5", "SYNC_001"),
            ("NaN", "SYNC_001"),
            ("[" * 100_000, "SYNC_001"),
            (b"{}", "SYNC_001"),
            ({}, "SYNC_002"),
            ({"type": None, "payload": {}}, "SYNC_002"),
            ({"type": "sync"}, "SYNC_002"),
            ({"type": "heartbeat", "payload": None}, "SYNC_002"),
            ({"type": "sync", "payload": []}, "SYNC_001"),
            ({"type": "nothing", "payload": {}}, "SYNC_001"),
            ({"type": ["sync"], "payload": {}}, "SYNC_001"),
            ({"type": "sync", "payload": {"voice_data": {}}}, "SYNC_001"),
            ({"type": "sync", "payload": {"journal": "x"}}, "SYNC_001"),
            ({"type": "sync", "payload": {"x" * 65: []}}, "SYNC_001"),
            ({"type": "sync", "payload": {"\ud83d": [{}]}}, "SYNC_001"),
            ({"type": "sync", "payload": {"idempotency_key": 5, "journal": []}}, "SYNC_001"),
            ({"type": "heartbeat", "payload": {"client_time": "soon"}}, "SYNC_001"),
            ({"type": "resolve_conflict", "payload": {}}, "SYNC_002"),
            ({"type": "resolve_conflict", "payload": {"conflict_id": "1"}}, "SYNC_002"),
            ({"type": "resolve_conflict", "payload": {"conflict_id": 1, "resolution": "merge"}}, "SYNC_001"),
            (
                {"type": "resolve_conflict", "payload": {"conflict_id": "1", "resolution": "merge", "client_data": 5}},
                "SYNC_001",
            ),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_what_cannot_be_read_is_refused_by_a_code(self, frame: Any, code: str) -> None:
        content = json.loads(answers.error_frame(refusal_of(frame), NOW))
        assert content["type"] == "error"
        assert content["payload"]["code"] == code
        assert content["payload"]["message"]
        assert content["timestamp"] == "2025-09-28T12:00:01Z"

    @given(st.text() | st.binary())
    def test_no_frame_breaks_the_reader(self, frame: str | bytes) -> None:
        with pytest.raises(Failure):
            asked(frame)

    def test_a_name_comes_back(self) -> None:
        _, known = asked({"type": "heartbeat", "payload": {}, "request_id": "7"})
        assert told(pb.SyncResponse(heartbeat_ack=pb.HeartbeatAck()), known)["request_id"] == "7"
        assert requests.opened('{"request_id": "' + "x" * 65 + '"}').name == ""

    def test_data_that_is_nested_too_deeply_ends_no_stream(self) -> None:
        deep: dict[str, Any] = {}
        for _ in range(60):
            deep = {"a": deep}
        payload = {"conflict_id": "1", "resolution": "merge", "client_data": deep}
        assert refusal_of({"type": "resolve_conflict", "payload": payload}).reason is Reason.FIELD_INVALID

    @given(st.dictionaries(NAMES, st.booleans() | st.text() | st.floats(-1e9, 1e9), max_size=5))
    def test_a_resolution_keeps_what_it_says(self, data: dict[str, Any]) -> None:
        payload = {"conflict_id": "c", "resolution": "merge", "client_data": data}
        message, _ = asked({"type": "resolve_conflict", "payload": payload})
        assert message is not None
        assert (message.resolve.conflict_id, message.resolve.resolution) == ("c", "merge")
        assert dict(message.resolve.client_data.items()) == data


class TestAnswers:
    def test_every_item_is_counted_once(self) -> None:
        items = [Item(str(number), f"journal[{number}]", "id", False) for number in range(5)]
        receipts = pb.Receipts(
            receipts=[
                pb.Receipt(status="APPLIED", version=1),
                pb.Receipt(status="DUPLICATE", version=2),
                pb.Receipt(status="CONFLICT", conflict=_notice()),
                pb.Receipt(status="REJECTED", reason="ATOMIC_GROUP", message="Another change failed."),
                pb.Receipt(status="APPLIED", version=3, conflict=_notice()),
            ],
            next_cursor="c",
        )
        frame = told(pb.SyncResponse(receipts=receipts), Asked(items=items))
        payload = frame["payload"]
        assert frame["type"] == "sync_response"
        assert (payload["synced_items"], payload["failed_items"], len(payload["conflicts"])) == (3, 1, 1)
        assert payload["errors"] == [
            {"item_id": "3", "error": "atomic_group", "message": "Another change failed.", "field": ""}
        ]
        assert [one["status"] for one in payload["receipts"]] == [
            "applied", "duplicate", "conflict", "rejected", "applied"
        ]  # fmt: skip
        assert payload["next_cursor"] == "c"

    @pytest.mark.parametrize(
        ("item", "theirs", "ours"),
        [
            (Item("a", "voice_data[3]", "verification_id", True), "changes[0].id", "voice_data[3].verification_id"),
            (Item("a", "voice_data[3]", "verification_id", True), "changes[0].data.score", "voice_data[3].score"),
            (Item("a", "voice_data[3]", "verification_id", True), "changes[0].data", "voice_data[3]"),
            (Item("a", "records[3]", "mobile_id", False), "changes[0].data.score", "records[3].data.score"),
            (Item("a", "records[3]", "mobile_id", False), "changes[0]", "records[3]"),
        ],
    )
    def test_a_refused_item_is_told_by_the_name_that_the_phone_has_for_it(
        self, item: Item, theirs: str, ours: str
    ) -> None:
        receipt = pb.Receipt(status="REJECTED", reason="FIELD_MISSING", field=theirs, message=f"{theirs}: is required")
        payload = told(pb.SyncResponse(receipts=pb.Receipts(receipts=[receipt])), Asked(items=[item]))["payload"]
        assert payload["errors"] == [
            {"item_id": "a", "error": "validation_failed", "message": f"{ours}: is required", "field": ours}
        ]

    def test_a_page_of_the_feed_is_a_push(self) -> None:
        changes = pb.Changes(
            changes=[
                _entry(id="1", version=1, data='{"n":9007199254740993}'),
                _entry(id="2", version=2),
                _entry(id="3", version=3, deleted=True, data="{}"),
            ],
            next_cursor="next",
        )
        frame = told(pb.SyncResponse(changes=changes))
        assert frame["type"] == "server_push"
        assert [(one["entity_type"], one["entity_id"], one["operation"]) for one in frame["payload"]["updates"]] == [
            ("task", "1", "create"),
            ("task", "2", "update"),
            ("task", "3", "delete"),
        ]
        assert frame["payload"]["updates"][0]["data"] == {"n": 9007199254740993}
        assert frame["payload"]["next_cursor"] == "next"

    def test_an_empty_page_is_nothing_to_tell(self) -> None:
        assert told(pb.SyncResponse(changes=pb.Changes(next_cursor="next"))) is None
        assert told(pb.SyncResponse(welcome=pb.Welcome())) is None

    def test_a_conflict_holds_the_servers_side(self) -> None:
        frame = told(pb.SyncResponse(conflict=_notice()))
        assert frame == {
            "type": "conflict",
            "payload": {
                "conflict_id": "c",
                "domain": "journal",
                "mobile_id": "m",
                "server_version": 5,
                "client_version": 4,
                "server_data": {"a": 1},
                "resolution_options": ["accept_server", "accept_client", "merge"],
            },
            "timestamp": "2025-09-28T12:00:01Z",
        }
        deleted = pb.ConflictNotice(server_data="")
        assert told(pb.SyncResponse(conflict=deleted))["payload"]["server_data"] is None

    @pytest.mark.parametrize(
        ("nanos", "text"), [(0, "12:00:01.000Z"), (123_456_789, "12:00:01.123Z"), (1_000_000, "12:00:01.001Z")]
    )
    def test_a_heartbeat_is_answered_to_the_millisecond(self, nanos: int, text: str) -> None:
        ack = pb.HeartbeatAck(server_time=Timestamp(seconds=SECONDS, nanos=nanos))
        assert told(pb.SyncResponse(heartbeat_ack=ack))["payload"] == {"server_time": f"2025-09-28T{text}"}

    def test_a_refusal_is_an_error_frame(self) -> None:
        refusal = pb.Refusal(code="RATE_001", message="slow", field="f", retry_after=Duration(seconds=2))
        payload = told(pb.SyncResponse(refusal=refusal))["payload"]
        assert payload == {"code": "RATE_001", "message": "slow", "field": "f", "retry_after": 2.0}


class TestHandshake:
    def test_what_the_query_says_counts_before_what_the_headers_say(self) -> None:
        headers = Headers({"X-App-Version": "1.0.0", "X-OS-Version": "iOS 17.0", "X-Network-Type": "wifi"})
        opening = handshake.opening_of("/ws/mobile/sync/?device_id=a&app_version=2.1.0&cursor=", headers, "::1")
        hello = opening.hello
        assert (hello.device_id, hello.app_version, hello.os_version, hello.network_type) == (
            "a", "2.1.0", "iOS 17.0", "wifi"
        )  # fmt: skip
        assert hello.HasField("cursor")
        assert dict(opening.metadata) == {"x-envoy-external-address": "::1"}
        assert not handshake.opening_of("/?device_id=a", headers, "").hello.HasField("cursor")

    @pytest.mark.parametrize(
        ("query", "headers"),
        [
            ("", {"Authorization": "Bearer t.o-k_n"}),
            ("", {"Sec-WebSocket-Protocol": "bearer, t.o-k_n"}),
            ("", {"Sec-WebSocket-Protocol": "other,bearer,t.o-k_n"}),
            ("&token=t.o-k_n", {}),
            ("&access_token=t.o-k_n", {}),
            ("&token=other", {"Authorization": "Bearer t.o-k_n"}),
            ("&token=other", {"Sec-WebSocket-Protocol": "bearer, t.o-k_n"}),
        ],
    )
    def test_the_token_is_found_in_each_of_its_places(self, query: str, headers: dict[str, str]) -> None:
        opening = handshake.opening_of(f"/?device_id=a{query}", Headers(headers), "")
        assert dict(opening.metadata)["authorization"] == "Bearer t.o-k_n"

    @pytest.mark.parametrize(
        "query", ["", "device_id=", "device_id=a%20b", "device_id=" + "a" * 256, "device_id=%C3%A4"]
    )
    def test_a_bad_device_is_refused(self, query: str) -> None:
        with pytest.raises(Failure) as caught:
            handshake.opening_of(f"/ws/mobile/sync/?{query}", Headers(), "")
        assert partings.refused(caught.value).code == 4400

    @given(st.text(), st.text(st.characters(max_codepoint=255, exclude_categories=("Cc",))))
    def test_no_query_and_no_header_breaks_the_reader(self, query: str, value: str) -> None:
        headers = Headers([("Authorization", value), ("X-OS-Version", value), ("X-Request-Id", value)])
        try:
            opening = handshake.opening_of(f"/?device_id=a&{query}", headers, "")
        except Failure:
            return
        opening.hello.SerializeToString()
        assert all(text.isascii() for name, text in opening.metadata if name == "authorization")


class TestPartings:
    @pytest.mark.parametrize(
        ("reason", "code"),
        [
            (Reason.TOKEN_EXPIRED, 4401),
            (Reason.TOKEN_REVOKED, 4401),
            (Reason.MISSING_BEARER_TOKEN, 4401),
            (Reason.RATE_LIMITED, 4429),
            (Reason.VERSION_MISMATCH, 4426),
            (Reason.UNAVAILABLE, 4503),
            (Reason.RESYNC_REQUIRED, 4400),
            (Reason.FIELD_INVALID, 4400),
            (Reason.INTERNAL, 1011),
        ],
    )
    def test_a_status_with_details_says_why(self, reason: Reason, code: int) -> None:
        status = rpc_status(Failure(reason, "because", retry_after=2), request_id="r")
        parting = partings.stream_ended(reason.row.code, [("grpc-status-details-bin", status.SerializeToString())])
        assert (parting.code, parting.failure.reason, parting.reason) == (code, reason, "because")
        assert parting.failure.retry_after == 2

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (grpc.StatusCode.OK, 4503),
            (grpc.StatusCode.UNAVAILABLE, 4503),
            (grpc.StatusCode.CANCELLED, 4503),
            (grpc.StatusCode.UNAUTHENTICATED, 4401),
            (grpc.StatusCode.UNKNOWN, 1011),
        ],
    )
    @pytest.mark.parametrize("trailers", [[], [("grpc-status-details-bin", b"\xff\xff")]])
    def test_a_status_without_details_is_understood(
        self, status: grpc.StatusCode, code: int, trailers: list[tuple[str, str | bytes]]
    ) -> None:
        parting = partings.stream_ended(status, trailers)
        assert parting.code == code
        assert code != 4503 or 1 <= (parting.failure.retry_after or 0) <= 5

    def test_an_end_under_a_write_is_taken_for_the_refusal_before_it(self) -> None:
        limited = Failure(Reason.RATE_LIMITED, retry_after=3)
        assert partings.stream_ended(grpc.StatusCode.INTERNAL, (), limited).failure is limited
        assert partings.stream_ended(grpc.StatusCode.INTERNAL, ()).code == 4503
        assert partings.stream_ended(grpc.StatusCode.OK, (), limited).code == 4503

    @pytest.mark.parametrize(
        ("cause", "code"), [("DRAINING", 4503), ("IDLE", 4408), ("LIFETIME", 1001), ("TOO_SLOW", 4408)]
    )
    def test_a_goodbye_has_a_code_and_says_when_to_come_again(self, cause: str, code: int) -> None:
        goodbye = pb.GoAway(cause=f"CAUSE_{cause}", reconnect_after=Duration(seconds=1, nanos=500_000_000))
        parting = partings.sent_away(goodbye)
        assert (parting.code, parting.failure.retry_after) == (code, 1.5)

    def test_a_reason_fits_a_close_frame(self) -> None:
        parting = partings.refused(Failure(Reason.FIELD_INVALID, "ü" * 200, violations=[Violation("f", "X")]))
        assert len(parting.reason.encode()) <= 123


def _notice() -> pb.ConflictNotice:
    return pb.ConflictNotice(
        conflict_id="c",
        domain="journal",
        mobile_id="m",
        server_version=5,
        client_version=4,
        server_data='{"a":1}',
        resolution_options=["accept_server", "accept_client", "merge"],
    )


def _entry(**given: Any) -> pb.FeedEntry:
    return pb.FeedEntry(**{"domain": "task", "data": "{}", "update_time": Timestamp(seconds=SECONDS), **given})
