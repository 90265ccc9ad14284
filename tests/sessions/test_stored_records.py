"""What services store in a user's feed: their word counts, once, and in what they write nobody else has a say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from services.sessions.meta_domain import Discovery
from services.sessions.schemas import Schemas
from tests.conftest import Edge
from tests.factories import Phone, change, puzzle_session
from tests.streams import change as streamed
from tests.streams import talking

PUSH, PULL = "/api/v1/sync/push", "/api/v1/sync/pull"
WRITTEN_BY_THE_SERVER = "is written by the server"


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


def file(**given: Any) -> dict[str, Any]:
    """The data of a finished upload."""
    return {
        "filename": "notes.pdf",
        "mime_type": "application/pdf",
        "size": 10_485_760,
        "checksum": "ab" * 32,
        "file_url": "/api/v1/files/1/content",
        "create_time": "2026-02-26T10:00:00Z",
        "upload_id": "1",
        **given,
    }


def record(id: str = "f", data: Any = None, **given: Any) -> pb.StoredRecord:
    """A finished upload under an id."""
    return pb.StoredRecord(**{"domain": "file", "id": id, "data": json.dumps(data or file()), **given})


def ended(id: str = "f", domain: str = "file") -> pb.StoredRecord:
    return pb.StoredRecord(domain=domain, id=id, deleted=True)


def service_metadata(edge: Edge) -> tuple[tuple[str, str], ...]:
    token = ServiceTokens(mesh_secret(edge.mesh.config.keys), "test").current()
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def store(edge: Edge, channel: grpc.aio.Channel) -> Callable[..., Awaitable[list[pb.Receipt]]]:
    """Stores records for a user as a service does; returns the receipts."""

    async def call(user_id: str, *records: pb.StoredRecord, tenant_id: int = 1) -> list[pb.Receipt]:
        request = pb.StoreRecordsRequest(user_id=user_id, tenant_id=tenant_id, records=records)
        response = await pb_grpc.SyncServiceStub(channel).StoreRecords(
            request, metadata=service_metadata(edge), timeout=20
        )
        assert response.server_time.seconds
        return list(response.receipts)

    return call


Store = Callable[..., Awaitable[list[pb.Receipt]]]


def outcomes(receipts: list[pb.Receipt]) -> list[tuple[str, int]]:
    return [(one.status, one.version) for one in receipts]


async def pulled(phone: Phone, **parameters: Any) -> list[dict[str, Any]]:
    answer = await phone.call("GET", PULL, params=parameters)
    assert answer.status_code == 200, answer.text
    changes: list[dict[str, Any]] = answer.json()["changes"]
    return changes


async def pushed(phone: Phone, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await phone.call("POST", PUSH, json={"changes": changes})
    assert answer.status_code == 200, answer.text
    receipts: list[dict[str, Any]] = answer.json()["receipts"]
    return receipts


async def test_what_is_stored_is_pulled_and_a_repeat_stores_nothing(store: Store, phone: Phone) -> None:
    assert outcomes(await store(phone.user_id, record("a"), record("b"))) == [("APPLIED", 1), ("APPLIED", 1)]
    first = (await phone.call("GET", PULL)).json()
    assert outcomes(await store(phone.user_id, record("a"), record("b"))) == [("DUPLICATE", 1), ("DUPLICATE", 1)]
    assert (await phone.call("GET", PULL)).json() == first
    assert [(one["domain"], one["id"], one["data"]) for one in first["changes"]] == [
        ("file", "a", file()),
        ("file", "b", file()),
    ]
    exported = (await phone.call("GET", "/api/v1/sync/export")).text.splitlines()
    assert [json.loads(line)["id"] for line in exported[1:-1]] == ["a", "b"]


async def test_what_differs_is_the_next_version_and_a_deletion_a_tombstone(store: Store, phone: Phone) -> None:
    await store(phone.user_id, record())
    assert outcomes(await store(phone.user_id, record(data=file(size=1)))) == [("APPLIED", 2)]
    assert outcomes(await store(phone.user_id, ended(), ended())) == [("APPLIED", 3), ("DUPLICATE", 3)]
    assert outcomes(await store(phone.user_id, ended("never"))) == [("DUPLICATE", 0)]
    assert [(one["id"], one["version"], one["deleted"]) for one in await pulled(phone)] == [("f", 3, True)]


async def test_records_of_one_call_are_stored_in_their_order(store: Store, phone: Phone) -> None:
    receipts = await store(phone.user_id, record(), record(data=file(size=1)), ended(), record(data=file(size=2)))
    assert outcomes(receipts) == [("APPLIED", 1), ("APPLIED", 2), ("APPLIED", 3), ("APPLIED", 4)]
    assert [one["data"]["size"] for one in await pulled(phone)] == [2]


async def test_over_what_a_phone_wrote_nothing_is_logged_and_nobody_is_asked(edge: Edge, store: Store) -> None:
    phone = await edge.phone()
    page = change(domain="ticket", data={"title": "the phone's", "status": "open"})
    await pushed(phone, page)
    given = pb.StoredRecord(domain="ticket", id=page["id"], data='{"title": "the server\'s", "status": "closed"}')
    (receipt,) = await store(phone.user_id, given)
    assert (receipt.status, receipt.version, receipt.HasField("conflict")) == ("APPLIED", 2, False)
    assert (await phone.call("GET", "/api/v1/sync/conflicts")).json()["conflicts"] == []
    # The phone that has not seen it yet meets it as it meets any other change.
    (met,) = await pushed(phone, {**page, "base_version": 1, "data": {"title": "mine", "status": "open"}})
    assert (met["status"], met["conflict"]["server_version"]) == ("APPLIED", 2)


async def test_a_store_is_no_push_and_no_tier_bounds_it(edge: Edge, store: Store, phone: Phone) -> None:
    puzzles = [
        pb.StoredRecord(domain="puzzle", id=str(uuid4()), data=json.dumps(puzzle_session(id=str(uuid4()))))
        for _ in range(3)
    ]
    assert outcomes(await store(phone.user_id, *puzzles)) == [("APPLIED", 1)] * 3
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        counted = connection.execute("SELECT 1 FROM sessions.push_counts WHERE user_id = %s", [phone.user_id])
        assert counted.fetchone() is None


async def test_an_open_stream_is_told_at_once(store: Store, channel: grpc.aio.Channel, phone: Phone) -> None:
    async with talking(channel, phone.metadata, device_id="phone-1") as talk:
        await store(phone.user_id, record("a"))
        assert [(one.domain, one.id) for one in await talk.changes()] == [("file", "a")]
        await store(phone.user_id, ended("a"))
        assert [(one.id, one.deleted) for one in await talk.changes()] == [("a", True)]


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (record(data=file(checksum="AB" * 32)), "FIELD_INVALID", "data.checksum"),
        (record(data=file(size=-1)), "FIELD_INVALID", "data.size"),
        (record(data=file(create_time="yesterday")), "FIELD_INVALID", "data.create_time"),
        (record(data={"filename": "x"}), "FIELD_MISSING", "data."),
        (record(data=file(filename="a\0b")), "FIELD_INVALID", "data.filename"),
        (record(data=file(more="x" * 300_000)), "FIELD_INVALID", "data.more"),
        (pb.StoredRecord(domain="file", id="f"), "FIELD_MISSING", "data"),
        (pb.StoredRecord(domain="file", id="f", data="{"), "FIELD_INVALID", "data"),
        (pb.StoredRecord(domain="file", id="f", data="[]"), "FIELD_INVALID", "data"),
        (pb.StoredRecord(domain="file", id="f", data="1" * 5000), "FIELD_INVALID", "data"),
        (record(domain=""), "FIELD_MISSING", "domain"),
        (record(domain="nope"), "FIELD_INVALID", "domain"),
        (record(id=""), "FIELD_MISSING", "id"),
        (record(id="a b"), "FIELD_INVALID", "id"),
        (ended(id="x" * 65), "FIELD_INVALID", "id"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
async def test_a_bad_record_is_refused_alone(
    store: Store, phone: Phone, bad: pb.StoredRecord, reason: str, field: str
) -> None:
    before, refused, after = await store(phone.user_id, record("a"), bad, record("b"))
    assert (before.status, refused.status, after.status) == ("APPLIED", "REJECTED", "APPLIED")
    assert (refused.reason, refused.version) == (reason, 0)
    assert refused.field.startswith(f"records[1].{field}")
    assert refused.message.startswith(f"{refused.field}: ")
    assert [one["id"] for one in await pulled(phone)] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        ({"user_id": ""}, "FIELD_MISSING", "user_id"),
        ({"user_id": "x"}, "FIELD_INVALID", "user_id"),
        ({"tenant_id": 0}, "FIELD_MISSING", "tenant_id"),
        ({"tenant_id": -1}, "FIELD_INVALID", "tenant_id"),
        ({"records": []}, "FIELD_MISSING", "records"),
        ({"records": [ended()] * 1001}, "FIELD_INVALID", "records"),
    ],
)
async def test_who_and_what_has_to_be_said(
    edge: Edge, channel: grpc.aio.Channel, given: dict[str, Any], reason: str, field: str
) -> None:
    request = pb.StoreRecordsRequest(**{"user_id": str(uuid4()), "tenant_id": 1, "records": [record()], **given})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pb_grpc.SyncServiceStub(channel).StoreRecords(request, metadata=service_metadata(edge), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == reason
    bad = error_details_pb2.BadRequest()
    assert any(one.Unpack(bad) for one in rpc_status.from_call(refused.value).details)
    assert [one.field for one in bad.field_violations] == [field]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    reason: str = info.reason
    return reason


async def test_a_user_stores_nothing_so_and_not_an_administrator_either(
    edge: Edge, channel: grpc.aio.Channel, phone: Phone
) -> None:
    request = pb.StoreRecordsRequest(user_id=phone.user_id, tenant_id=1, records=[record()])
    for caller in (phone, await edge.administrator()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pb_grpc.SyncServiceStub(channel).StoreRecords(request, metadata=caller.metadata, timeout=20)
        assert reason_of(refused.value) == "FORBIDDEN"
    assert await pulled(phone) == []


async def test_many_who_store_the_same_at_once_store_it_once(store: Store, phone: Phone) -> None:
    answers = await asyncio.gather(*(store(phone.user_id, record("a"), record("b")) for _ in range(10)))
    statuses = sorted(one.status for receipts in answers for one in receipts)
    assert statuses == ["APPLIED"] * 2 + ["DUPLICATE"] * 18
    assert [(one["id"], one["version"]) for one in await pulled(phone)] == [("a", 1), ("b", 1)]


class TestErasedUsers:
    async def erase(self, edge: Edge, channel: grpc.aio.Channel, user_id: str) -> None:
        await pb_grpc.SyncServiceStub(channel).EraseUser(
            pb.EraseUserRequest(user_id=user_id), metadata=service_metadata(edge), timeout=30
        )

    async def test_what_comes_too_late_is_refused_for_ever_and_deletions_do_not_mind(
        self, edge: Edge, channel: grpc.aio.Channel, store: Store, phone: Phone
    ) -> None:
        await store(phone.user_id, record("a"))
        await self.erase(edge, channel, phone.user_id)
        before = await pulled(phone)
        receipts = await store(phone.user_id, record("a"), record("b"), ended("a"), ended("c"), record(id="a b"))
        assert [(one.status, one.reason) for one in receipts] == [
            ("REJECTED", "NOT_FOUND"),
            ("REJECTED", "NOT_FOUND"),
            ("DUPLICATE", ""),
            ("DUPLICATE", ""),
            ("REJECTED", "FIELD_INVALID"),
        ]
        assert await pulled(phone) == before
        assert [(one["id"], one["deleted"]) for one in before] == [("a", True)]

    async def test_also_for_one_who_never_had_anything(
        self, edge: Edge, channel: grpc.aio.Channel, store: Store, phone: Phone
    ) -> None:
        await self.erase(edge, channel, phone.user_id)
        assert [one.reason for one in await store(phone.user_id, record())] == ["NOT_FOUND"]

    async def test_however_close_they_come_nothing_is_left(
        self, edge: Edge, channel: grpc.aio.Channel, store: Store
    ) -> None:
        for _ in range(5):
            user_id = str(uuid4())
            await store(user_id, record("first"))
            stores = [store(user_id, *(record(f"{number}-{one}") for one in range(20))) for number in range(6)]
            await asyncio.gather(*stores[:3], self.erase(edge, channel, user_id), *stores[3:])
            with psycopg.connect(edge.mesh.config.database_url) as connection:
                living = connection.execute(
                    "SELECT id FROM sessions.records WHERE user_id = %s AND NOT deleted", [UUID(user_id)]
                )
                assert living.fetchall() == []


class TestWrittenByTheServer:
    """A domain that phones read and never write."""

    @pytest.mark.parametrize("operation", ["UPSERT", "DELETE"])
    async def test_a_phone_that_pushes_to_it_is_refused_and_the_rest_of_its_batch_is_not(
        self, store: Store, phone: Phone, operation: str
    ) -> None:
        await store(phone.user_id, record("f"))
        for id in ("f", "other"):
            pages = [change(), change(domain="file", id=id, operation=operation, data=file(size=1)), change()]
            first, refused, second = await pushed(phone, *pages)
            assert (first["status"], second["status"]) == ("APPLIED", "APPLIED")
            assert (refused["status"], refused["reason"]) == ("REJECTED", "FIELD_INVALID")
            assert refused["field"] == "changes[1].domain"
            assert refused["message"] == f"changes[1].domain: {WRITTEN_BY_THE_SERVER}"
        files = [(one["id"], one["version"], one["data"]) for one in await pulled(phone, domains="file")]
        assert files == [("f", 1, file())]

    async def test_over_grpc_and_on_the_stream_too(self, store: Store, channel: grpc.aio.Channel, phone: Phone) -> None:
        changes = [streamed(), streamed("file", "f", data=file())]
        answer = await pb_grpc.SyncServiceStub(channel).PushChanges(
            pb.PushChangesRequest(changes=changes), metadata=phone.metadata, timeout=20
        )
        assert [one.status for one in answer.receipts] == ["APPLIED", "REJECTED"]
        async with talking(channel, phone.metadata, device_id="phone-1") as talk:
            receipts = (await talk.push(streamed(), streamed("file", "f", data=file()))).receipts
            assert [(one.status, one.field) for one in receipts] == [("APPLIED", ""), ("REJECTED", "changes[1].domain")]
            assert talk.welcome.domains["file"] == 1

    async def test_all_phones_end_with_the_same_whoever_is_refused(self, edge: Edge, store: Store) -> None:
        phone = await edge.phone()
        for number in range(3):
            await store(phone.user_id, record(f"{number}"))
            await pushed(phone, change(), change(domain="file", id=f"{number}", operation="DELETE"))
        whole = await pulled(phone)
        assert [(one["domain"], one["deleted"]) for one in whole] == [("file", False), ("journal", False)] * 3
        pages, cursor = list[dict[str, Any]](), ""
        for _ in range(6):
            page = (await phone.call("GET", PULL, params={"cursor": cursor, "limit": 1})).json()
            pages, cursor = [*pages, *page["changes"]], page["next_cursor"]
        assert pages == whole

    async def test_a_group_with_such_a_change_does_not_apply(self, phone: Phone) -> None:
        pages = [change(atomic_group="g"), change(domain="file", data=file(), atomic_group="g")]
        assert [one["reason"] for one in await pushed(phone, *pages)] == ["ATOMIC_GROUP", "FIELD_INVALID"]

    async def test_its_policy_is_that_the_server_wins_and_nobody_sets_another(self, edge: Edge) -> None:
        administrator = await edge.administrator()
        path = "/api/v1/sync/policies/1/file"
        policy = (await administrator.call("GET", path)).json()
        assert (policy["resolution_policy"], policy["auto_resolve"]) == ("server_wins", True)
        for given in ({}, {"validate_only": True}):
            answer = await administrator.call("PUT", path, json={"resolution_policy": "client_wins", **given})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "SYNC_001")
            assert [one["field"] for one in answer.json()["error"]["details"]] == ["domain"]
        assert (await administrator.call("GET", path)).json() == policy

    async def test_discovery_tells_who_writes(self, edge: Edge) -> None:
        shown = {one["domain"]: one for one in (await edge.http.get("/meta/schemas")).json()["schemas"]}
        assert [domain for domain, one in shown.items() if one["writer"] == "server"] == ["file"]
        assert {one["writer"] for one in shown.values()} == {"client", "server"}
        assert shown["file"]["policy"] == "server_wins"

    async def test_a_conflict_from_before_can_only_end_with_the_servers_side(
        self, own_edge: Callable[..., Awaitable[Edge]], tmp_path: Path
    ) -> None:
        plain: dict[str, Any] = {"x-version": 1, "type": "object"}
        domains = tmp_path / "domains"
        domains.mkdir()
        (domains / "badge.json").write_text(json.dumps({**plain, "x-writer": "server"}), encoding="utf-8")
        edge = await own_edge(domains=domains)
        phone, conflict_id = await edge.phone(), str(uuid4())
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            connection.execute(
                "INSERT INTO sessions.conflicts VALUES (%s, 1, %s, 'badge', 'b', 1, 0, 'manual', 'none', '{}', '{}',"
                " now(), now(), now())",
                [conflict_id, phone.user_id],
            )
        path = f"/api/v1/sync/conflicts/{conflict_id}/resolve"
        for wish in ({"resolution": "accept_client"}, {"resolution": "merge", "client_data": {"a": 1}}):
            answer = await phone.call("POST", path, json=wish)
            assert answer.status_code == 400, answer.text
            assert [one["field"] for one in answer.json()["error"]["details"]] == ["domain"]
        answer = await phone.call("POST", path, json={"resolution": "accept_server"})
        assert (answer.status_code, answer.json()["winning_version"]) == (200, "server")

    def test_typed_calls_know_no_domain_of_the_servers(self) -> None:
        # Each of them has a domain of its own, which its users write; a schema file that changes that breaks the call.
        machines = {"bike", "rower", "treadmill", "session"}
        of_calls = {"exercise", "puzzle", "stats", "health_metric", "workout_plan", *machines}
        assert {file.writer for file in Schemas() if file.domain in of_calls} == {"client"}
        assert json.loads(Discovery(Schemas()).one("file").content)["schema"]["x-writer"] == "server"
