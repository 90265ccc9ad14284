"""What grows too old goes, what is young stays, and nobody is kept waiting or left with half of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from deploy.parts import running
from deploy.postgres import postgres_part
from runtime.database import Database, database
from runtime.migrations import migrate
from runtime.sweeping import sweeping
from runtime.telemetry import SWEPT
from services.sessions.sweeps_domain import Sweeps
from services.sessions.sweeps_store import SweepStore
from tests.conftest import Edge, config_for, service_part
from tests.factories import Phone
from tests.streams import change, talking

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
PATIENCE = 10.0


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=4, name="test") as opened:
        yield opened


def sweeps(db: Database, *, batch: int = 500) -> Sweeps:
    return Sweeps(SweepStore(db), now=lambda: NOW, batch=batch)


def days(number: float) -> datetime:
    """So many days ago."""
    return NOW - timedelta(days=number)


async def store(db: Database, *records: tuple[bool, datetime], user_id: UUID | None = None) -> UUID:
    """A user with records, each deleted or not and changed last at a time, in the order of the feed."""
    user_id = user_id or uuid4()
    async with db.transaction() as transaction:
        await transaction.connection.execute(
            "INSERT INTO sessions.feeds (user_id, position) VALUES (%s, %s)", [user_id, len(records)]
        )
        async with transaction.connection.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO sessions.records (user_id, domain, id, version, position, deleted, data, create_time,"
                " update_time) VALUES (%s, 'journal', %s, 1, %s, %s, '{}', %s, %s)",
                [
                    (user_id, str(uuid4()), position, deleted, time, time)
                    for position, (deleted, time) in enumerate(records, 1)
                ],
            )
    return user_id


async def feed(db: Database, user_id: UUID) -> tuple[int, list[int]]:
    """The horizon, and the positions that are left."""
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT horizon FROM sessions.feeds WHERE user_id = %s", [user_id])
        row = await cursor.fetchone()
        cursor = await statements.connection.execute(
            "SELECT position FROM sessions.records WHERE user_id = %s ORDER BY position", [user_id]
        )
        assert row is not None
        return row["horizon"], [one["position"] for one in await cursor.fetchall()]


async def count(db: Database, table: str) -> int:
    async with db.statements() as statements:
        cursor = await statements.connection.execute(f"SELECT count(*) AS rows FROM sessions.{table}")
        row = await cursor.fetchone()
        assert row is not None
        return int(row["rows"])


@asynccontextmanager
async def other(url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection of somebody else's, in a transaction that ends with the block."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection


OLD, YOUNG = days(90.1), days(89.9)


class TestAge:
    async def test_old_tombstones_go_and_young_ones_and_old_records_stay(self, db: Database) -> None:
        user_id = await store(db, (False, OLD), (True, OLD), (True, OLD), (False, OLD), (True, YOUNG))
        assert +(await sweeps(db).round()) == {"tombstones": 2}
        assert await feed(db, user_id) == (3, [1, 4, 5])

    async def test_a_horizon_never_falls(self, db: Database) -> None:
        user_id = await store(db, (True, OLD), (False, OLD))
        async with db.statements() as statements:
            await statements.connection.execute("UPDATE sessions.feeds SET horizon = 2")
        await sweeps(db).round()
        assert await feed(db, user_id) == (2, [2])

    async def test_a_user_without_old_tombstones_keeps_the_horizon(self, db: Database) -> None:
        swept, kept = await store(db, (True, OLD)), await store(db, (True, YOUNG))
        await sweeps(db).round()
        assert await feed(db, swept) == (1, [])
        assert await feed(db, kept) == (0, [1])

    async def test_old_conflicts_counts_and_keys_go_and_young_ones_stay(self, db: Database) -> None:
        async with db.transaction() as transaction:
            for age in (OLD, YOUNG):
                for tenant_id in (1, 2, 7):
                    await transaction.connection.execute(
                        "INSERT INTO sessions.conflicts VALUES (%s, %s, %s, 'task', 'a', 1, 1, 'manual', 'none',"
                        " '{}', '{}', %s, %s, %s)",
                        [uuid4(), tenant_id, uuid4(), age, age, age],
                    )
                    await transaction.connection.execute(
                        "INSERT INTO sessions.push_counts VALUES (%s, 'task', %s, %s, 5)", [uuid4(), age, tenant_id]
                    )
            for hours in (23.9, 24.1):
                await transaction.connection.execute(
                    "INSERT INTO sessions.idempotency_keys VALUES (%s, 'sync.push', 'k', '', '{}', %s)",
                    [uuid4(), days(hours / 24)],
                )
        assert +(await sweeps(db, batch=2).round()) == {"conflicts": 3, "push_counts": 3, "idempotency_keys": 1}
        async with db.statements() as statements:
            for table, column in (("conflicts", "create_time"), ("push_counts", "hour")):
                cursor = await statements.connection.execute(f"SELECT {column} AS time FROM sessions.{table}")
                assert [row["time"] for row in await cursor.fetchall()] == [YOUNG] * 3
        assert await count(db, "idempotency_keys") == 1

    async def test_more_than_a_batch_goes_in_one_round_and_is_counted(self, db: Database) -> None:
        before = SWEPT.labels("tombstones")._value.get()
        users = [await store(db, *[(True, OLD)] * 30) for _ in range(5)]
        assert (await sweeps(db, batch=7).round())["tombstones"] == 150
        assert SWEPT.labels("tombstones")._value.get() - before == 150
        for user_id in users:
            assert await feed(db, user_id) == (30, [])


class TestTogether:
    async def test_a_writer_is_neither_waited_for_nor_kept_waiting(self, db: Database, database_url: str) -> None:
        """The writer's user has more old tombstones than a batch holds, and older ones than anybody else."""
        written = await store(db, *[(True, days(200))] * 20)
        free = await store(db, *[(True, OLD)] * 5)
        async with other(database_url) as writer:
            await writer.execute("SELECT 1 FROM sessions.feeds WHERE user_id = %s FOR UPDATE", [written])
            async with asyncio.timeout(PATIENCE):
                assert (await sweeps(db, batch=4).round())["tombstones"] == 5
            assert await feed(db, free) == (5, [])
            assert await feed(db, written) == (0, list(range(1, 21)))
            await writer.execute("SET lock_timeout = '1s'")
            await writer.execute("UPDATE sessions.feeds SET position = 21 WHERE user_id = %s", [written])
            await writer.execute(
                "UPDATE sessions.records SET deleted = false, position = 21 WHERE user_id = %s AND position = 1",
                [written],
            )
        assert (await sweeps(db, batch=4).round())["tombstones"] == 19
        assert await feed(db, written) == (20, [21])

    async def test_a_record_that_comes_back_to_life_while_it_is_swept_stays(
        self, db: Database, database_url: str
    ) -> None:
        user_id = await store(db, (True, OLD))
        async with other(database_url) as writer:
            # A writer of old, who does not take the lock: the sweep has found the tombstone and waits for its row.
            await writer.execute("UPDATE sessions.records SET deleted = false, position = 2, update_time = %s", [NOW])
            sweep = asyncio.create_task(sweeps(db).round())
            await until_one_waits(db)
            await writer.commit()
            assert not (await sweep)["tombstones"]
        assert await feed(db, user_id) == (0, [2])

    async def test_two_sweepers_at_once_sweep_each_row_once(self, db: Database) -> None:
        users = [await store(db, *[(True, OLD)] * 20) for _ in range(20)]
        rounds = await asyncio.gather(*(sweeps(db, batch=9).round() for _ in range(3)))
        rounds.append(await sweeps(db).round())  # what one left to the other because it was busy there
        assert sum(one["tombstones"] for one in rounds) == 400
        for user_id in users:
            assert await feed(db, user_id) == (20, [])

    async def test_a_sweep_that_is_killed_in_the_middle_leaves_nothing_half_done(
        self, db: Database, database_url: str
    ) -> None:
        user_id = await store(db, *[(True, OLD)] * 5)
        async with other(database_url) as writer:
            await writer.execute("SELECT 1 FROM sessions.records WHERE position = 5 FOR UPDATE")
            sweep = asyncio.create_task(sweeps(db).round())
            pid = await until_one_waits(db)
            await writer.execute("SELECT pg_terminate_backend(%s)", [pid])
            assert (await sweep)["tombstones"] == 0
            assert await feed(db, user_id) == (0, [1, 2, 3, 4, 5])
        assert (await sweeps(db).round())["tombstones"] == 5
        assert await feed(db, user_id) == (5, [])


