"""The outbox: what a transaction has put into it shows up in the feed, once and in order, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from psycopg import sql

from deploy.parts import Part, running
from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import RecordToStore, SessionsClient, StoreReceipt, channel
from runtime.server import serving
from runtime.telemetry import OUTBOX_RECORDS
from services.sessions.app import service as sessions
from services.uploads.outbox_domain import CLAIM, UNHEARD, Relay, relaying
from services.uploads.outbox_store import OutboxStore, add
from tests.conftest import config_for, service_part
from tests.polling import until

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def file(**given: Any) -> dict[str, Any]:
    return {
        "filename": "notes.pdf",
        "mime_type": "application/pdf",
        "size": 7,
        "checksum": "ab" * 32,
        "file_url": "/api/v1/files/1/content",
        "create_time": "2026-02-26T10:00:00Z",
        "upload_id": "1",
        **given,
    }


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=8, name="test") as opened:
        yield opened


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Config:
    return config_for(tmp_path / "home", database_url=database_url)


@asynccontextmanager
async def client(config: Config) -> AsyncIterator[SessionsClient]:
    async with channel(config.sessions_address) as opened:
        yield SessionsClient(opened, ServiceTokens(mesh_secret(config.keys), "uploads"))


async def put(db: Database, user_id: UUID, *records: tuple[str, dict[str, Any] | None], now: datetime = NOW) -> None:
    """Adds records of domain file, in one transaction."""
    async with db.transaction() as transaction:
        for id, data in records:
            await add(
                transaction.connection,
                user_id=user_id,
                tenant_id=1,
                domain="file",
                record_id=id,
                data=data,
                now=now,
            )


async def rows(db: Database, statement: str, *values: object) -> list[dict[str, Any]]:
    async with db.statements() as statements:
        return await (await statements.connection.execute(statement, values)).fetchall()  # type: ignore[arg-type]


async def waiting(db: Database) -> int:
    """How many rows the outbox has."""
    return len(await rows(db, "SELECT 1 FROM uploads.outbox"))


async def feed(db: Database, user_id: UUID) -> list[tuple[str, int, bool]]:
    """Id, version and deletion of the user's records, in the order of the feed."""
    statement = "SELECT id, version, deleted FROM sessions.records WHERE user_id = %s ORDER BY position"
    return [(row["id"], row["version"], row["deleted"]) for row in await rows(db, statement, user_id)]


async def last_position(db: Database, user_id: UUID) -> int:
    found = await rows(db, "SELECT position FROM sessions.feeds WHERE user_id = %s", user_id)
    return int(found[0]["position"]) if found else 0


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


class Elsewhere:
    """A sessions service that can be away, refuse a user's calls, and reject records."""

    def __init__(self) -> None:
        self.calls: list[tuple[UUID, list[tuple[str, bool]]]] = []
        self.tried: list[UUID] = []
        self.away = False
        self.refuses: set[str] = set()
        self.rejects: set[str] = set()

    async def store(self, user_id: UUID, tenant_id: int, records: Sequence[RecordToStore]) -> list[StoreReceipt]:
        self.tried.append(user_id)
        await asyncio.sleep(0)
        if self.away:
            raise Failure(Reason.UNAVAILABLE)
        if self.refuses & {one.id for one in records}:
            raise ConnectionError("this one kills it")
        self.calls.append((user_id, [(one.id, one.data is None) for one in records]))
        return [self._receipt(one) for one in records]

    def _receipt(self, one: RecordToStore) -> StoreReceipt:
        if (one.data or "") in self.rejects:
            return StoreReceipt(status="REJECTED", reason="FIELD_INVALID", message="bad")
        return StoreReceipt(status="APPLIED", reason="", message="")


@pytest.fixture
def elsewhere() -> Elsewhere:
    return Elsewhere()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def relay(db: Database, elsewhere: Elsewhere, clock: Clock) -> Relay:
    return Relay(OutboxStore(db), elsewhere.store, now=clock)


async def test_what_was_committed_is_told_at_once_and_what_was_rolled_back_never(db: Database, config: Config) -> None:
    user_id = uuid4()
    async with serving(config, {"sessions": sessions}), client(config) as asked:
        async with relaying(OutboxStore(db), asked.store_records, now=utc_now) as look:
            with pytest.raises(LookupError):
                async with db.transaction() as transaction:
                    await add(
                        transaction.connection,
                        user_id=user_id,
                        tenant_id=1,
                        domain="file",
                        record_id="never",
                        data=file(),
                        now=utc_now(),
                    )
                    raise LookupError("the upload failed")
            await put(db, user_id, ("a", file()), ("b", file(size=8)), now=utc_now())
            look()

            async def told() -> bool:
                return not await waiting(db)

            await until(told)
            assert await feed(db, user_id) == [("a", 1, False), ("b", 1, False)]
            await put(db, user_id, ("a", None), now=utc_now())  # nobody says so: another replica's
            await until(told)
        assert await feed(db, user_id) == [("b", 1, False), ("a", 2, True)]


