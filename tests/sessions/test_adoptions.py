"""Adoption: all that a guest has becomes an account's, once, and it may be cut off anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from runtime.clock import utc_now
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from services.sessions.adoptions_domain import Adoptions
from services.sessions.adoptions_store import AdoptionStore, Batch
from services.sessions.erasures_domain import Erasures
from services.sessions.erasures_store import ErasureStore
from services.sessions.policies_domain import Strategy, default_policy
from tests.conftest import Edge
from tests.factories import Phone, change, exercise_session

CLIENT_WINS = default_policy(Strategy.CLIENT_WINS)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=8, name="test") as opened:
        yield opened


async def stored(db: Database, number: int, *, conflicts: int = 0) -> UUID:
    user_id = uuid4()
    async with db.transaction() as transaction:
        await transaction.connection.execute("INSERT INTO sessions.feeds VALUES (%s, %s)", [user_id, number])
        await transaction.connection.execute(
            "INSERT INTO sessions.records (user_id, domain, id, version, position, deleted, data, create_time,"
            " update_time) SELECT %s, 'journal', 'r' || place, 3, place, false, jsonb_build_object('text', %s::text),"
            " now(), now() FROM generate_series(1, %s) AS place",
            [user_id, str(user_id), number],
        )
        await transaction.connection.execute(
            "INSERT INTO sessions.conflicts SELECT gen_random_uuid(), 1, %s, 'journal', 'r1', 1, 1, 'manual', 'none',"
            " '{}', '{}', now(), now(), now() FROM generate_series(1, %s)",
            [user_id, conflicts],
        )
        await transaction.connection.execute(
            "INSERT INTO sessions.push_counts VALUES (%s, 'journal', '2026-02-26T10:00:00Z', 1, %s)",
            [user_id, number],
        )
    return user_id


async def found(db: Database, user_id: UUID) -> list[tuple[str, int, int, str]]:
    """Id, version, position and text of each of the user's live records, in the order of the feed."""
    async with db.statements() as statements:
        cursor = await statements.connection.execute(
            "SELECT id, version, position, data ->> 'text' AS text FROM sessions.records"
            " WHERE user_id = %s AND NOT deleted ORDER BY position",
            [user_id],
        )
        return [(row["id"], row["version"], row["position"], row["text"]) for row in await cursor.fetchall()]


async def total(db: Database, table: str, user_id: UUID) -> int:
    async with db.statements() as statements:
        value = "coalesce(sum(items), 0)" if table == "push_counts" else "count(*)"
        cursor = await statements.connection.execute(
            f"SELECT {value}::int AS total FROM sessions.{table} WHERE user_id = %s",  # names of our own
            [user_id],
        )
        row = await cursor.fetchone()
    return int(row["total"]) if row else 0


class Failing(AdoptionStore):
    """Loses the database in the middle of a batch, after so many that went well."""

    def __init__(self, database: Database, batches: int) -> None:
        super().__init__(database, lambda _: CLIENT_WINS)
        self._left = batches

    @asynccontextmanager
    async def batch(self, *args: Any) -> AsyncIterator[Batch]:
        async with super().batch(*args) as batch:
            yield batch
            self._left -= 1
            if self._left < 0:
                raise psycopg.OperationalError("gone")


def adoptions(db: Database, store: AdoptionStore | None = None) -> Adoptions:
    return Adoptions(store or AdoptionStore(db, lambda _: CLIENT_WINS), ErasureStore(db), now=utc_now, batch=7)


async def test_one_that_was_cut_off_goes_on_where_it_was(db: Database) -> None:
    guest, user = await stored(db, 50, conflicts=3), await stored(db, 5)
    with pytest.raises(psycopg.OperationalError):
        await adoptions(db, Failing(db, batches=3)).adopt(str(guest), str(user), 1)
    assert (len(await found(db, guest)), len(await found(db, user))) == (29, 21)
    adopted = await adoptions(db).adopt(str(guest), str(user), 1)
    assert (adopted.records, adopted.conflicts) == (29, 0)
    assert await found(db, guest) == []
    moved = await found(db, user)
    assert [id for id, *_ in moved] == [f"r{number}" for number in range(1, 51)]
    # The five that both had are one version further, the others as they were; all of them behind what was there.
    assert [version for _, version, *_ in moved] == [4] * 5 + [3] * 45
    assert [position for _, _, position, _ in moved] == list(range(6, 56))
    assert {text for *_, text in moved} == {str(guest)}
    assert await total(db, "conflicts", user) == 3 + 5
    assert await total(db, "push_counts", user) == 55
    for table in ("conflicts", "push_counts", "idempotency_keys"):
        assert await total(db, table, guest) == 0
    again = await adoptions(db).adopt(str(guest), str(user), 1)
    assert (again.records, await found(db, user)) == (0, moved)


async def test_two_at_once_move_each_record_once(db: Database) -> None:
    guest, user = await stored(db, 100), await stored(db, 0)
    both = await asyncio.gather(*(adoptions(db).adopt(str(guest), str(user), 1) for _ in range(2)))
    assert sum(one.records for one in both) == 100
    assert [position for _, _, position, _ in await found(db, user)] == list(range(1, 101))


async def test_nothing_moves_to_an_account_that_was_erased(db: Database) -> None:
    guest, user = await stored(db, 10), await stored(db, 10)
    await Erasures(ErasureStore(db), now=utc_now).erase(str(user))
    with pytest.raises(Failure) as refused:
        await adoptions(db).adopt(str(guest), str(user), 1)
    assert refused.value.reason is Reason.NOT_FOUND
    assert (len(await found(db, guest)), await found(db, user)) == (10, [])


async def test_a_phone_whose_account_has_ended_is_refused_by_every_door(edge: Edge, phone: Phone) -> None:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute(
            "INSERT INTO sessions.feeds (user_id, position, erase_time) VALUES (%s, 0, now())", [phone.user_id]
        )
    doors = (
        ("POST", "/api/v1/sync/push", {"changes": [change()]}),
        ("POST", "/sessions", exercise_session()),
        ("PATCH", "/users/me/stats", {"total_xp": 1}),
    )
    for verb, path, body in doors:
        answer = await phone.call(verb, path, json=body)
        assert answer.status_code == 401, answer.text
    assert (await phone.call("GET", "/api/v1/sync/pull")).json()["changes"] == []


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({}, "FIELD_MISSING"),
        ({"guest_id": "x"}, "FIELD_INVALID"),
        ({"guest_id": str(UUID(int=1)), "user_id": str(UUID(int=2))}, "FIELD_MISSING"),
        ({"guest_id": str(UUID(int=1)), "user_id": str(UUID(int=1)), "tenant_id": 1}, "FIELD_INVALID"),
    ],
)
async def test_who_is_meant_has_to_be_said(edge: Edge, request_: dict[str, Any], why: str) -> None:
    token = ServiceTokens(mesh_secret(edge.mesh.config.keys), "test").current()
    async with grpc.aio.insecure_channel(edge.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pb_grpc.SyncServiceStub(channel).AdoptRecords(
                pb.AdoptRecordsRequest(**request_), metadata=(("authorization", f"Bearer {token}"),), timeout=10
            )
    status = rpc_status.from_call(refused.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.reason == why
