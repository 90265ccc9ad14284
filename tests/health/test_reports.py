"""Reports: each is counted once, whoever sends it twice, at once, or is killed in the middle; and never half."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from satchel.health.v1 import health_pb2 as pb

from deploy.parts import running
from runtime.database import Database, database
from services.health.counts import NAMES
from services.health.devices_store import DeviceStore
from services.health.outcomes_convert import report_from_pb
from services.health.outcomes_domain import Outcomes
from services.health.outcomes_store import OutcomeStore
from tests.conftest import Edge, config_for, service_part
from tests.health.reports import Reporter, message, new_tenant, outcome, report, reporting
from tests.polling import until

NOW = datetime(2026, 2, 26, 10, 30, 15, tzinfo=UTC)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=8, name="test") as opened:
        yield opened


@pytest.fixture
async def reporter(edge: Edge) -> AsyncIterator[Reporter]:
    async with reporting(edge) as started:
        yield started


def outcomes(db: Database, now: datetime = NOW) -> Outcomes:
    return Outcomes(OutcomeStore(db), now=lambda: now)


async def rows(db: Database, table: str) -> list[dict[str, Any]]:
    async with db.statements() as statements:
        cursor = await statements.connection.execute(f"SELECT * FROM health.{table} AS one ORDER BY one")
        return [dict(row) for row in await cursor.fetchall()]


async def total(db: Database, table: str, name: str = "syncs") -> int:
    return sum(row[name] for row in await rows(db, table))


async def test_a_report_is_counted_by_minute_by_device_and_by_hour_of_the_device(db: Database) -> None:
    user = uuid4()
    counted = {name: place for place, name in enumerate(NAMES, 1)} | {"syncs": 9}
    sent = [
        outcome(1, NOW, user_id=user, device_id="a", domain="journal", **counted),
        outcome(1, NOW + timedelta(seconds=50), user_id=user, device_id="a", domain="journal", **counted),
        outcome(1, NOW - timedelta(hours=1), user_id=user, device_id="b", domain="task", syncs=1),
        outcome(1, NOW, domain="", syncs=5, failed_syncs=5),
        outcome(2, NOW, user_id=user, device_id="a", uploads_abandoned=1),
    ]
    await outcomes(db, NOW + timedelta(minutes=5)).take(report(*sent))
    minutes = [(row["tenant_id"], row["time"].minute, row["domain"], row["syncs"]) for row in await rows(db, "minutes")]
    assert sorted(minutes) == [
        (1, 30, "", 5),
        (1, 30, "journal", 9),
        (1, 30, "task", 1),
        (1, 31, "journal", 9),
        (2, 30, "", 0),
    ]
    one, elsewhere, other = await rows(db, "devices")
    assert [one[name] for name in NAMES] == [2 * counted[name] for name in NAMES]
    assert one["last_sync_time"] == NOW + timedelta(seconds=50)
    assert (other["device_id"], other["syncs"], other["last_sync_time"]) == ("b", 1, NOW - timedelta(hours=1))
    assert (elsewhere["tenant_id"], elsewhere["last_sync_time"]) == (2, None)
    hours = [
        (row["device_id"], row["tenant_id"], row["time"].hour, row["syncs"]) for row in await rows(db, "device_hours")
    ]
    assert sorted(hours) == [("a", 1, 10, 18), ("a", 2, 10, 0), ("b", 1, 9, 1)]


async def test_a_device_is_what_it_last_said_whatever_order_reports_come_in(db: Database) -> None:
    user = uuid4()

    def said(seconds: int, **words: Any) -> Any:
        return outcome(1, NOW + timedelta(seconds=seconds), user_id=user, device_id="a", syncs=1, **words)

    taking = outcomes(db, NOW + timedelta(hours=1))
    await taking.take(report(said(20, app_version="2.0", network_type="wifi"), said(10, app_version="1.0")))
    await taking.take(report(said(5, app_version="0.9", os_version="iOS 17", clock_skew_us=-5)))
    await taking.take(report(said(30, network_type="cellular")))
    (device,) = await rows(db, "devices")
    assert (device["app_version"], device["network_type"], device["os_version"]) == ("2.0", "cellular", "iOS 17")
    assert (device["platform"], device["clock_skew_us"]) == (None, -5)
    assert device["last_sync_time"] == NOW + timedelta(seconds=30)


async def test_what_is_ahead_of_our_clock_is_now(db: Database) -> None:
    await outcomes(db).take(report(outcome(1, NOW + timedelta(minutes=3), syncs=1)))
    (minute,) = await rows(db, "minutes")
    assert minute["time"] == NOW.replace(second=0)


async def test_a_report_that_comes_again_is_not_counted_again(db: Database) -> None:
    reporter, sent = uuid4(), outcome(1, NOW, user_id=uuid4(), device_id="a", syncs=1)
    for number in (1, 1, 2, 1, 2, 3):
        await outcomes(db).take(report(sent, reporter=reporter, number=number, dropped=1))
    assert [await total(db, table) for table in ("minutes", "devices", "device_hours")] == [3, 3, 3]
    async with db.statements() as statements:
        row = await (await statements.connection.execute("SELECT sum(outcomes) AS sum FROM health.drops")).fetchone()
    assert row is not None
    assert row["sum"] == 3


async def test_a_report_that_comes_several_times_at_once_is_counted_once(db: Database) -> None:
    reporter, sent = uuid4(), outcome(1, NOW, user_id=uuid4(), device_id="a", syncs=1)
    for number in range(1, 6):
        repeated = report(sent, reporter=reporter, number=number)
        await asyncio.gather(*(outcomes(db).take(repeated) for _ in range(8)))
    assert [await total(db, table) for table in ("minutes", "devices", "device_hours")] == [5, 5, 5]


async def test_an_empty_report_is_a_report(db: Database) -> None:
    await outcomes(db).take(report(dropped=4))
    await outcomes(db).take(report())
    assert await rows(db, "minutes") == []


async def test_reports_about_the_same_devices_at_once_wait_for_each_other_in_no_circle(db: Database) -> None:
    """Each names the same hundred devices and minutes in an order of its own; a circle would end one of them."""
    chance = random.Random(7)
    devices = [(uuid4(), f"device-{number}") for number in range(100)]
    times = [NOW - timedelta(minutes=number) for number in range(10)]

    def shuffled() -> Any:
        seen = [
            outcome(1, chance.choice(times), user_id=user, device_id=device, domain=chance.choice("xyz"), syncs=1)
            for user, device in devices
        ]
        chance.shuffle(seen)
        return report(*seen)

    await asyncio.gather(*(outcomes(db).take(shuffled()) for _ in range(60)))
    assert [await total(db, table) for table in ("minutes", "devices", "device_hours")] == [6000, 6000, 6000]


async def test_erasing_users_and_reporting_them_wait_for_each_other_in_no_circle(
    edge: Edge, reporter: Reporter
) -> None:
    tenant, users = new_tenant(), [str(uuid4()) for _ in range(5)]
    names = [f"d{number}" for number in range(20)]

    async def report_all(seed: int) -> None:
        async with reporting(edge) as another:
            for _ in range(5):
                sent = [message(tenant, user, name) for user in users for name in names]
                random.Random(seed).shuffle(sent)
                await another.report(*sent)

    await asyncio.gather(*map(report_all, range(4)), *(reporter.erase(user) for user in users))
    for user in users:
        await reporter.erase(user)
        # Whoever was erased stays so.
        await reporter.report(message(tenant, user, "d0"))
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        for table in ("devices", "device_hours"):
            left = connection.execute(f"SELECT 1 FROM health.{table} WHERE tenant_id = %s", [tenant]).fetchall()
            assert left == []


async def test_a_report_that_is_under_way_while_its_user_is_erased_leaves_nothing_behind(
    db: Database, database_url: str
) -> None:
    erased, other = uuid4(), UUID(int=2**128 - 1)
    await outcomes(db).take(report(outcome(1, NOW, user_id=other, device_id="a", syncs=1)))
    async with await psycopg.AsyncConnection.connect(database_url) as holding:
        # The report has counted both devices when it comes to the hours of the second, and waits there.
        await holding.execute("SELECT 1 FROM health.device_hours FOR UPDATE")
        sent = report(*(outcome(1, NOW, user_id=user, device_id="a", syncs=1) for user in (erased, other)))
        taking = asyncio.create_task(outcomes(db).take(sent))
        await until_waiting(db, 1)
        erasing = asyncio.create_task(DeviceStore(db).erase(erased))
        await until_waiting(db, 2)
    await taking
    assert await erasing == (1, 1)
    for table in ("devices", "device_hours"):
        assert [row["user_id"] for row in await rows(db, table)] == [other]


async def until_waiting(db: Database, processes: int) -> None:
    """Until so many of the database's processes wait for a lock."""

    async def waiting() -> bool:
        async with db.statements() as statements:
            cursor = await statements.connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return len(await cursor.fetchall()) == processes

    await until(waiting)


