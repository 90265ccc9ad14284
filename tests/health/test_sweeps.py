"""Age: minutes become hours and hours days without a count lost or doubled, and what is too old goes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.database import Database, database
from services.health.counts import NAMES
from services.health.outcomes_domain import Outcome, Outcomes
from services.health.outcomes_store import OutcomeStore
from services.health.sweeps_domain import Sweeps
from services.health.sweeps_store import SweepStore
from services.health.sync_health_store import SyncHealthStore
from tests.health.reports import outcome, report

NOW = datetime(2026, 2, 26, 10, 30, 15, tzinfo=UTC)
TABLES = ("minutes", "hours", "days")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=6, name="test") as opened:
        yield opened


@pytest.fixture(scope="module")
async def shared(new_database: Callable[[], str]) -> AsyncIterator[Database]:
    async with database(new_database(), connections=6, name="test") as opened:
        yield opened


def sweeps(db: Database, now: datetime = NOW, *, batch: int = 1000) -> Sweeps:
    return Sweeps(SweepStore(db), now=lambda: now, batch=batch)


async def take(db: Database, *outcomes: Outcome, dropped: int = 0, now: datetime = NOW) -> None:
    await Outcomes(OutcomeStore(db), now=lambda: now).take(report(*outcomes, dropped=dropped))


async def totals(db: Database, *tables: str) -> Counter[tuple[int, str, str]]:
    """What is counted by tenant, domain and name, in all these tables together."""
    found: Counter[tuple[int, str, str]] = Counter()
    async with db.statements() as statements:
        for table in tables:
            cursor = await statements.connection.execute(f"SELECT * FROM health.{table}")
            for row in await cursor.fetchall():
                found.update({(row["tenant_id"], row["domain"], name): row[name] for name in NAMES})
    return found


async def count(db: Database, table: str) -> int:
    async with db.statements() as statements:
        cursor = await statements.connection.execute(f"SELECT count(*) AS rows FROM health.{table}")
        row = await cursor.fetchone()
        assert row is not None
        return int(row["rows"])


def ago(**given: float) -> datetime:
    return NOW - timedelta(**given)


async def test_old_minutes_become_hours_and_old_hours_days_and_young_ones_stay(db: Database) -> None:
    await take(
        db,
        *(outcome(1, ago(minutes=minutes), domain="a", syncs=1) for minutes in range(5)),
        *(outcome(1, ago(days=3, minutes=minutes), domain="a", syncs=1) for minutes in range(20)),
        *(outcome(1, ago(days=100, hours=hours), domain="a", syncs=1) for hours in range(5)),
    )
    await sweeps(db).round()
    assert [await count(db, table) for table in TABLES] == [5, 1, 1]
    # Of three days ago all was within one hour, and of a hundred days ago within one day.
    assert (await totals(db, "hours"))[1, "a", "syncs"] == 20
    assert (await totals(db, "days"))[1, "a", "syncs"] == 5
    assert not +(await sweeps(db).round())


async def test_what_comes_late_joins_what_is_there_already(db: Database) -> None:
    for _ in range(3):
        await take(db, outcome(1, ago(days=3), syncs=1), outcome(1, ago(days=200), syncs=1))
        await sweeps(db).round()
    assert [await count(db, table) for table in TABLES] == [0, 1, 1]
    assert [(await totals(db, table))[1, "", "syncs"] for table in TABLES] == [0, 3, 3]


async def test_what_is_too_old_goes_and_what_is_young_stays(db: Database) -> None:
    user = uuid4()
    for days in (13.9, 14.1):
        await take(db, outcome(1, ago(days=days), user_id=user, device_id=f"d{days}".replace(".", "-"), syncs=1))
    for days in (399, 401):
        await take(db, outcome(1, ago(days=days), user_id=user, device_id=f"d{days}", uploads_completed=1))
    for days in (729, 731):
        await take(db, outcome(1, ago(days=days), syncs=1))
    for days in (89.9, 90.1):
        await take(db, dropped=1, now=ago(days=days))
    await take(db, now=ago(hours=23.9))
    swept = await sweeps(db).round()
    assert swept["health_device_hours"] == 3
    assert await count(db, "device_hours") == 1
    assert swept["health_devices"] == 1
    assert await count(db, "devices") == 3
    assert swept["health_drops"] == 1
    assert swept["health_days"] == 1
    # All but those that reported within a day: the one of 23.9 hours ago, and those whose report came now.
    assert swept["health_reporters"] == 2


async def test_a_device_that_is_heard_of_again_stays(db: Database) -> None:
    user = uuid4()
    for days in (401, 1):
        await take(db, outcome(1, ago(days=days), user_id=user, device_id="a", syncs=1))
    assert not (await sweeps(db).round())["health_devices"]
    assert await count(db, "devices") == 1


_OUTCOMES = st.lists(
    st.builds(
        lambda minutes, tenant, domain, counts: outcome(
            tenant, ago(minutes=minutes), domain=domain, **dict(zip(NAMES, counts, strict=True))
        ),
        st.integers(0, 60 * 24 * 400),
        st.integers(1, 2),
        st.sampled_from(["", "a", "b"]),
        st.tuples(
            *(st.integers(*range_) for range_ in ((9, 9), (0, 9), (0, 99), (0, 9), (0, 9), (0, 10**9))),
            *(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**40)),
        ),
    ),
    max_size=40,
)


@given(batches=st.lists(_OUTCOMES, min_size=1, max_size=4), batch=st.integers(1, 20), step=st.integers(0, 200))
@settings(max_examples=30)
async def test_no_count_is_lost_or_doubled_however_often_it_is_swept(
    shared: Database, batches: list[list[Outcome]], batch: int, step: int
) -> None:
    """Time goes on between the batches, by as many hours as `step`, and several sweep at once."""
    async with shared.statements() as statements:
        await statements.connection.execute(f"TRUNCATE {', '.join(f'health.{table}' for table in TABLES)}")
    expected: Counter[tuple[int, str, str]] = Counter()
    for place, outcomes in enumerate(batches):
        now = NOW + timedelta(hours=place * step)
        await asyncio.gather(
            take(shared, *outcomes, now=now), *(sweeps(shared, now, batch=batch).round() for _ in range(2))
        )
        for one in outcomes:
            expected.update({(one.tenant_id, one.domain, name): getattr(one.counts, name) for name in NAMES})
    assert +(await totals(shared, *TABLES)) == +expected
    # Also what is read over all three of them.
    figures = await SyncHealthStore(shared).figures(1, NOW - timedelta(days=500), NOW)
    read = {name: getattr(figures.counts, name) for name in NAMES}
    assert read == {name: sum(expected[1, domain, name] for domain in ("", "a", "b")) for name in NAMES}


async def test_several_sweepers_at_once_move_each_minute_once(db: Database) -> None:
    await take(db, *(outcome(1, ago(days=3, minutes=minutes), syncs=1) for minutes in range(1000)))
    await asyncio.gather(*(sweeps(db, batch=7).round() for _ in range(5)))
    await sweeps(db).round()
    assert await count(db, "minutes") == 0
    assert (await totals(db, "hours"))[1, "", "syncs"] == 1000


async def test_a_report_under_way_is_neither_waited_for_nor_lost(db: Database, database_url: str) -> None:
    await take(db, *(outcome(1, ago(days=3, minutes=minutes), syncs=1) for minutes in range(3)))
    async with await psycopg.AsyncConnection.connect(database_url) as reporter:
        await reporter.execute(
            "UPDATE health.minutes SET syncs = syncs + 10 WHERE time = (SELECT max(time) FROM health.minutes)"
        )
        async with asyncio.timeout(10):
            assert (await sweeps(db).round())["health_minutes"] == 2
    await sweeps(db).round()
    assert (await totals(db, *TABLES))[1, "", "syncs"] == 13
    assert await count(db, "minutes") == 0


async def test_a_sweep_that_is_killed_in_the_middle_moves_nothing_or_all(db: Database, database_url: str) -> None:
    await take(db, *(outcome(1, ago(days=3, minutes=minutes), syncs=1) for minutes in range(50)))
    await sweeps(db).round()
    await take(db, *(outcome(1, ago(days=3, minutes=minutes), syncs=1) for minutes in range(50)))
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        # Whoever moves minutes has taken them away when it comes to their hours, and waits there.
        await other.execute("SELECT 1 FROM health.hours FOR UPDATE")
        sweep = asyncio.create_task(sweeps(db).round())
        pid = await until_one_waits(db)
        await other.execute("SELECT pg_terminate_backend(%s)", [pid])
        assert not (await sweep)["health_minutes"]
    assert (await totals(db, *TABLES))[1, "", "syncs"] == 100
    assert (await sweeps(db).round())["health_minutes"] == 50
    assert (await totals(db, "hours"))[1, "", "syncs"] == 100


async def until_one_waits(db: Database) -> Any:
    """The process of PostgreSQL that waits for a lock."""
    async with asyncio.timeout(10):
        while True:
            async with db.statements() as statements:
                cursor = await statements.connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                row = await cursor.fetchone()
            if row is not None:
                return row["pid"]
            await asyncio.sleep(0.01)
