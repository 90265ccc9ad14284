"""What a process notes of syncs and uploads: small, bounded, and reported once each, whoever is away."""

from __future__ import annotations

import asyncio
import random
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from deploy.sockets import free_port
from runtime import reporting
from runtime.errors import Reason
from runtime.identity import ServiceTokens
from runtime.mesh import HealthClient, channel
from runtime.outcomes import MAX_ROWS, NO_DEVICE, Batch, Device, Outcomes, Tally, device_of
from runtime.reporting import BATCH, Reporter, rest
from runtime.telemetry import OUTCOMES_DROPPED, OUTCOMES_REPORTED
from tests.health.recorder import Recorder, recorder

PHONE = Device(id="phone-1", platform="ios", app_version="2.1.0")
SECRET = b"a secret of at least 32 bytes...."


@dataclass(frozen=True)
class Somebody:
    user_id: UUID
    tenant_id: int = 1


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_040.0

    def __call__(self) -> float:
        return self.now


def value(counter: Any) -> float:
    return float(counter._value.get())


def rows(outcomes: Outcomes) -> Batch:
    return outcomes.take(1, MAX_ROWS)


@asynccontextmanager
async def reporter_to(address: str, outcomes: Outcomes) -> AsyncIterator[Reporter]:
    async with channel(address) as opened:
        client = HealthClient(opened, ServiceTokens(SECRET, "tests"))
        yield Reporter(outcomes, partial(client.report, uuid4()))


@pytest.fixture
async def health() -> AsyncIterator[Recorder]:
    async with recorder(f"127.0.0.1:{free_port()}") as started:
        yield started


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(reporting, "INTERVAL", 0.02)
    monkeypatch.setattr(reporting, "LONGEST_PAUSE", 0.1)


