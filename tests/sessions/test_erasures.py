"""Erasure: nothing of the content is left in any row, other devices learn of it, and it may be cut off anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from runtime.clock import utc_now
from runtime.database import Database, database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from services.sessions.erasures_domain import Erased, Erasures
from services.sessions.erasures_store import ErasureStore
from tests.conftest import Edge
from tests.factories import Phone, device_session, exercise_session, puzzle_session
from tests.streams import talking


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


async def erase(edge: Edge, channel: grpc.aio.Channel, user_id: str) -> pb.EraseUserResponse:
    token = ServiceTokens(mesh_secret(edge.mesh.config.keys), "test").current()
    return await pb_grpc.SyncServiceStub(channel).EraseUser(
        pb.EraseUserRequest(user_id=user_id), metadata=(("authorization", f"Bearer {token}"),), timeout=30
    )


async def push(phone: Phone, *changes: dict[str, Any], key: str = "") -> None:
    answer = await phone.call(
        "POST", "/api/v1/sync/push", json={"changes": changes}, headers={"idempotency-key": key} if key else {}
    )
    assert answer.status_code == 200, answer.text


def upsert(id: str, data: dict[str, Any], domain: str = "journal", base: int = 0) -> dict[str, Any]:
    return {"domain": domain, "id": id, "base_version": base, "operation": "UPSERT", "data": data}


def found(url: str, marker: str, schema: str = "sessions") -> list[str]:
    """The tables of the schema that hold the marker in any column of any row, each as often as there are such rows."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s", [schema]
        )
        return [
            table
            for (table,) in tables.fetchall()
            for _ in connection.execute(
                f"SELECT 1 FROM {schema}.{table} AS one WHERE one::text LIKE %s",  # names of our own
                [f"%{marker}%"],
            )
        ]


async def test_nothing_of_the_content_is_left_in_any_row(edge: Edge, channel: grpc.aio.Channel, phone: Phone) -> None:
    marker, url = f"secret{uuid4().hex}", edge.mesh.config.database_url
    task = {"title": marker, "status": "open"}
    await push(phone, upsert("a", {"title": marker, "text": marker}), key="first")
    await push(phone, upsert("t", task, "task"))
    await push(phone, upsert("t", {**task, "status": "done"}, "task", base=7), key="second")
    await phone.call("PATCH", "/users/me/stats", json={"total_xp": 1, "extra": {"of": marker}})
    await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle_session(declutter_text=marker)]})
    await phone.call("POST", "/sessions", json=exercise_session(exerciseId=marker), headers={"idempotency-key": marker})
    sessions = [device_session(training_id=marker)]
    await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions}, headers={"idempotency-key": "k"})
    assert set(found(url, marker)) >= {"records", "conflicts", "idempotency_keys"}
    erased = await erase(edge, channel, phone.user_id)
    assert (erased.records, erased.conflicts, erased.idempotency_keys) == (6, 1, 4)
    assert erased.push_counts
    assert found(url, marker) == []
    assert sorted(found(url, phone.user_id)) == ["feeds", *["records"] * 6]


async def test_other_devices_learn_of_it_by_pulling(edge: Edge, channel: grpc.aio.Channel, phone: Phone) -> None:
    await push(phone, *(upsert(f"r{number}", {"title": "x", "text": ""}) for number in range(5)))
    await push(phone, {"domain": "journal", "id": "r3", "base_version": 1, "operation": "DELETE"})
    cursor = (await phone.call("GET", "/api/v1/sync/pull")).json()["next_cursor"]
    await erase(edge, channel, phone.user_id)
    page = (await phone.call("GET", "/api/v1/sync/pull", params={"cursor": cursor})).json()
    changes = [(one["id"], one["version"], one["deleted"], one["data"]) for one in page["changes"]]
    assert changes == [(id, 2, True, {}) for id in ("r0", "r1", "r2", "r4")]
    assert (await phone.call("GET", "/users/me/stats")).json()["total_sessions"] == 0


async def test_an_open_stream_is_told_at_once(edge: Edge, channel: grpc.aio.Channel, phone: Phone) -> None:
    await push(phone, *(upsert(f"r{number}", {"title": "x", "text": ""}) for number in range(2)))
    async with talking(channel, phone.metadata, device_id="phone-1") as talk:
        await erase(edge, channel, phone.user_id)
        assert [(one.id, one.deleted) for one in await talk.changes()] == [("r0", True), ("r1", True)]


