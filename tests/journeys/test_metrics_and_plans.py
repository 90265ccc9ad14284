"""Measurements and training plans over REST and gRPC: typed views on records that sync like all others."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format
from satchel.sessions.v1 import health_metrics_pb2 as metrics_pb2
from satchel.sessions.v1 import health_metrics_pb2_grpc as metrics_grpc

from runtime.call import Principal
from runtime.keys import signing_keys
from services.auth.tokens import AccessTokens
from services.sessions import metrics_convert
from tests.conftest import Edge
from tests.factories import Phone

METRIC = {
    "type": "heart_rate",
    "value": 62,
    "unit": "bpm",
    "timestamp": "2026-02-26T10:00:00Z",
    "calendar_date": "2026-02-26",
    "zone_offset_minutes": 60,
    "source": "watch",
    "detail": {"resting": True, "samples": [61, 62, 63]},
}
PLAN = {
    "name": "4 x 4",
    "sport": "running",
    "scheduled_date": "2026-03-01",
    "steps": [
        {"type": "warm-up", "duration_seconds": 600},
        {
            "type": "repeat",
            "count": 4,
            "steps": [
                {"type": "interval", "duration_seconds": 240, "target": {"heart_rate": {"min": 160, "max": 175}}},
                {"type": "recovery", "duration_seconds": 180},
            ],
        },
        {"type": "cool-down", "duration_seconds": 600},
    ],
}


def admin_of(edge: Edge, tenant_id: int) -> dict[str, str]:
    """The headers of an administrator of a tenant."""
    admin = Principal(user_id=uuid4(), sign_in_id=uuid4(), tenant_id=tenant_id, role="admin", tier="free")
    return {"authorization": "Bearer " + AccessTokens(signing_keys(edge.mesh.config.keys)).mint(admin)}


async def feed(phone: Phone, domain: str) -> list[tuple[str, int, Any]]:
    page = (await phone.call("GET", "/api/v1/sync/pull", params={"domains": domain})).json()
    return [(one["id"], one["version"], one["data"]) for one in page["changes"]]


async def listed(phone: Phone, **query: Any) -> list[dict[str, Any]]:
    answer = await phone.call("GET", "/health_metrics", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["health_metrics"]
    return found


class TestOneMetric:
    async def test_it_is_stored_shown_and_synced(self, phone: Phone) -> None:
        id = str(uuid4())
        answer = await phone.call("POST", "/health_metrics", json={"id": id, **METRIC})
        assert (answer.status_code, answer.json()) == (201, {"id": id, **METRIC})
        assert await listed(phone) == [{"id": id, **METRIC}]
        assert await feed(phone, "health_metric") == [(id, 1, METRIC)]

    @pytest.mark.parametrize("value", [0, -3, 61.5, "A+", {"systolic": 120, "diastolic": 80}])
    async def test_a_value_is_a_number_a_text_or_an_object(self, edge: Edge, value: Any) -> None:
        phone = await edge.phone()
        answer = await phone.call("POST", "/health_metrics", json={**METRIC, "value": value})
        assert (answer.status_code, answer.json()["value"]) == (201, value)

    async def test_the_same_without_an_id_is_the_same_measurement(self, edge: Edge) -> None:
        phone, other = await edge.phone(), await edge.phone()
        answers = [await phone.call("POST", "/health_metrics", json=METRIC) for _ in range(3)]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert [answer.status_code for answer in answers] == [201, 201, 201]
        assert len(await listed(phone)) == 1
        assert (await phone.call("POST", "/health_metrics", json={**METRIC, "value": 63})).status_code == 201
        assert [one["value"] for one in await listed(phone)] in ([62, 63], [63, 62])
        theirs = await other.call("POST", "/health_metrics", json=METRIC)
        assert theirs.json()["id"] != answers[0].json()["id"]

    async def test_two_that_tell_no_time_are_two(self, edge: Edge) -> None:
        phone = await edge.phone()
        for _ in range(2):
            assert (await phone.call("POST", "/health_metrics", json={"type": "mood", "value": 4})).status_code == 201
        assert len(await listed(phone)) == 2
        key = {"idempotency-key": "once"}
        ids = [
            (await phone.call("POST", "/health_metrics", json={"type": "mood", "value": 5}, headers=key)).json()["id"]
            for _ in range(2)
        ]
        assert ids[0] == ids[1]
        assert len(await listed(phone)) == 3

    async def test_other_content_under_its_id_wins_unless_the_tenant_has_decided_otherwise(self, edge: Edge) -> None:
        phone = await edge.phone(tenant_id=4711)
        one = {"id": "resting", **METRIC}
        await phone.call("POST", "/health_metrics", json=one)
        answer = await phone.call("POST", "/health_metrics", json={**one, "value": 58})
        assert (answer.status_code, answer.json()["value"]) == (201, 58)
        assert [(id, version) for id, version, _ in await feed(phone, "health_metric")] == [("resting", 2)]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"type": None}, "type"),
            ({"type": ""}, "type"),
            ({"type": "x" * 65}, "type"),
            ({"type": 7}, "type"),
            ({"value": None}, "value"),
            ({"value": True}, "value"),
            ({"value": [1]}, "value"),
            ({"unit": "x" * 33}, "unit"),
            ({"timestamp": "yesterday"}, "timestamp"),
            ({"timestamp": "2100-01-01T00:00:00Z"}, "timestamp"),
            ({"timestamp": 7}, "timestamp"),
            ({"calendar_date": "2026-02-30"}, "calendar_date"),
            ({"calendar_date": "26.2.2026"}, "calendar_date"),
            ({"calendar_date": "1999-12-31"}, "calendar_date"),
            ({"zone_offset_minutes": 1081}, "zone_offset_minutes"),
            ({"zone_offset_minutes": 1.5}, "zone_offset_minutes"),
            ({"source": "x" * 101}, "source"),
            ({"detail": []}, "detail"),
            ({"detail": {"a": "\0"}}, "detail"),
            ({"detail": {"a": "x" * 300_000}}, "detail"),
            ({"id": "a b"}, "id"),
            ({"id": 7}, "id"),
        ],
        ids=str,
    )
    async def test_a_bad_one_is_refused_by_its_field(self, phone: Phone, change: dict[str, Any], field: str) -> None:
        before = await feed(phone, "health_metric")
        answer = await phone.call("POST", "/health_metrics", json={"id": str(uuid4()), **METRIC, **change})
        assert answer.status_code == 400, answer.text
        assert answer.json().keys() == {"detail"}
        assert answer.json()["detail"].startswith(f"{field}: ")
        assert await feed(phone, "health_metric") == before

    @pytest.mark.parametrize("body", [b"", b"null", b"7", b'"x"', b"{", b"[]", b"{}", b'{"health_metrics": {}}'])
    async def test_a_body_that_holds_none_is_refused(self, phone: Phone, body: bytes) -> None:
        answer = await phone.call("POST", "/health_metrics", content=body)
        assert (answer.status_code, list(answer.json())) == (400, ["detail"])


class TestManyMetrics:
    @pytest.mark.parametrize("wrapped", [True, False])
    async def test_a_bad_item_does_not_stop_the_others(self, edge: Edge, wrapped: bool) -> None:
        phone = await edge.phone()
        items: list[Any] = [
            {"id": "a", **METRIC},
            {"id": "b", "type": "steps", "value": []},
            7,
            {"id": "a", **METRIC},
            {"id": "a", **METRIC, "value": 70},
            {"id": "a b", **METRIC},
            METRIC,
        ]
        answer = await phone.call("POST", "/health_metrics", json={"health_metrics": items} if wrapped else items)
        body = answer.json()
        assert answer.status_code == 200, answer.text
        statuses = [one["status"] for one in body["results"]]
        assert statuses == ["created", "error", "error", "duplicate", "updated", "error", "created"]
        assert [one["id"] for one in body["results"]][:6] == ["a", "b", "", "a", "a", "a b"]
        assert [one["error"]["field"] for one in body["results"] if one.get("error")] == [
            "health_metrics[1].value",
            "health_metrics[2]",
            "health_metrics[5].id",
        ]
        counts = {"created": 2, "updated": 1, "duplicates": 1, "conflicts": 0, "failed": 3}
        assert {name: body[name] for name in counts} == counts
        assert sorted(one["value"] for one in await listed(phone)) == [62, 70]

    async def test_a_repeat_with_its_key_is_answered_as_before(self, edge: Edge) -> None:
        phone = await edge.phone()
        items = {"health_metrics": [{"type": "mood", "value": 4}, {"type": "mood"}]}
        answers = [
            await phone.call("POST", "/health_metrics", json=items, headers={"idempotency-key": "k"}) for _ in range(2)
        ]
        assert answers[0].json() == answers[1].json()
        assert len(await listed(phone)) == 1
        other = await phone.call(
            "POST", "/health_metrics", json={"health_metrics": [METRIC]}, headers={"idempotency-key": "k"}
        )
        assert (other.status_code, list(other.json())) == (409, ["detail"])

    async def test_more_than_a_thousand_are_refused(self, phone: Phone) -> None:
        answer = await phone.call("POST", "/health_metrics", json=[METRIC] * 1001)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("health_metrics: ")

    async def test_the_same_over_grpc(self, edge: Edge) -> None:
        phone = await edge.phone()
        good = json_format.ParseDict({"id": "a", **METRIC}, metrics_pb2.HealthMetric())
        bad = metrics_pb2.HealthMetric(id="b", type="steps")
        async with grpc.aio.insecure_channel(edge.target) as channel:
            stub = metrics_grpc.HealthMetricServiceStub(channel)
            request = metrics_pb2.CreateHealthMetricsRequest(health_metrics=[good, bad])
            answer = await stub.CreateHealthMetrics(request, metadata=phone.metadata, timeout=20)
            assert [one.status for one in answer.results] == ["created", "error"]
            assert answer.results[1].error.field == "health_metrics[1].value"
            found = await stub.ListHealthMetrics(
                metrics_pb2.ListHealthMetricsRequest(), metadata=phone.metadata, timeout=20
            )
        assert list(found.health_metrics) == [good]
        assert await listed(phone) == [{"id": "a", **METRIC}]

    def test_a_metric_survives_the_way_through_a_message(self) -> None:
        sent = metrics_convert.metric_from_json({"id": "a", **METRIC})
        assert metrics_convert.metric_from_pb(metrics_convert.metric_to_pb("a", sent.data)) == sent
        bare = metrics_convert.metric_from_json({"id": "a", "type": "mood", "value": 0})
        assert metrics_convert.metric_from_pb(metrics_convert.metric_to_pb("a", bare.data)) == bare


class TestTheListOfMetrics:
    @pytest.fixture
    async def owner(self, edge: Edge) -> Phone:
        phone = await edge.phone()
        days = [{"id": f"w{day}", "type": "weight", "value": day, "calendar_date": f"2026-02-0{day}"} for day in (1, 3)]
        moments = [
            {"id": f"h{hour}", "type": "heart_rate", "value": hour, "timestamp": f"2026-02-02T{hour}:00:00+01:00"}
            for hour in (10, 12)
        ]
        answer = await phone.call("POST", "/health_metrics", json=[*days, *moments])
        assert answer.json()["created"] == 4
        return phone

    @pytest.mark.parametrize(
        ("query", "ids"),
        [
            ({}, ["w3", "h12", "h10", "w1"]),
            ({"type": "weight"}, ["w3", "w1"]),
            ({"type": "nothing"}, []),
            ({"from": "2026-02-02"}, ["w3", "h12", "h10"]),
            ({"from": "2026-02-02T09:00:00Z", "to": "2026-02-02T11:00:00Z"}, ["h10"]),
            ({"from": "2026-02-02T12:00:00+01:00"}, ["w3", "h12"]),
            ({"to": "2026-02-02"}, ["h12", "h10", "w1"]),
            ({"to": "2026-02-01", "type": "weight"}, ["w1"]),
            ({"to": "9999-12-31"}, ["w3", "h12", "h10", "w1"]),
            ({"from": "2026-02-03", "to": "2026-02-01"}, []),
        ],
        ids=str,
    )
    async def test_it_is_what_was_asked_for_newest_first(
        self, owner: Phone, query: dict[str, str], ids: list[str]
    ) -> None:
        assert [one["id"] for one in await listed(owner, **query)] == ids

    async def test_it_comes_in_pages(self, owner: Phone) -> None:
        ids: list[str] = []
        token = ""
        for _ in range(4):
            query = {"page_size": 1, "page_token": token}
            page = (await owner.call("GET", "/health_metrics", params=query)).json()
            ids += [one["id"] for one in page["health_metrics"]]
            token = page["next_page_token"]
        assert (ids, token) == (["w3", "h12", "h10", "w1"], "")

    async def test_it_holds_nothing_of_anybody_else_and_nothing_deleted(self, edge: Edge, owner: Phone) -> None:
        assert await listed(await edge.phone()) == []
        change = {"domain": "health_metric", "id": "w3", "operation": "DELETE", "base_version": 1}
        await owner.call("POST", "/api/v1/sync/push", json={"changes": [change]})
        assert [one["id"] for one in await listed(owner, type="weight")] == ["w1"]

    async def test_it_holds_what_was_pushed_as_a_record(self, edge: Edge) -> None:
        phone = await edge.phone()
        changes = [
            {"domain": "health_metric", "id": id, "operation": "UPSERT", "data": data}
            for id, data in (("timed", METRIC), ("untimed", {"type": "mood", "value": "fine", "own": 1}))
        ]
        answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
        assert [one["status"] for one in answer.json()["receipts"]] == ["APPLIED", "APPLIED"]
        assert [one["id"] for one in await listed(phone)] == ["untimed", "timed"]

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("from=x", "from"),
            ("from=2026-13-01", "from"),
            ("to=%00", "to"),
            ("to=yesterday", "to"),
            (f"type={'x' * 65}", "type"),
            ("type=%00", "type"),
            ("page_size=1001", "page_size"),
            ("page_size=x", "page_size"),
            ("page_token=!", "page_token"),
        ],
    )
    async def test_a_bad_question_is_refused(self, phone: Phone, query: str, field: str) -> None:
        answer = await phone.call("GET", f"/health_metrics?{query}")
        assert answer.status_code == 400, answer.text
        assert answer.json()["detail"].startswith(f"{field}: ")


class TestPlans:
    async def test_a_plan_is_stored_shown_and_synced(self, phone: Phone) -> None:
        id = str(uuid4())
        answer = await phone.call("POST", "/workout_plans", json={"id": id, **PLAN})
        assert (answer.status_code, answer.json()) == (201, {"id": id, **PLAN})
        answer = await phone.call("GET", f"/workout_plans/{id}")
        assert (answer.status_code, answer.json()) == (200, {"id": id, **PLAN})
        assert (id, 1, PLAN) in await feed(phone, "workout_plan")

    async def test_a_plan_that_was_pushed_as_a_record_is_shown(self, phone: Phone) -> None:
        change = {"domain": "workout_plan", "id": "pushed", "operation": "UPSERT", "data": {"name": "x", "steps": []}}
        await phone.call("POST", "/api/v1/sync/push", json={"changes": [change]})
        shown = (await phone.call("GET", "/workout_plans/pushed")).json()
        assert shown == {"id": "pushed", "name": "x", "sport": "", "scheduled_date": "", "steps": []}

    async def test_the_same_without_an_id_is_the_same_plan(self, edge: Edge) -> None:
        phone = await edge.phone()
        ids = {(await phone.call("POST", "/workout_plans", json=PLAN)).json()["id"] for _ in range(3)}
        assert len(ids) == 1
        assert len(await feed(phone, "workout_plan")) == 1

    async def test_other_content_under_its_id_wins(self, edge: Edge) -> None:
        phone = await edge.phone()
        for name in ("first", "second"):
            answer = await phone.call("POST", "/workout_plans", json={"id": "p", **PLAN, "name": name})
            assert (answer.status_code, answer.json()["name"]) == (201, name)
        assert (await phone.call("GET", "/workout_plans/p")).json()["name"] == "second"

    async def test_where_the_server_wins_the_phone_is_told_so(self, edge: Edge) -> None:
        tenant = 4712
        headers = admin_of(edge, tenant)
        answer = await edge.http.put(
            f"/api/v1/sync/policies/{tenant}/workout_plan", json={"resolution_policy": "server_wins"}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        phone = await edge.phone(tenant_id=tenant)
        await phone.call("POST", "/workout_plans", json={"id": "p", **PLAN})
        key = {"idempotency-key": "k"}
        for _ in range(2):
            answer = await phone.call("POST", "/workout_plans", json={"id": "p", **PLAN, "name": "x"}, headers=key)
            assert (answer.status_code, list(answer.json())) == (409, ["detail"])
        assert (await phone.call("GET", "/workout_plans/p")).json()["name"] == PLAN["name"]

    async def test_somebody_elses_is_forbidden_and_no_ones_is_not_found(self, edge: Edge) -> None:
        owner, other = await edge.phone(), await edge.phone()
        id = str(uuid4())
        await owner.call("POST", "/workout_plans", json={"id": id, **PLAN})
        answer = await other.call("GET", f"/workout_plans/{id}")
        assert (answer.status_code, answer.json()) == (403, {"detail": "This plan belongs to somebody else."})
        answer = await other.call("GET", f"/workout_plans/{uuid4()}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such plan."})
        change = {"domain": "workout_plan", "id": id, "operation": "DELETE", "base_version": 1}
        await owner.call("POST", "/api/v1/sync/push", json={"changes": [change]})
        for phone in (owner, other):
            assert (await phone.call("GET", f"/workout_plans/{id}")).status_code == 404

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": ""}, "name"),
            ({"name": None}, "name"),
            ({"name": 7}, "name"),
            ({"name": "x" * 201}, "name"),
            ({"name": "a\0b"}, "name"),
            ({"sport": "x" * 65}, "sport"),
            ({"scheduled_date": "soon"}, "scheduled_date"),
            ({"scheduled_date": "2026-02-30"}, "scheduled_date"),
            ({"steps": []}, "steps"),
            ({"steps": None}, "steps"),
            ({"steps": "x"}, "steps"),
            ({"steps": [{}]}, "steps[0].type"),
            ({"steps": [{"type": "interval"}, {"type": 7}]}, "steps[1].type"),
            ({"steps": [{"type": "interval"}] * 501}, "steps"),
            ({"steps": [{"type": "interval", "note": "x" * 300_000}]}, "steps"),
            ({"id": "a b"}, "id"),
            ({"id": 7}, "id"),
        ],
        ids=lambda value: str(value)[:40],
    )
    async def test_a_bad_plan_is_refused_by_its_field(self, phone: Phone, change: dict[str, Any], field: str) -> None:
        before = await feed(phone, "workout_plan")
        body = json.dumps({"id": str(uuid4()), **PLAN, **change})
        answer = await phone.call("POST", "/workout_plans", content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["detail"].startswith(f"{field}: ")
        assert await feed(phone, "workout_plan") == before

    @pytest.mark.parametrize("id", ["a%20b", "x" * 65, "a.b"])
    async def test_an_id_that_is_none_is_refused(self, phone: Phone, id: str) -> None:
        answer = await phone.call("GET", f"/workout_plans/{id}")
        assert (answer.status_code, list(answer.json())) == (400, ["detail"])