class TestNoting:
    def test_a_busy_device_is_one_row_a_minute_and_domain(self) -> None:
        clock, somebody = Clock(), Somebody(uuid4())
        outcomes = Outcomes(now=clock)
        for _ in range(1000):
            outcomes.synced(somebody, PHONE, Tally("journal", 10, 2, 1), seconds=0.25)
        outcomes.synced(somebody, PHONE, Tally("task", 1), seconds=0.5)
        clock.now += 60
        outcomes.synced(somebody, PHONE._replace(app_version="2.2.0"), Tally("journal", 5), seconds=1.0)
        first, task, later = rows(outcomes).rows.values()
        assert (first.syncs, first.items, first.conflicts, first.rejected) == (1000, 10_000, 2000, 1000)
        assert first.duration_ms == 250_000
        assert (task.syncs, task.items, task.duration_ms) == (1, 1, 500)
        assert (later.syncs, later.device.app_version, later.time) == (1, "2.2.0", clock.now)
        assert not outcomes.waiting

    @pytest.mark.parametrize(
        ("reason", "tally", "counted"),
        [
            (None, Tally("journal", 3, 1, 2), (1, 0, 3, 1, 2)),
            (None, Tally("journal", 3, 0, 3), (1, 1, 3, 0, 3)),
            (None, Tally(), (1, 0, 0, 0, 0)),
            (Reason.INTERNAL, Tally("journal", 3), (1, 1, 3, 0, 0)),
            (Reason.UNAVAILABLE, Tally("journal", 3), (1, 1, 3, 0, 0)),
            (Reason.DEADLINE_EXCEEDED, Tally("journal", 3), (1, 1, 3, 0, 0)),
            (Reason.FIELD_INVALID, Tally("journal", 3), (1, 1, 3, 0, 3)),
            (Reason.MALFORMED_REQUEST, Tally(), (1, 1, 0, 0, 0)),
            (Reason.TIER_LIMIT, Tally("puzzle", 2), (1, 1, 2, 0, 2)),
            (Reason.SYNC_CONFLICT, Tally("workout_plan", 1), (1, 0, 1, 1, 0)),
            *((reason, Tally("journal", 3), None) for reason in (Reason.RATE_LIMITED, Reason.TOKEN_EXPIRED)),
            *((reason, Tally("journal", 3), None) for reason in (Reason.RESYNC_REQUIRED, Reason.CANCELLED)),
        ],
    )
    def test_what_a_refusal_says_of_syncing(
        self, reason: Reason | None, tally: Tally, counted: tuple[int, ...] | None
    ) -> None:
        outcomes = Outcomes()
        outcomes.synced(Somebody(uuid4()), PHONE, tally, seconds=0.1, reason=reason)
        found = [
            (row.syncs, row.failed_syncs, row.items, row.conflicts, row.rejected)
            for row in rows(outcomes).rows.values()
        ]
        assert found == ([counted] if counted else [])

    def test_a_hundred_thousand_devices_take_no_more_room_than_the_table_has(self) -> None:
        outcomes, dropped = Outcomes(now=lambda: 1_700_000_000.0), value(OUTCOMES_DROPPED)
        people = [Somebody(uuid4()) for _ in range(100_000)]
        tracemalloc.start()
        try:
            for somebody in people:
                outcomes.synced(somebody, PHONE, Tally("journal", 1), seconds=0.1)
            full = tracemalloc.get_traced_memory()[0]
            for somebody in people:
                outcomes.synced(somebody, PHONE, Tally("journal", 1), seconds=0.1)
            again = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert full < 25 * 2**20
        assert again - full < 2**20
        lost = 2 * (100_000 - MAX_ROWS)
        assert value(OUTCOMES_DROPPED) - dropped == lost
        batch = rows(outcomes)
        assert (len(batch.rows), batch.dropped) == (MAX_ROWS, lost)
        assert all(row.syncs == 2 for row in batch.rows.values())

    def test_what_is_on_its_way_keeps_its_room(self) -> None:
        outcomes = Outcomes(room=10)
        people = [Somebody(uuid4()) for _ in range(15)]
        for somebody in people[:10]:
            outcomes.synced(somebody, PHONE, Tally(), seconds=0)
        assert len(outcomes.take(1, 6).rows) == 6
        for somebody in people[10:]:
            outcomes.synced(somebody, PHONE, Tally(), seconds=0)
        outcomes.settle()
        assert len(outcomes.take(2, 10).rows) == 4

    def test_it_takes_microseconds(self) -> None:
        outcomes, somebody, tally = Outcomes(), Somebody(uuid4()), Tally("journal", 100)
        took = []
        for _ in range(20):
            started = time.thread_time()
            for _ in range(1000):
                outcomes.synced(somebody, PHONE, tally, seconds=0.1)
            took.append(time.thread_time() - started)
        assert min(took) * 1000 < 20  # microseconds for one


class TestDevice:
    def test_the_headers_say_who_calls(self) -> None:
        ahead = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
        headers = {
            "x-device-id": "phone-1",
            "x-platform": "android",
            "x-network-type": "cellular",
            "x-app-version": "2.1.0",
            "x-os-version": "Android 14" + "!" * 100,
            "x-client-time": ahead,
        }
        device = device_of(headers, seconds=1.0)
        assert device[:5] == ("phone-1", "android", "cellular", "2.1.0", ("Android 14" + "!" * 100)[:64])
        assert device.clock_skew_ms == pytest.approx(91_000, abs=2000)

    @pytest.mark.parametrize("id", ["", "a b", "ä", "a" * 256, "a\x00", "phone.1"])
    def test_an_id_that_is_none_is_no_device(self, id: str) -> None:
        assert device_of({"x-device-id": id, "x-platform": "ios"}) == NO_DEVICE

    @pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00Z", "9" * 40])
    def test_a_clock_that_cannot_be_read_and_words_that_cannot_be_shown_are_not_said(self, time: str) -> None:
        device = device_of({"x-device-id": "a", "x-platform": "\x1b[2J", "x-client-time": time})
        assert device == Device(id="a")


