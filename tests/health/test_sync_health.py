"""How well a tenant's phones sync, by wire: the figures, their course over time, and who may read them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from runtime.clock import utc_now
from runtime.database import database
from services.health.outcomes_domain import Outcomes
from services.health.outcomes_store import OutcomeStore
from services.health.sweeps_domain import Sweeps
from services.health.sweeps_store import SweepStore
from services.health.sync_health_domain import start_of
from services.health.sync_health_store import SyncHealthStore
from tests.conftest import Edge
from tests.factories import Phone
from tests.health.reports import Reporter, message, new_tenant, outcome, report, reporting

PATH, POINTS = "/api/v1/sync/health", "/api/v1/sync/health/points"


@pytest.fixture
async def reporter(edge: Edge) -> AsyncIterator[Reporter]:
    async with reporting(edge) as started:
        yield started


@pytest.fixture
def tenant() -> int:
    return new_tenant()


async def got(phone: Phone, path: str = PATH, **params: Any) -> dict[str, Any]:
    answer = await phone.call("GET", path, params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ago(**given: float) -> datetime:
    return utc_now() - timedelta(**given)


class TestFigures:
    async def test_without_data_all_is_well(self, edge: Edge, tenant: int) -> None:
        assert await got(await edge.phone(tenant_id=tenant)) == {
            "health_status": "healthy",
            "metrics": {
                "success_rate": 100,
                "conflict_rate": 0,
                "avg_sync_duration_ms": 0,
                "failed_syncs_per_minute": 0,
                "upload_abandonment_rate": 0,
                "avg_device_health_score": 100,
                "total_syncs": 0,
                "active_devices": 0,
                "dropped_outcomes": 0,
            },
            "alerts": [],
        }

    async def test_the_published_figures_come_from_what_was_reported(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        user = str(uuid4())
        await reporter.report(
            message(
                tenant,
                user,
                "a",
                syncs=2000,
                failed_syncs=30,
                items=1000,
                conflicts=21,
                rejected=4,
                duration_ms=251_000,
            ),
            message(tenant, user, "b", syncs=0, domain="", duration_ms=0, uploads_completed=237, uploads_abandoned=13),
        )
        found = await got(await edge.phone(tenant_id=tenant), tenant_id=tenant, hours=1)
        metrics = found["metrics"]
        assert (metrics["success_rate"], metrics["conflict_rate"]) == (98.5, 2.1)
        assert (metrics["avg_sync_duration_ms"], metrics["failed_syncs_per_minute"]) == (125.5, 0.5)
        assert metrics["upload_abandonment_rate"] == 5.2
        # Of the one device that synced: 59.1 for what went well, nearly 20 for just now, 19.79 for its conflicts.
        assert metrics["avg_device_health_score"] == pytest.approx(98.89, abs=0.02)
        assert (metrics["total_syncs"], metrics["active_devices"]) == (2000, 1)
        assert (found["health_status"], found["alerts"]) == ("healthy", [])

    async def test_alerts_come_with_what_they_are_about(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        await reporter.report(
            message(
                tenant, str(uuid4()), "a", syncs=1000, failed_syncs=700, items=100, conflicts=6, duration_ms=600_000
            )
        )
        before = utc_now()
        found = await got(await edge.phone(tenant_id=tenant))
        assert found["health_status"] == "critical"
        assert {
            one["metric"]: (one["severity"], one["current_value"], one["threshold"]) for one in found["alerts"]
        } == {
            "success_rate": ("critical", 30, 95),
            "failed_syncs_per_minute": ("critical", 11.67, 10),
            "conflict_rate": ("warning", 6, 5),
            "avg_sync_duration_ms": ("warning", 600, 500),
            "avg_device_health_score": ("warning", found["metrics"]["avg_device_health_score"], 70),
        }
        for alert in found["alerts"]:
            assert datetime.fromisoformat(alert["timestamp"]) > before - timedelta(minutes=1)

    async def test_a_window_holds_so_many_hours(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        phone, user = await edge.phone(tenant_id=tenant), str(uuid4())
        for hours, device in ((0.5, "a"), (1.5, "b"), (30, "c"), (24 * 40, "d")):
            await reporter.report(message(tenant, user, device, time=ago(hours=hours)))
        for hours, expected in ((0, 1), (1, 1), (2, 2), (24, 2), (48, 3), (24 * 39, 3), (2160, 4)):
            metrics = (await got(phone, hours=hours))["metrics"]
            assert (metrics["total_syncs"], metrics["active_devices"]) == (expected, expected), hours

    async def test_the_current_minute_is_the_last_of_a_windows_minutes(self, database_url: str) -> None:
        now = datetime(2026, 2, 26, 10, 30, 15, tzinfo=UTC)
        async with database(database_url, connections=2, name="test") as db:
            taking = Outcomes(OutcomeStore(db), now=lambda: now)
            await taking.take(report(*(outcome(1, now - timedelta(minutes=m), syncs=1) for m in range(200))))
            since = start_of(now, "minute") - timedelta(minutes=59)
            assert (await SyncHealthStore(db).figures(1, since, now)).counts.syncs == 60

    async def test_what_was_dropped_is_told_to_every_tenant(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        phone = await edge.phone(tenant_id=tenant)
        before = (await got(phone))["metrics"]["dropped_outcomes"]
        await reporter.report(dropped=17)
        assert (await got(phone))["metrics"]["dropped_outcomes"] >= before + 17

    async def test_other_tenants_count_for_nothing(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        await reporter.report(message(tenant + 1, str(uuid4()), "a", syncs=10, failed_syncs=10))
        assert (await got(await edge.phone(tenant_id=tenant)))["metrics"]["total_syncs"] == 0


class TestAccess:
    @pytest.mark.parametrize("path", [PATH, POINTS, "/api/v1/sync/devices", f"{PATH}/watch"])
    async def test_another_tenant_is_closed_to_everybody(self, edge: Edge, tenant: int, path: str) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        answer = await admin.call("GET", path, params={"tenant_id": tenant + 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "AUTH_FORBIDDEN")

    async def test_figures_are_everybodys_of_the_tenant_and_their_course_an_administrators(
        self, edge: Edge, tenant: int
    ) -> None:
        user, admin = await edge.phone(tenant_id=tenant), await edge.administrator(tenant_id=tenant)
        for params in ({}, {"tenant_id": tenant}):
            assert (await user.call("GET", PATH, params=params)).status_code == 200
            assert (await user.call("GET", POINTS, params=params)).status_code == 403
            assert (await admin.call("GET", POINTS, params=params)).status_code == 200


class TestPoints:
    async def test_points_are_the_figures_of_each_minute_oldest_first(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        admin, user = await edge.administrator(tenant_id=tenant), str(uuid4())
        old, young = ago(minutes=30), ago(minutes=10)
        await reporter.report(
            message(tenant, user, "a", time=young, syncs=2, items=5, conflicts=1, rejected=1, duration_ms=30),
            message(
                tenant, user, "b", time=young, domain="", syncs=0, duration_ms=0, uploads_completed=1, upload_bytes=7
            ),
            message(tenant, user, "b", time=old, syncs=4, failed_syncs=1, duration_ms=10, uploads_abandoned=2),
        )
        found = await got(admin, POINTS)
        assert found["step"] == "minute"
        nothing = dict.fromkeys(("items", "conflicts", "rejected", "uploads_completed", "upload_bytes"), 0)
        assert [{name: value for name, value in one.items() if name != "time"} for one in found["points"]] == [
            {**nothing, "syncs": 4, "failed_syncs": 1, "avg_sync_duration_ms": 2.5, "uploads_abandoned": 2},
            {
                "syncs": 2,
                "failed_syncs": 0,
                "items": 5,
                "conflicts": 1,
                "rejected": 1,
                "avg_sync_duration_ms": 15,
                "uploads_completed": 1,
                "uploads_abandoned": 0,
                "upload_bytes": 7,
            },
        ]
        times = [datetime.fromisoformat(one["time"]) for one in found["points"]]
        assert times == [start_of(old, "minute"), start_of(young, "minute")]

    async def test_a_step_gathers_what_is_in_it(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        start = start_of(ago(days=1), "day") + timedelta(hours=5)
        times = [start, start + timedelta(minutes=1), start + timedelta(hours=1)]
        await reporter.report(*(message(tenant, time=time) for time in times))
        for step, expected in (("minute", [1, 1, 1]), ("hour", [2, 1]), ("day", [3])):
            found = await got(admin, POINTS, hours=48, step=step)
            assert (found["step"], [one["syncs"] for one in found["points"]]) == (step, expected)

    async def test_the_finest_step_that_makes_a_plot_is_taken(self, edge: Edge, tenant: int) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        for hours, step in ((0, "minute"), (12, "minute"), (13, "hour"), (720, "hour"), (721, "day"), (17520, "day")):
            assert (await got(admin, POINTS, hours=hours))["step"] == step, hours

    async def test_only_one_domain_is_counted_when_it_is_named(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        await reporter.report(message(tenant, domain="a"), message(tenant, domain="b", syncs=5))
        assert sum(one["syncs"] for one in (await got(admin, POINTS))["points"]) == 6
        assert sum(one["syncs"] for one in (await got(admin, POINTS, domain="b"))["points"]) == 5
        assert (await got(admin, POINTS, domain="nothing"))["points"] == []

    async def test_a_device_has_its_hours(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        admin, user, other = await edge.administrator(tenant_id=tenant), str(uuid4()), str(uuid4())
        time = ago(hours=3)
        await reporter.report(
            message(tenant, user, "a", time=time, syncs=3),
            message(tenant, user, "a", time=time, domain="task", syncs=4),
            message(tenant, other, "a", time=time, syncs=100),
            message(tenant, user, "b", time=time, syncs=100),
        )
        found = await got(admin, POINTS, hours=24, user_id=user, device_id="a")
        assert (found["step"], [one["syncs"] for one in found["points"]]) == ("hour", [7])
        assert datetime.fromisoformat(found["points"][0]["time"]) == start_of(time, "hour")
        assert (await got(admin, POINTS, user_id=user, device_id="c"))["points"] == []

    @pytest.mark.parametrize(
        ("params", "code", "field"),
        [
            ({"hours": 49, "step": "minute"}, "SYNC_001", "step"),
            ({"hours": 2161, "step": "hour"}, "SYNC_001", "step"),
            ({"step": "week"}, "SYNC_001", "step"),
            ({"step": "MINUTE"}, "SYNC_001", "step"),
            ({"hours": 17521}, "SYNC_001", "hours"),
            ({"user_id": str(uuid4())}, "SYNC_002", "device_id"),
            ({"device_id": "a"}, "SYNC_002", "user_id"),
            ({"device_id": "a", "user_id": str(uuid4()), "step": "minute"}, "SYNC_001", "step"),
            ({"device_id": "a", "user_id": str(uuid4()), "domain": "x"}, "SYNC_001", "domain"),
        ],
    )
    async def test_what_makes_no_sense_is_named(
        self, edge: Edge, tenant: int, params: dict[str, Any], code: str, field: str
    ) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        answer = await admin.call("GET", POINTS, params=params)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        assert [one["field"] for one in answer.json()["error"]["details"]] == [field]


async def test_a_window_reads_the_same_before_and_after_its_minutes_became_hours(database_url: str) -> None:
    now = datetime(2026, 2, 26, 10, 30, 15, tzinfo=UTC)
    async with database(database_url, connections=2, name="test") as db:
        taking = Outcomes(OutcomeStore(db), now=lambda: now)
        hours = [outcome(1, now - timedelta(hours=hours), syncs=1) for hours in range(24 * 89)]
        await taking.take(report(*hours))
        store = SyncHealthStore(db)
        windows = [start_of(now, "minute") - timedelta(hours=hours) for hours in (1, 24, 47, 24 * 10, 24 * 80)]
        before = [(await store.figures(1, since, now)).counts.syncs for since in windows]
        points = await store.points(1, windows[-1], "day", "")
        assert (await Sweeps(SweepStore(db), now=lambda: now).round())["health_minutes"] > 2000
        after = [(await store.figures(1, since, now)).counts.syncs for since in windows]
        assert after == before == [2, 25, 48, 241, 1921]
        assert await store.points(1, windows[-1], "day", "") == points


async def test_a_day_of_ten_thousand_devices_is_read_in_a_moment(database_url: str) -> None:
    """The plan, not the machine: no table is read whole that holds more than the answer is made of."""
    now = utc_now()
    await _a_day_of(database_url, 10_000)
    async with database(database_url, connections=1, name="test") as db:
        store, best = SyncHealthStore(db), 9.0
        for _ in range(5):
            began = time.perf_counter()
            figures = await store.figures(1, now - timedelta(hours=24), now)
            best = min(best, time.perf_counter() - began)
    assert (figures.devices, figures.counts.syncs) == (10_000, 1439 * 10 * 7)
    # On a machine that does something else as well; alone it is a tenth of that.
    assert best < 0.5


async def _a_day_of(database_url: str, devices: int) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "INSERT INTO health.minutes"
            " SELECT 1, date_trunc('minute', now()) - make_interval(mins => m), 'domain-' || d,"
            " 7, 1, 7, 0, 0, 700, 0, 0, 0 FROM generate_series(1, 1439) AS m, generate_series(1, 10) AS d"
        )
        await connection.execute(
            "INSERT INTO health.devices SELECT gen_random_uuid(), 'device-' || n, 1, 100, 1, 100, 2, 0, 1000, 0, 0, 0,"
            " now() - make_interval(secs => n), now(), 'ios', 'wifi', '1.0', 'iOS 17', 0"
            " FROM generate_series(1, %s) AS n",
            [devices],
        )
        await connection.commit()
        await connection.set_autocommit(True)
        await connection.execute("ANALYZE health.minutes, health.devices")


def test_the_start_of_a_step_is_in_utc() -> None:
    time = datetime(2026, 2, 26, 10, 30, 15, 250_000, tzinfo=UTC)
    assert [start_of(time, step) for step in ("minute", "hour", "day")] == [  # type: ignore[arg-type]
        datetime(2026, 2, 26, 10, 30, tzinfo=UTC),
        datetime(2026, 2, 26, 10, tzinfo=UTC),
        datetime(2026, 2, 26, tzinfo=UTC),
    ]