async def test_while_the_sessions_service_is_away_all_of_it_waits(db: Database, config: Config, tmp_path: Path) -> None:
    users = [uuid4() for _ in range(5)]
    async with client(config) as asked, relaying(OutboxStore(db), asked.store_records, now=utc_now) as look:
        for user_id in users:
            await put(db, user_id, ("a", file()), now=utc_now())
            look()

        async def tried() -> bool:
            return bool(await rows(db, "SELECT 1 FROM uploads.outbox WHERE due_time > create_time"))

        await until(tried)
        assert await waiting(db) == 5
        async with running(service_part("sessions", config, tmp_path)) as service:

            async def told() -> bool:
                return not await waiting(db)

            await until(told)
            await service.stop()
            await put(db, users[0], ("b", file()), ("a", None), now=utc_now())
            look()
            await service.start()
            await until(told)
    assert await feed(db, users[0]) == [("b", 1, False), ("a", 2, True)]
    assert [await feed(db, user_id) for user_id in users[1:]] == [[("a", 1, False)]] * 4


async def test_one_that_dies_after_it_has_told_and_before_it_has_noted_tells_nothing_twice(
    db: Database, config: Config, clock: Clock
) -> None:
    user_id = uuid4()
    clock.time = utc_now()
    await put(db, user_id, ("a", file()), ("b", file()), ("c", file()), ("b", None), now=clock.time)
    async with serving(config, {"sessions": sessions}), client(config) as asked:
        statuses: list[list[str]] = []

        async def tell_and_die(*given: Any) -> list[StoreReceipt]:
            statuses.append([one.status for one in await asked.store_records(*given)])
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await Relay(OutboxStore(db), tell_and_die, now=clock).carry_out()
        before = await feed(db, user_id), await last_position(db, user_id)
        assert (len(before[0]), await waiting(db)) == (2, 4)

        async def tell(*given: Any) -> list[StoreReceipt]:
            receipts = await asked.store_records(*given)
            statuses.append([one.status for one in receipts])
            return receipts

        survivor = Relay(OutboxStore(db), tell, now=clock)
        await survivor.carry_out()
        assert len(statuses) == 1, "the other one may still be at it"
        clock.time += CLAIM
        await survivor.carry_out()
    assert statuses == [["APPLIED", "APPLIED", "DUPLICATE"], ["DUPLICATE"] * 3]
    assert (await feed(db, user_id), await last_position(db, user_id)) == before
    assert await waiting(db) == 0


@pytest.mark.parametrize("told", [True, False])
async def test_what_the_database_went_away_over_is_told_as_soon_as_it_is_back(
    server_url: str, database_url: str, db: Database, elsewhere: Elsewhere, clock: Clock, told: bool
) -> None:
    user_id = uuid4()
    await put(db, user_id, ("a", file()), ("b", file()))
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]

    async def reachable(is_reachable: bool) -> None:
        async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as server:
            await server.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
                    sql.Identifier(str(name)), sql.Literal(is_reachable)
                )
            )
            if not is_reachable:
                await server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
                )

    async def tell(*given: Any) -> list[StoreReceipt]:
        if not elsewhere.tried:
            await reachable(False)
        elsewhere.away = not told and not elsewhere.tried
        return await elsewhere.store(*given)

    relay = Relay(OutboxStore(db), tell, now=clock)
    with pytest.raises(psycopg.OperationalError):
        await relay.carry_out()
    with pytest.raises(psycopg.Error):
        await relay.carry_out()
    assert len(elsewhere.tried) == 1
    await reachable(True)
    clock.time += SECOND
    await relay.carry_out()
    assert (elsewhere.calls[-1], await waiting(db)) == ((user_id, [("a", False), ("b", False)]), 0)


async def test_what_the_database_was_away_over_for_long_is_left_to_who_may_have_it_by_now(
    db: Database, elsewhere: Elsewhere, clock: Clock
) -> None:
    user_id = uuid4()
    await put(db, user_id, ("a", file()))

    async def break_off(*_: object, **__: object) -> None:
        raise psycopg.OperationalError

    store = OutboxStore(db)
    one, other = (Relay(given, elsewhere.store, now=clock) for given in (store, OutboxStore(db)))
    finish, store.finish = store.finish, break_off  # where it breaks
    with pytest.raises(psycopg.OperationalError):
        await one.carry_out()
    store.finish = finish
    clock.time += CLAIM - SECOND
    await one.carry_out()
    assert (len(elsewhere.calls), await waiting(db)) == (1, 1)
    clock.time += SECOND
    await other.carry_out()
    assert (len(elsewhere.calls), await waiting(db)) == (2, 0)


