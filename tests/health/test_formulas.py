"""The formulas of sync health: the published vectors, no data at all, and that SQL and Python agree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.database import Database, database
from services.health.counts import NAMES, Counts
from services.health.devices_store import SCORE
from services.health.sync_health_metrics import Figures, device_score, metrics_of, rounded

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
PUBLISHED = Counts(syncs=1250, failed_syncs=10, conflicts=25)


@pytest.fixture(scope="module")
async def db(new_database: object) -> AsyncIterator[Database]:
    async with database(new_database(), connections=2, name="test") as opened:  # type: ignore[operator]
        yield opened


@pytest.mark.parametrize(
    ("hours", "score"), [(0, 99.12), (4.34, 95.5), (12, 89.12), (24, 79.12), (24.01, 79.12), (9000, 79.12)]
)
def test_the_published_device_has_the_published_score(hours: float, score: float) -> None:
    assert rounded(device_score(PUBLISHED, NOW - timedelta(hours=hours), NOW)) == score


def test_a_device_whose_clock_is_ahead_has_no_more_than_all_points() -> None:
    assert device_score(Counts(syncs=1), NOW + timedelta(hours=5), NOW) == 100


def test_a_device_that_never_synced_has_all_points() -> None:
    assert device_score(Counts(uploads_completed=3), None, NOW) == 100


def test_more_conflicts_than_syncs_cost_no_more_than_all_points_for_them() -> None:
    assert device_score(Counts(syncs=2, items=1000, conflicts=900), NOW, NOW) == 80
    assert device_score(Counts(syncs=2, failed_syncs=2, items=9, conflicts=9), NOW - timedelta(days=2), NOW) == 0


def test_without_data_all_is_well() -> None:
    metrics = metrics_of(Figures(counts=Counts(), devices=0, score=None, dropped=0), 1)
    assert (metrics.success_rate, metrics.conflict_rate, metrics.avg_sync_duration_ms) == (100, 0, 0)
    assert (metrics.failed_syncs_per_minute, metrics.upload_abandonment_rate) == (0, 0)
    assert metrics.avg_device_health_score == 100


def test_metrics_are_what_their_names_say() -> None:
    counts = Counts(
        syncs=2000,
        failed_syncs=30,
        items=1000,
        conflicts=21,
        duration_us=251_000_000,
        uploads_completed=237,
        uploads_abandoned=13,
    )
    metrics = metrics_of(Figures(counts=counts, devices=3, score=95.304, dropped=7), 1)
    assert (metrics.success_rate, metrics.conflict_rate, metrics.avg_sync_duration_ms) == (98.5, 2.1, 125.5)
    assert (metrics.failed_syncs_per_minute, metrics.upload_abandonment_rate) == (0.5, 5.2)
    assert metrics.avg_device_health_score == 95.3
    assert (metrics.total_syncs, metrics.active_devices, metrics.dropped_outcomes) == (2000, 3, 7)
    assert metrics_of(Figures(counts=counts, devices=0, score=None, dropped=0), 24).failed_syncs_per_minute == 0.02


_DEVICES = st.lists(
    st.tuples(
        st.integers(0, 10**9),
        st.floats(0, 1),
        st.integers(0, 10**10),
        st.timedeltas(timedelta(hours=-1), timedelta(days=40)),
    ),
    min_size=1,
    max_size=30,
)


@given(devices=_DEVICES)
@settings(max_examples=60)
async def test_a_score_is_the_same_in_sql_as_in_python(
    db: Database, devices: list[tuple[int, float, int, timedelta]]
) -> None:
    known = [
        (Counts(syncs=syncs, failed_syncs=int(syncs * failing), conflicts=conflicts), NOW - ago)
        for syncs, failing, conflicts, ago in devices
    ]
    columns = ", ".join(("user_id", "device_id", "tenant_id", "last_sync_time", "say_time", *NAMES))
    async with db.transaction() as transaction:
        connection = transaction.connection
        await connection.execute("DELETE FROM health.devices")
        async with connection.cursor() as cursor:
            await cursor.executemany(
                f"INSERT INTO health.devices ({columns}) VALUES (%s, %s, 1, %s, %s, {', '.join(['%s'] * len(NAMES))})",
                [
                    (uuid4(), str(place), time, time, *(getattr(counts, name) for name in NAMES))
                    for place, (counts, time) in enumerate(known)
                ],
            )
        cursor = await connection.execute(
            f"SELECT {SCORE} AS score FROM health.devices ORDER BY device_id::int4", {"now": NOW}
        )
        found = [row["score"] for row in await cursor.fetchall()]
    assert found == pytest.approx([device_score(counts, time, NOW) for counts, time in known], abs=1e-9)