async def until_one_waits(db: Database) -> int:
    """Waits until somebody waits for a lock in this database, and tells who."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with db.statements() as statements:
                cursor = await statements.connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                if row := await cursor.fetchone():
                    return int(row["pid"])
            await asyncio.sleep(0.01)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not in pytest's own, which PostgreSQL's account may not enter."""
    with TemporaryDirectory(prefix="satchel-") as made:
        yield Path(made)


async def test_a_sweeper_lives_through_the_loss_of_the_database(directory: Path) -> None:
    part = postgres_part(directory / "postgres", log=directory / "postgres.log")
    async with running(part) as server:
        migrate(part.url, "sessions")
        async with database(part.url, connections=2, name="test") as db:
            await store(db, (True, OLD))
            server.kill()
            await server.wait()
            async with sweeping(sweeps(db).round, 0.05):
                await server.start()
                await server.until_ready()
                async with asyncio.timeout(30):
                    while True:
                        try:
                            if not await count(db, "records"):
                                break
                        except psycopg.OperationalError:
                            pass
                        await asyncio.sleep(0.05)


class TestCursors:
    """What a phone is told whose cursor is from before, or from behind, what was swept."""

    async def push(self, phone: Phone, *ids: str, operation: str = "UPSERT") -> None:
        changes = [
            {
                "domain": "journal",
                "id": id,
                "operation": operation,
                "data": {"title": id, "text": "x"},
                "base_version": v,
            }
            for id, v in ((id, 0 if operation == "UPSERT" else 1) for id in ids)
        ]
        answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
        assert [one["status"] for one in answer.json()["receipts"]] == ["APPLIED"] * len(ids), answer.text

    async def pull(self, phone: Phone, cursor: str, limit: int = 100) -> tuple[list[str], str, bool]:
        answer = await phone.call("GET", "/api/v1/sync/pull", params={"cursor": cursor, "limit": limit})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return [one["id"] for one in body["changes"]], body["next_cursor"], body["has_more"]

    async def sweep(self, edge: Edge, phone: Phone) -> None:
        url = edge.mesh.config.database_url
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute(
                "UPDATE sessions.records SET update_time = %s WHERE user_id = %s AND deleted", [OLD, phone.user_id]
            )
        async with database(url, connections=1, name="test") as db:
            assert (await sweeps(db).round())["tombstones"]

    async def test_one_from_before_has_to_start_again_and_one_from_behind_goes_on(
        self, edge: Edge, phone: Phone
    ) -> None:
        await self.push(phone, "a", "b", "c")
        _, before, _ = await self.pull(phone, "")
        await self.push(phone, "b", operation="DELETE")
        _, behind, _ = await self.pull(phone, before)
        await self.push(phone, "d")
        await self.sweep(edge, phone)
        answer = await phone.call("GET", "/api/v1/sync/pull", params={"cursor": before})
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "RESYNC_REQUIRED")
        assert (await self.pull(phone, behind))[0] == ["d"]
        assert (await self.pull(phone, ""))[0] == ["a", "c", "d"]

    async def test_one_that_starts_again_comes_past_the_horizon_page_by_page(self, edge: Edge, phone: Phone) -> None:
        """Else it would be sent back to the start by its own second page, for ever."""
        ids = [f"r{number}" for number in range(10)]
        await self.push(phone, *ids, "gone")
        await self.push(phone, "gone", operation="DELETE")
        await self.sweep(edge, phone)
        got, cursor, more = await self.pull(phone, "", limit=3)
        while more:
            page, cursor, more = await self.pull(phone, cursor, limit=3)
            got += page
        assert got == ids
        await self.push(phone, "new")
        assert (await self.pull(phone, cursor))[0] == ["new"]

    async def test_what_is_swept_while_one_starts_again_sends_it_back_once_more(self, edge: Edge, phone: Phone) -> None:
        ids = [f"r{number}" for number in range(10)]
        await self.push(phone, *ids)
        _, cursor, _ = await self.pull(phone, "", limit=3)
        await self.push(phone, ids[0], operation="DELETE")
        await self.sweep(edge, phone)
        answer = await phone.call("GET", "/api/v1/sync/pull", params={"cursor": cursor})
        assert answer.status_code == 410
        assert (await self.pull(phone, ""))[0] == ids[1:]

    async def test_a_stream_comes_past_the_horizon_too(self, edge: Edge, phone: Phone) -> None:
        async with grpc.aio.insecure_channel(edge.target) as channel:
            stub = pb_grpc.SyncServiceStub(channel)
            for first in (0, 400, 800):
                changes = [change(id=f"r{number}") for number in range(first, first + 400)]
                await stub.PushChanges(pb.PushChangesRequest(changes=changes), metadata=phone.metadata, timeout=30)
            await self.push(phone, "gone")
            await self.push(phone, "gone", operation="DELETE")
            await self.sweep(edge, phone)
            async with talking(channel, phone.metadata, device_id="a", cursor="") as talk:
                got: list[str] = []
                while len(got) < 1200:
                    got += [one.id for one in await talk.changes()]
                assert got == [f"r{number}" for number in range(1200)]


async def test_a_service_sweeps_while_it_runs(database_url: str, redis_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    async with database(database_url, connections=2, name="test") as db:
        await store(db, (True, datetime.now(UTC) - timedelta(days=91)), (True, datetime.now(UTC)))
        part = service_part("sessions", config, tmp_path)
        part.env["SATCHEL_SWEEP_INTERVAL"] = "0.1"  # type: ignore[index]  # a dict, as the factory made it
        async with running(part), asyncio.timeout(30):
            while await count(db, "records") == 2:
                await asyncio.sleep(0.02)
        assert await count(db, "records") == 1