async def test_a_report_of_five_thousand_is_taken_whole(edge: Edge, reporter: Reporter) -> None:
    tenant = new_tenant()
    phone = await edge.phone(tenant_id=tenant)
    await reporter.report(*(message(tenant, str(UUID(int=number)), "d") for number in range(1, 5001)))
    metrics = (await phone.call("GET", "/api/v1/sync/health")).json()["metrics"]
    assert (metrics["total_syncs"], metrics["active_devices"]) == (5000, 5000)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReportOutcomesRequest(number=1), "reporter"),
        (pb.ReportOutcomesRequest(reporter="x", number=1), "reporter"),
        (pb.ReportOutcomesRequest(reporter=str(uuid4())), "number"),
        (pb.ReportOutcomesRequest(reporter=str(uuid4()), number=1, outcomes=[message(1)] * 5001), "outcomes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_report_that_makes_no_sense_is_refused_by_the_field_and_nothing_of_it_counts(
    edge: Edge, reporter: Reporter, request_: pb.ReportOutcomesRequest, field: str
) -> None:
    tenant = new_tenant()
    phone = await edge.phone(tenant_id=tenant)
    for one in request_.outcomes:
        one.tenant_id = tenant if one.tenant_id == 1 else one.tenant_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reporter.stub.ReportOutcomes(request_, metadata=reporter.metadata, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(f"{field}: ")
    assert (await phone.call("GET", "/api/v1/sync/health")).json()["metrics"]["total_syncs"] == 0


SENSELESS = [
    pb.Outcome(tenant_id=1, syncs=1),  # without a time
    message(-1),
    message(1, "x"),
    message(1, str(uuid4()), "a b"),
    message(1, str(uuid4()), "x" * 256),
    message(1, domain="x" * 65),
    message(1, domain="a\0b"),
    message(1, failed_syncs=2),
    message(1, duration_ms=-1),
    message(1, duration_ms=float("nan")),
    message(1, duration_ms=1e300),
    message(1, upload_bytes=-1),
    message(1, upload_bytes=float("inf")),
    message(1, clock_skew_ms=-1e300),
]


@pytest.mark.parametrize("senseless", SENSELESS, ids=range(len(SENSELESS)))
async def test_an_outcome_that_makes_no_sense_is_dropped_and_its_neighbours_count(
    db: Database, senseless: pb.Outcome
) -> None:
    sent = [message(1, domain="a"), senseless, message(1, domain="b")]
    request = pb.ReportOutcomesRequest(reporter=str(uuid4()), number=1, outcomes=sent, dropped=2)
    for _ in range(2):
        await outcomes(db).take(report_from_pb(request))
    assert [row["domain"] for row in await rows(db, "minutes")] == ["a", "b"]
    assert [row["outcomes"] for row in await rows(db, "drops")] == [3]


async def test_what_was_being_counted_when_the_process_was_killed_is_counted_once(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """A reporter repeats a report until it is taken; the process dies again and again meanwhile."""
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    async with AsyncExitStack() as stack:
        child = await stack.enter_async_context(running(service_part("health", config, tmp_path)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(config.health_address))
        reporter, user = Reporter(config, channel), str(uuid4())
        sent, killed = 0, False

        async def repeated(number: int) -> None:
            while True:
                try:
                    return await reporter.report(*(message(1, user, f"d{one}") for one in range(50)), number=number)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)

        async def report_on() -> None:
            nonlocal sent
            while not killed:
                await repeated(sent + 1)
                sent += 1

        reporting_on = asyncio.create_task(report_on())
        for _ in range(2):
            before = sent
            while sent < before + 10:
                await asyncio.sleep(0.01)
            child.kill()
            await child.wait()
            await child.start()
            await child.until_ready()
        killed = True
        await asyncio.wait_for(reporting_on, 60)
    with psycopg.connect(database_url) as connection:
        for table in ("minutes", "devices", "device_hours"):
            assert connection.execute(f"SELECT sum(syncs)::int4 FROM health.{table}").fetchone() == (50 * sent,)