async def test_a_second_call_finds_nothing_and_nobody_else_loses_anything(
    edge: Edge, channel: grpc.aio.Channel, phone: Phone
) -> None:
    other = await edge.phone()
    for one in (phone, other):
        await push(one, upsert("a", {"title": "x", "text": ""}), key="k")
    before = (await other.call("GET", "/api/v1/sync/export")).content.splitlines()[1:]
    assert (await erase(edge, channel, phone.user_id)).records == 1
    assert await erase(edge, channel, phone.user_id) == pb.EraseUserResponse(total_records={"journal": 1})
    assert (await other.call("GET", "/api/v1/sync/export")).content.splitlines()[1:] == before
    assert json.loads(before[-1])["records"] == 1


async def test_a_user_who_has_nothing_is_erased_at_once(edge: Edge, channel: grpc.aio.Channel) -> None:
    assert await erase(edge, channel, str(uuid4())) == pb.EraseUserResponse()


@pytest.mark.parametrize(("user_id", "why"), [("", "FIELD_MISSING"), ("x", "FIELD_INVALID")])
async def test_who_is_meant_has_to_be_said(edge: Edge, channel: grpc.aio.Channel, user_id: str, why: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await erase(edge, channel, user_id)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in str(refused.value.trailing_metadata())


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=4, name="test") as opened:
        yield opened


async def records(db: Database, user_id: UUID) -> tuple[int, list[tuple[int, bool]]]:
    """The last position of the feed, and position and deletion of each record in order."""
    async with db.statements() as statements:
        cursor = await statements.connection.execute(
            "SELECT feeds.position AS last, records.position, deleted FROM sessions.feeds"
            " JOIN sessions.records USING (user_id) WHERE user_id = %s ORDER BY records.position",
            [user_id],
        )
        rows = await cursor.fetchall()
    return rows[0]["last"], [(row["position"], row["deleted"]) for row in rows]


class Failing(ErasureStore):
    """Loses the database after so many batches."""

    def __init__(self, database: Database, batches: int) -> None:
        super().__init__(database)
        self._left = batches

    async def records(self, *args: Any) -> int:
        if not self._left:
            raise psycopg.OperationalError("gone")
        self._left -= 1
        return await super().records(*args)


async def stored(db: Database, number: int) -> UUID:
    user_id = uuid4()
    async with db.transaction() as transaction:
        await transaction.connection.execute("INSERT INTO sessions.feeds VALUES (%s, %s)", [user_id, number])
        await transaction.connection.execute(
            "INSERT INTO sessions.records (user_id, domain, id, version, position, deleted, data, create_time,"
            " update_time) SELECT %s, 'journal', 'r' || place, 1, place, false, '{}', now(), now()"
            " FROM generate_series(1, %s) AS place",
            [user_id, number],
        )
    return user_id


async def test_one_that_was_cut_off_goes_on_where_it_was(db: Database) -> None:
    user_id = await stored(db, 50)
    with pytest.raises(psycopg.OperationalError):
        await Erasures(Failing(db, batches=3), now=utc_now, batch=7).erase(str(user_id))
    position, rows = await records(db, user_id)
    assert (position, sum(deleted for _, deleted in rows)) == (71, 21)
    erased = await Erasures(ErasureStore(db), now=utc_now, batch=7).erase(str(user_id))
    assert (erased.records, erased.total_records) == (29, {"journal": 50})
    assert await records(db, user_id) == (100, [(place, True) for place in range(51, 101)])
    assert await Erasures(ErasureStore(db), now=utc_now).erase(str(user_id)) == Erased(
        records=0, conflicts=0, push_counts=0, idempotency_keys=0, total_records={"journal": 50}
    )


async def test_two_at_once_erase_each_record_once(db: Database) -> None:
    user_id = await stored(db, 100)
    both = [Erasures(ErasureStore(db), now=utc_now, batch=7).erase(str(user_id)) for _ in range(2)]
    assert sum(one.records for one in await asyncio.gather(*both)) == 100
    assert await records(db, user_id) == (200, [(place, True) for place in range(101, 201)])