async def test_relays_and_the_sessions_service_are_killed_and_everything_is_told_once(
    db: Database, config: Config, tmp_path: Path
) -> None:
    users: list[UUID] = []
    script = Path(__file__).with_name("relay_process.py")
    part: Part = replace(service_part("uploads", config, tmp_path), command=[sys.executable, str(script)])
    left = 0

    async def less() -> bool:
        return await waiting(db) < left

    async with running(service_part("sessions", config, tmp_path)) as service:
        for round in range(4):
            for _ in range(20):
                users.append(uuid4())
                await put(db, users[-1], *((f"{number}", file(size=number)) for number in range(10)), now=utc_now())
            left = await waiting(db)
            async with running(part) as first, running(replace(part, name="other")) as second:
                await until(less)
                for child in (first, second, *([service] if round % 2 else [])):
                    child.kill()
                    await child.wait()
            if not service.running:
                await service.start()
        async with client(config) as asked:
            # A minute on, nobody who was killed holds anything.
            later = Relay(OutboxStore(db), asked.store_records, now=lambda: utc_now() + 2 * CLAIM)

            async def told() -> bool:
                await later.carry_out()
                return not await waiting(db)

            await until(told)
    for user_id in users:
        assert await feed(db, user_id) == [(f"{number}", 1, False) for number in range(10)]
        assert await last_position(db, user_id) == 10


async def test_many_replicas_tell_each_record_once_and_a_user_one_after_the_other(
    db: Database, elsewhere: Elsewhere, clock: Clock
) -> None:
    at_once: set[UUID] = set()

    async def store(user_id: UUID, tenant_id: int, records: Sequence[RecordToStore]) -> list[StoreReceipt]:
        assert user_id not in at_once
        at_once.add(user_id)
        await asyncio.sleep(0.002)
        at_once.remove(user_id)
        return await elsewhere.store(user_id, tenant_id, records)

    users = [uuid4() for _ in range(8)]
    for number in range(10):
        for user_id in users:
            await put(db, user_id, (f"{number}", file()))
    replicas = [Relay(OutboxStore(db), store, now=clock) for _ in range(4)]

    async def more() -> None:
        for number in range(10, 20):
            for user_id in users:
                await put(db, user_id, (f"{number}", file()))

    await asyncio.gather(*(replica.carry_out() for replica in replicas), more())
    await replicas[0].carry_out()
    told = {user_id: [one for user, call in elsewhere.calls if user == user_id for one in call] for user_id in users}
    assert told == {user_id: [(f"{number}", False) for number in range(20)] for user_id in users}


async def test_a_row_that_is_committed_late_lets_nobody_else_in(
    db: Database, elsewhere: Elsewhere, clock: Clock
) -> None:
    user_id, store = uuid4(), OutboxStore(db)
    async with db.transaction() as late:
        await add(late.connection, user_id=user_id, tenant_id=1, domain="file", record_id="late", data=file(), now=NOW)
        await put(db, user_id, ("early", file()))
        taken = await store.take(NOW, CLAIM, 100)
        assert taken is not None
        assert [one.record_id for one in taken.records] == ["early"]
    await put(db, user_id, ("early", None))
    other = Relay(store, elsewhere.store, now=clock)
    await other.carry_out()
    assert elsewhere.calls == [], "early may be on its way, and its deletion must not overtake it"
    await store.finish(taken, taken.records, [])
    await other.carry_out()
    assert elsewhere.calls == [(user_id, [("late", False), ("early", True)])]


async def test_of_a_record_only_how_it_stands_is_told(db: Database, elsewhere: Elsewhere, relay: Relay) -> None:
    user_id = uuid4()
    await put(db, user_id, ("a", file()), ("b", file()), ("a", file(size=8)), ("c", None), ("b", None))
    await relay.carry_out()
    assert elsewhere.calls == [(user_id, [("a", False), ("c", True), ("b", True)])]
    assert await waiting(db) == 0


async def test_a_large_outbox_is_told_in_parts(db: Database, elsewhere: Elsewhere, relay: Relay) -> None:
    user_id, large = uuid4(), uuid4()
    await put(db, user_id, *((f"{number}", file()) for number in range(250)))
    await put(db, large, *((f"{number}", file(filename="x" * 250_000)) for number in range(20)), now=NOW)
    await relay.carry_out()
    assert [len(call) for user, call in elsewhere.calls if user == user_id] == [100, 100, 50]
    assert [len(call) for user, call in elsewhere.calls if user == large] == [16, 4]
    assert [one for _, call in elsewhere.calls[:3] for one in call] == [(f"{number}", False) for number in range(250)]