@pytest.mark.parametrize(("took", "pause"), [(0.0, 2.0), (0.01, 2.0), (0.02, 3.0), (0.04, 6.0), (8.0, 6.0)])
def test_a_long_report_is_followed_by_a_long_rest(took: float, pause: float) -> None:
    assert rest(took) == pytest.approx(pause)


class TestReporting:
    async def test_an_answer_that_was_lost_is_asked_for_again_and_counts_once(self, health: Recorder) -> None:
        outcomes = Outcomes()
        async with reporter_to(health.address, outcomes) as reporter:
            outcomes.synced(Somebody(uuid4()), PHONE, Tally("journal", 3), seconds=0.1)
            health.silent = True
            assert not await reporter.flush()
            outcomes.synced(Somebody(uuid4()), PHONE, Tally("journal", 4), seconds=0.1)
            assert not await reporter.flush()
            health.silent = False
            assert await reporter.flush()
        assert [number for _, number in health.attempts] == [1, 1, 1, 2]
        assert health.sums().counts == {"syncs": 2, "items": 7}
        assert health.tokens[0].startswith("Bearer ey")

    async def test_a_full_table_goes_out_in_batches_of_five_thousand(self, health: Recorder) -> None:
        outcomes, reported = Outcomes(), value(OUTCOMES_REPORTED)
        for _ in range(MAX_ROWS + 7):
            outcomes.synced(Somebody(uuid4()), PHONE, Tally("journal", 1), seconds=0.1)
        async with reporter_to(health.address, outcomes) as reporter:
            assert await reporter.flush()
        assert health.sizes == [BATCH] * 4
        assert health.dropped == 7
        assert value(OUTCOMES_REPORTED) - reported == MAX_ROWS

    async def test_a_batch_that_is_refused_for_good_is_dropped_and_said_to_be(self, health: Recorder) -> None:
        outcomes, dropped = Outcomes(), value(OUTCOMES_DROPPED)
        async with reporter_to(health.address, outcomes) as reporter:
            for _ in range(2):
                outcomes.synced(Somebody(uuid4()), PHONE, Tally("journal", 1), seconds=0.1)
            health.refusing = True
            assert not await reporter.flush()
            health.refusing = False
            outcomes.synced(Somebody(uuid4()), PHONE, Tally("task", 1), seconds=0.1)
            assert await reporter.flush()
        assert (health.sums().counts, health.dropped) == ({"syncs": 1, "items": 1}, 2)
        assert value(OUTCOMES_DROPPED) - dropped == 2

    @pytest.mark.usefixtures("eager")
    async def test_nothing_is_lost_or_counted_twice_while_the_other_side_comes_and_goes(self, health: Recorder) -> None:
        outcomes, chance = Outcomes(), random.Random(7)
        people = [Somebody(uuid4()) for _ in range(50)]
        noted = 0

        async def phone(somebody: Somebody) -> None:
            nonlocal noted
            for _ in range(200):
                outcomes.synced(somebody, PHONE, Tally("journal", 2, 1), seconds=0.001)
                noted += 1
                await asyncio.sleep(chance.uniform(0, 0.01))

        async def weather() -> None:
            for _ in range(6):
                health.silent = not health.silent
                await asyncio.sleep(0.1)
                await health.stop()
                await asyncio.sleep(0.1)
                await health.start()
            health.silent = False

        async with reporter_to(health.address, outcomes) as reporter:
            running = asyncio.create_task(reporter.run())
            await asyncio.gather(weather(), *map(phone, people))
            await health.until(lambda: not outcomes.waiting and health.sums().counts.get("syncs") == noted)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert await reporter.flush()
        assert health.sums().counts == {"syncs": noted, "items": 2 * noted, "conflicts": noted}
        assert health.dropped == 0
        numbers = sorted({number for _, number in health.attempts})
        assert numbers == list(range(1, len(numbers) + 1))
