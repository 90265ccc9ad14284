"""Devices: what each is like, who may know, the list of a tenant's page by page, and that they are forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from runtime.clock import utc_now
from services.health.outcomes_store import MAX_DEVICES
from tests.conftest import Edge
from tests.factories import Phone
from tests.health.reports import Reporter, message, new_tenant, reporting
from tests.polling import until

LIST = "/api/v1/sync/devices"


@pytest.fixture
async def reporter(edge: Edge) -> AsyncIterator[Reporter]:
    async with reporting(edge) as started:
        yield started


@pytest.fixture
def tenant() -> int:
    return new_tenant()


def path(device_id: str) -> str:
    return f"{LIST}/{device_id}/health"


async def listed(admin: Phone, **params: Any) -> dict[str, Any]:
    answer = await admin.call("GET", LIST, params=params)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def all_pages(admin: Phone, size: int, **params: Any) -> list[dict[str, Any]]:
    devices, token = [], ""
    while True:
        page = await listed(admin, page_size=size, page_token=token, **params)
        assert len(page["devices"]) <= size
        devices += page["devices"]
        token = page["next_page_token"]
        if not token:
            return devices
        assert len(page["devices"]) == size


class TestOne:
    async def test_the_published_device(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        phone = await edge.phone(tenant_id=tenant)
        time = utc_now() - timedelta(hours=4.34)
        said = {"network_type": "wifi", "app_version": "2.1.0", "os_version": "iOS 17.0", "platform": "ios"}
        await reporter.report(
            message(
                tenant,
                phone.user_id,
                "abc123",
                time=time,
                syncs=1250,
                failed_syncs=10,
                items=9000,
                conflicts=25,
                duration_ms=1250 * 110.5,
                clock_skew_ms=-250.5,
                **said,
            )
        )
        found = (await phone.call("GET", path("abc123"))).json()
        assert abs(datetime.fromisoformat(found.pop("last_sync_at")) - time) < timedelta(milliseconds=1)
        assert found == {
            "device_id": "abc123",
            "health_score": 95.5,
            "total_syncs": 1250,
            "failed_syncs_count": 10,
            "avg_sync_duration_ms": 110.5,
            "conflicts_encountered": 25,
            "clock_skew_ms": -250.5,
            "user_id": phone.user_id,
            **said,
        }

    async def test_a_device_that_never_synced_says_so(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        phone = await edge.phone(tenant_id=tenant)
        await reporter.report(message(tenant, phone.user_id, "a", syncs=0, duration_ms=0, uploads_completed=1))
        found = (await phone.call("GET", path("a"))).json()
        assert (found["health_score"], found["total_syncs"]) == (100, 0)
        assert found.get("last_sync_at") is None
        assert "clock_skew_ms" not in found

    async def test_a_phone_that_names_itself_anew_each_time_is_a_hundred_devices_and_no_more(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        phone = await edge.phone(tenant_id=tenant)
        for number in range(MAX_DEVICES + 5):
            await reporter.report(message(tenant, phone.user_id, f"phone-{number}"))
        await reporter.report(message(tenant, phone.user_id, "phone-0"))
        first, late = [await phone.call("GET", path(f"phone-{number}")) for number in (0, MAX_DEVICES + 1)]
        assert (first.json()["total_syncs"], late.status_code) == (2, 404)
        figures = (await phone.call("GET", "/api/v1/sync/health")).json()["metrics"]
        assert figures["total_syncs"] == MAX_DEVICES + 6

    async def test_a_device_is_its_users_and_every_administrators(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        owner, neighbour = await edge.phone(tenant_id=tenant), await edge.phone(tenant_id=tenant)
        boss, stranger = await edge.administrator(tenant_id=tenant), await edge.administrator(tenant_id=tenant + 1)
        await reporter.report(message(tenant, owner.user_id, "a"))
        answers = [(await phone.call("GET", path("a"))).status_code for phone in (owner, boss, neighbour, stranger)]
        assert answers == [200, 200, 404, 404]

    async def test_of_several_devices_of_one_id_each_user_has_the_own_and_the_administrator_the_latest(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        users = [await edge.phone(tenant_id=tenant) for _ in range(3)]
        boss, now = await edge.administrator(tenant_id=tenant), utc_now()
        for place, minutes in enumerate((20, 5, 10)):
            time = now - timedelta(minutes=minutes)
            await reporter.report(message(tenant, users[place].user_id, "same", time=time, syncs=place + 1))
        for place, phone in enumerate(users):
            assert (await phone.call("GET", path("same"))).json()["total_syncs"] == place + 1
        assert (await boss.call("GET", path("same"))).json()["user_id"] == users[1].user_id

    @pytest.mark.parametrize("device_id", ["a b", "a.b", "%C3%A9", "x" * 256])
    async def test_what_is_no_id_is_refused(self, edge: Edge, phone: Phone, device_id: str) -> None:
        answer = await phone.call("GET", path(device_id))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "SYNC_001")
        assert [one["field"] for one in answer.json()["error"]["details"]] == ["device_id"]

    async def test_counts_beyond_what_the_answer_can_hold_stay_at_its_end(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        phone = await edge.phone(tenant_id=tenant)
        await reporter.report(message(tenant, phone.user_id, "a", syncs=2**32 - 1))
        assert (await phone.call("GET", path("a"))).json()["total_syncs"] == 2**31 - 1


class TestList:
    async def test_those_with_the_lowest_score_come_first_and_no_page_repeats_or_forgets_one(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        """Many have the same score: they are told apart by their ids."""
        admin, now = await edge.administrator(tenant_id=tenant), utc_now() - timedelta(hours=1)
        sent = [
            message(tenant, str(uuid4()), f"device-{number}", time=now, syncs=10, failed_syncs=number % 3)
            for number in range(25)
        ]
        await reporter.report(*sent)
        for size in (1, 4, 24, 25, 1000):
            devices = await all_pages(admin, size)
            assert sorted(one["device_id"] for one in devices) == sorted(one.device_id for one in sent), size
            scores = [one["health_score"] for one in devices]
            assert scores == sorted(scores)
        assert [one["failed_syncs_count"] for one in devices] == [2] * 8 + [1] * 8 + [0] * 9

    async def test_pages_go_by_the_scores_of_the_first_one(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        """What is reported between two pages moves nobody who has not been shown across the place."""
        admin, user, now = await edge.administrator(tenant_id=tenant), str(uuid4()), utc_now()
        for number in range(6):
            await reporter.report(message(tenant, user, f"d{number}", time=now - timedelta(hours=number)))
        first = await listed(admin, page_size=3)
        assert [one["device_id"] for one in first["devices"]] == ["d5", "d4", "d3"]
        await reporter.report(message(tenant, user, "d4"))  # is well again, and was shown already
        second = await listed(admin, page_size=3, page_token=first["next_page_token"])
        assert [one["device_id"] for one in second["devices"]][:2] == ["d2", "d1"]

    @pytest.mark.parametrize("size", [1, 2, 5])
    async def test_other_orders_page_as_well(self, edge: Edge, reporter: Reporter, tenant: int, size: int) -> None:
        admin, now = await edge.administrator(tenant_id=tenant), utc_now()
        user, other = sorted((str(uuid4()), str(uuid4())))
        same = now - timedelta(minutes=3)
        await reporter.report(
            message(tenant, user, "b", time=same),
            message(tenant, other, "b", time=same),
            message(tenant, user, "a", time=now - timedelta(minutes=9)),
            message(tenant, user, "C", time=now),
            message(tenant, user, "d", syncs=0, duration_ms=0, uploads_completed=1),
            message(tenant, other, "d", syncs=0, duration_ms=0, uploads_completed=1),
        )

        async def order(order_by: str) -> list[tuple[str, str]]:
            devices = await all_pages(admin, size, order_by=order_by)
            return [(one["device_id"], "user" if one["user_id"] == user else "other") for one in devices]

        latest = [("C", "user"), ("b", "user"), ("b", "other"), ("a", "user"), ("d", "user"), ("d", "other")]
        assert await order("last_sync_at") == latest
        names = [("C", "user"), ("a", "user"), ("b", "user"), ("b", "other"), ("d", "user"), ("d", "other")]
        assert await order("device_id") == names

    async def test_versions_and_totals_are_of_all_and_a_filter_is_of_the_page(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        versions = [("ios", "2.0")] * 3 + [("android", "2.0")] * 2 + [("", "")] + [("ios", "1.0")] * 2
        await reporter.report(
            *(
                message(tenant, str(uuid4()), "a", platform=platform, app_version=version)
                for platform, version in versions
            )
        )
        found = await listed(admin, app_version="2.0", page_size=2)
        assert (found["total"], len(found["devices"])) == (8, 2)
        assert len(await all_pages(admin, 2, app_version="2.0")) == 5
        assert [(one["platform"], one["app_version"], one["devices"]) for one in found["app_versions"]] == [
            ("ios", "2.0", 3),
            ("android", "2.0", 2),
            ("ios", "1.0", 2),
            ("", "", 1),
        ]

    async def test_of_very_many_versions_fifty_are_told(self, edge: Edge, reporter: Reporter, tenant: int) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        await reporter.report(*(message(tenant, str(uuid4()), "a", app_version=f"1.{n}") for n in range(60)))
        found = await listed(admin, page_size=1)
        assert (found["total"], len(found["app_versions"])) == (60, 50)

    async def test_a_tenant_without_devices_has_an_empty_list(self, edge: Edge, tenant: int) -> None:
        assert await listed(await edge.administrator(tenant_id=tenant)) == {
            "devices": [],
            "next_page_token": "",
            "total": 0,
            "app_versions": [],
        }

    async def test_a_place_of_another_order_or_of_another_list_is_refused(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        admin = await edge.administrator(tenant_id=tenant)
        await reporter.report(message(tenant, str(uuid4()), "a"), message(tenant, str(uuid4()), "b"))
        token = (await listed(admin, page_size=1))["next_page_token"]
        for params in ({"order_by": "device_id", "page_token": token}, {"page_token": token[:-8]}):
            answer = await admin.call("GET", LIST, params=params)
            assert (answer.status_code, answer.json()["error"]["details"][0]["field"]) == (400, "page_token")


class TestForgetting:
    async def test_devices_of_a_deleted_account_are_forgotten_and_the_receipt_counts_them(
        self, edge: Edge, reporter: Reporter, tenant: int
    ) -> None:
        leaver, stayer = await edge.phone(tenant_id=tenant), await edge.phone(tenant_id=tenant)
        await reporter.report(
            message(tenant, leaver.user_id, "a"),
            message(tenant, leaver.user_id, "b"),
            message(tenant, stayer.user_id, "a"),
        )
        receipt_id = (await leaver.call("DELETE", "/v1/auth/me")).json()["receipt_id"]

        async def done() -> bool:
            receipt = (await edge.http.get(f"/v1/auth/deletions/{receipt_id}")).json()
            return bool(receipt["state"] == "done")

        await until(done)
        receipt = (await edge.http.get(f"/v1/auth/deletions/{receipt_id}")).json()
        assert receipt["removed"]["devices"] == 2
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            for table in ("devices", "device_hours"):
                left = connection.execute(f"SELECT user_id FROM health.{table} WHERE tenant_id = %s", [tenant])
                assert {str(user) for (user,) in left.fetchall()} == {stayer.user_id}
        # What was counted of the tenant names nobody and stays.
        metrics = (await stayer.call("GET", "/api/v1/sync/health")).json()["metrics"]
        assert (metrics["total_syncs"], metrics["active_devices"]) == (3, 1)

    async def test_a_report_that_comes_late_brings_nobody_back(self, reporter: Reporter, tenant: int) -> None:
        user = str(uuid4())
        await reporter.report(message(tenant, user, "a"))
        first = await reporter.erase(user)
        await reporter.report(message(tenant, user, "a"))
        again = await reporter.erase(user)
        assert [(one.devices, one.total_devices) for one in (first, again)] == [(1, 1), (0, 1)]