async def test_what_is_rejected_is_dropped_and_counted_and_stops_nothing(db: Database, config: Config) -> None:
    user_id = uuid4()
    await put(db, user_id, ("a", file()), ("bad", file(checksum="x")), ("b b", file()), ("c", file()))
    await put(db, user_id, ("c", file(size=-1)))  # the one before it can be stored, and is
    before = OUTBOX_RECORDS.labels("REJECTED")._value.get()
    async with serving(config, {"sessions": sessions}), client(config) as asked:
        await Relay(OutboxStore(db), asked.store_records, now=utc_now).carry_out()
    assert await feed(db, user_id) == [("a", 1, False), ("c", 1, False)]
    assert await waiting(db) == 0
    assert OUTBOX_RECORDS.labels("REJECTED")._value.get() == before + 3


async def test_what_comes_after_its_user_was_erased_is_dropped(db: Database, config: Config) -> None:
    user_id = uuid4()
    async with serving(config, {"sessions": sessions}), client(config) as asked:
        relay = Relay(OutboxStore(db), asked.store_records, now=utc_now)
        await put(db, user_id, ("a", file()))
        await relay.carry_out()
        await asked.erase_user(user_id)
        await put(db, user_id, ("b", file()), ("a", None), ("c", None))
        await relay.carry_out()
    assert await feed(db, user_id) == [("a", 2, True)]
    assert await waiting(db) == 0


async def test_a_call_that_is_refused_is_put_off_longer_each_time_and_stops_no_other_user(
    db: Database, elsewhere: Elsewhere, relay: Relay, clock: Clock
) -> None:
    bad, good = uuid4(), uuid4()
    elsewhere.refuses = {"bad"}
    await put(db, bad, ("bad", file()), ("fine", file()))
    await put(db, good, ("a", file()))
    await relay.carry_out()
    assert elsewhere.calls == [(good, [("a", False)])]
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        elsewhere.tried.clear()
        clock.time += timedelta(seconds=seconds) - SECOND
        await relay.carry_out()
        assert elsewhere.tried == []
        clock.time += SECOND
        await relay.carry_out()
        assert elsewhere.tried == [bad]
    elsewhere.refuses = set()
    clock.time += timedelta(minutes=1)
    await relay.carry_out()
    assert elsewhere.calls[1:] == [(bad, [("bad", False)]), (bad, [("fine", False)])]


async def test_what_stands_before_the_one_at_fault_is_told(
    db: Database, elsewhere: Elsewhere, relay: Relay, clock: Clock
) -> None:
    user_id = uuid4()
    elsewhere.refuses = {"bad"}
    await put(db, user_id, ("a", file()), ("b", file()), ("bad", file()))
    for _ in range(10):
        await relay.carry_out()
        clock.time += timedelta(minutes=1)
    assert elsewhere.calls == [(user_id, [("a", False)]), (user_id, [("b", False)])]
    assert await waiting(db) == 1


async def test_where_nobody_listens_few_are_tried_and_nobody_waits_for_long_afterwards(
    db: Database, elsewhere: Elsewhere, relay: Relay, clock: Clock
) -> None:
    users = [uuid4() for _ in range(20)]
    for user_id in users:
        await put(db, user_id, ("a", file()))
    elsewhere.away = True
    for round in range(30):
        await relay.carry_out()
        assert len(elsewhere.tried) == (round + 1) * UNHEARD
        clock.time += SECOND
    elsewhere.away = False
    await relay.carry_out()
    assert {user for user, _ in elsewhere.calls} == set(users)


async def test_a_rejection_of_something_later_does_not_cost_what_came_before(
    db: Database, elsewhere: Elsewhere, relay: Relay
) -> None:
    user_id = uuid4()
    elsewhere.rejects = {'{"v":2}'}
    await put(db, user_id, ("a", {"v": 1}), ("a", {"v": 2}), ("b", {"v": 1}))
    await relay.carry_out()
    assert elsewhere.calls == [(user_id, [("a", False), ("b", False)]), (user_id, [("a", False)])]
    assert await waiting(db) == 0


async def test_only_one_that_is_away_counts_as_away(config: Config) -> None:
    ending = [RecordToStore(domain="file", id="a", data=None)]
    async with client(config) as asked:
        async with serving(config, {"sessions": sessions}):

            async def heard() -> bool:
                """Channels of one process share a connection, which may still be waiting to be tried again."""
                try:
                    await asked.store_records(uuid4(), 0, ending)
                except Failure:
                    return False
                except grpc.aio.AioRpcError as error:
                    return error.code() is grpc.StatusCode.INVALID_ARGUMENT
                return False

            await until(heard)
        with pytest.raises(Failure) as refused:
            await asked.store_records(uuid4(), 1, ending)
        assert refused.value.reason is Reason.UNAVAILABLE
