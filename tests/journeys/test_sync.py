"""Sync as phones meet it: changes pushed, pulled, meeting each other, and what is made of it, by REST and by gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from random import randrange
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc

from runtime.telemetry import log_to_stderr
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, change, device_session, exercise_session, puzzle_session
from tests.streams import talking

PUSH, PULL, CONFLICTS = "/api/v1/sync/push", "/api/v1/sync/pull", "/api/v1/sync/conflicts"
OPTIONS = ["accept_server", "accept_client", "merge"]


def new_tenant() -> int:
    """A tenant that no other test decides for."""
    return randrange(1000, 2**31)


def at(minutes: float) -> str:
    """So many minutes after noon of a day long ago."""
    return (datetime(2026, 2, 26, 12, tzinfo=UTC) + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


async def another_device(phone: Phone) -> Phone:
    """The same user on another phone."""
    answer = await phone.http.post("/v1/auth/signin", json={"email": phone.email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return Phone(phone.http, phone.user_id, phone.email, body["access_token"], body["refresh_token"])


async def push(phone: Phone, *changes: Any, **given: Any) -> list[dict[str, Any]]:
    """The receipts of a push."""
    answer = await phone.call("POST", PUSH, json={"changes": list(changes), **given})
    assert answer.status_code == 200, answer.text
    receipts: list[dict[str, Any]] = answer.json()["receipts"]
    assert len(receipts) == len(changes)
    return receipts


async def pull(phone: Phone, **parameters: Any) -> dict[str, Any]:
    answer = await phone.call("GET", PULL, params=parameters)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def held(phone: Phone, one: dict[str, Any]) -> dict[str, Any] | None:
    """What the server holds of a pushed record; None: it is deleted."""
    page = await pull(phone, limit=1000)
    (found,) = [entry for entry in page["changes"] if (entry["domain"], entry["id"]) == (one["domain"], one["id"])]
    data: dict[str, Any] = found["data"]
    assert not found["deleted"] or data == {}
    return None if found["deleted"] else data


def statuses(receipts: Iterable[dict[str, Any]]) -> list[str]:
    return [receipt["status"] for receipt in receipts]


def refusal(answer: httpx.Response) -> tuple[int, str, list[str]]:
    """Status, code and the fields at fault."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], [one["field"] for one in error["details"]]


async def set_policy(administrator: Phone, tenant: int, domain: str, policy: str, **given: Any) -> dict[str, Any]:
    answer = await administrator.call(
        "PUT", f"/api/v1/sync/policies/{tenant}/{domain}", json={"resolution_policy": policy, **given}
    )
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def log(phone: Phone, **parameters: Any) -> dict[str, Any]:
    answer = await phone.call("GET", CONFLICTS, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def resolve(phone: Phone, conflict_id: str, resolution: str, **given: Any) -> httpx.Response:
    return await phone.call("POST", f"{CONFLICTS}/{conflict_id}/resolve", json={"resolution": resolution, **given})


def is_time(text: str) -> bool:
    return text.endswith("Z") and datetime.fromisoformat(text).tzinfo is not None


class TestSeed003:
    """The policy and the conflict log as they are printed."""

    async def test_a_policy_is_shown_as_printed(self, edge: Edge) -> None:
        administrator = await edge.administrator(tenant_id=123)
        await set_policy(administrator, 123, "journal", "most_recent_wins")
        answer = await administrator.call("GET", "/api/v1/sync/policies/123/journal")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        printed = {
            "tenant_id": 123,
            "domain": "journal",
            "resolution_policy": "most_recent_wins",
            "auto_resolve": True,
            "notify_on_conflict": False,
        }
        body = answer.json()
        assert body == printed
        assert [type(value) for value in body.values()] == [int, str, str, bool, bool]

    async def test_the_conflict_log_is_shown_as_printed(self, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phone = await edge.phone(tenant_id=tenant)
        await set_policy(administrator, tenant, "journal", "most_recent_wins")
        page = change()
        for number in range(5):
            await push(
                phone, {**page, "base_version": number, "data": {"text": f"{number}"}, "client_time": at(number)}
            )
        stale = {**page, "base_version": 4, "data": {"text": "stale"}, "client_time": at(-1)}
        others = [change() for _ in range(34)]
        assert statuses(await push(phone, stale, *others)) == ["CONFLICT", *["APPLIED"] * 34]
        body = await log(phone, tenant_id=tenant, domain="journal", since="2025-09-01")
        assert body.keys() >= {"conflicts", "total", "conflict_rate_pct"}
        assert (body["total"], body["conflict_rate_pct"]) == (1, 2.5)
        (conflict,) = body["conflicts"]
        assert is_time(conflict.pop("created_at"))
        assert isinstance(conflict.pop("id"), str)
        assert conflict.pop("losing_data") == {"text": "stale"}
        assert conflict.pop("user_id") == phone.user_id
        assert conflict == {
            "mobile_id": page["id"],
            "domain": "journal",
            "server_version": 5,
            "client_version": 4,
            "resolution_strategy": "most_recent_wins",
            "resolution_result": "resolved",
            "winning_version": "server",
        }

    async def test_with_no_conflicts_the_log_has_the_same_keys_and_types(self, phone: Phone) -> None:
        body = await log(phone)
        assert (body["conflicts"], body["total"], body["conflict_rate_pct"]) == ([], 0, 0)
        assert type(body["total"]) is int

    async def test_a_conflict_notice_has_the_fields_of_the_message(self, phone: Phone) -> None:
        order = change(domain="work_order", data={"title": "first"}, client_time=at(1))
        await push(phone, order)
        (receipt,) = await push(phone, {**order, "data": {"title": "other"}, "client_time": at(0)})
        assert receipt.keys() == {"domain", "id", "status", "version", "conflict"}
        notice = receipt["conflict"]
        assert isinstance(notice.pop("conflict_id"), str)
        assert notice == {
            "domain": "work_order",
            "mobile_id": order["id"],
            "server_version": 1,
            "client_version": 0,
            "server_data": {"title": "first"},
            "resolution_options": [],
        }

    async def test_no_rest_door_opens_without_a_token(self, edge: Edge) -> None:
        for verb, path in (("GET", PULL), ("POST", PUSH), ("GET", CONFLICTS), ("GET", "/api/v1/sync/policies/1/task")):
            answer = await edge.http.request(verb, path, json={} if verb == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "AUTH_001"), path


class TestPush:
    async def test_a_push_is_applied_and_pulled_back_by_another_device_as_it_was_sent(self, phone: Phone) -> None:
        data = {"text": "é\U0001f600", "n": 2**53 + 1, "x": [1.5, None, {"deep": True}], "": "empty", "big": 2**63 - 1}
        page = change(data=data)
        answer = await phone.call("POST", PUSH, json={"changes": [page]})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json().keys() == {"receipts", "server_time"}
        assert is_time(answer.json()["server_time"])
        assert answer.json()["receipts"] == [{"domain": "journal", "id": page["id"], "status": "APPLIED", "version": 1}]
        pulled = await pull(await another_device(phone))
        assert pulled.keys() == {"changes", "next_cursor", "has_more"}
        (entry,) = pulled["changes"]
        assert is_time(entry.pop("update_time"))
        assert entry == {"domain": "journal", "id": page["id"], "version": 1, "deleted": False, "data": data}
        assert (pulled["has_more"], type(pulled["next_cursor"])) == (False, str)

    @pytest.mark.parametrize("key", ["", "k1"])
    @pytest.mark.parametrize(
        "data",
        [
            '{"\\ud800": "\\ud800"}',
            '{"\\u0000k": "\\u0000"}',
            '{"v": [1e308, 1e308]}',
            '{"deep": {"small": -1e-300}}',
        ],
    )
    async def test_what_nobody_can_store_is_refused_alone_whatever_its_name(
        self, phone: Phone, data: str, key: str
    ) -> None:
        bad = f'{{"domain": "journal", "id": "bad", "operation": "UPSERT", "data": {data}}}'
        good = '{"domain": "journal", "id": "good", "operation": "UPSERT", "data": {"title": "x", "text": "1e308"}}'
        headers = {"content-type": "application/json", **({"idempotency-key": key} if key else {})}
        for again in range(2):
            answer = await phone.call("POST", PUSH, content=f'{{"changes": [{bad}, {good}]}}', headers=headers)
            assert answer.status_code == 200, answer.text
            first = "APPLIED" if key or not again else "DUPLICATE"
            assert statuses(answer.json()["receipts"]) == ["REJECTED", first]

    async def test_the_same_push_twice_is_a_duplicate_and_takes_no_new_position(self, phone: Phone) -> None:
        pages = [change(), change()]
        assert statuses(await push(phone, *pages)) == ["APPLIED", "APPLIED"]
        before = await pull(phone)
        assert [(one["status"], one["version"]) for one in await push(phone, *pages)] == [("DUPLICATE", 1)] * 2
        assert await pull(phone) == before
        assert (await pull(phone, cursor=before["next_cursor"]))["changes"] == []

    async def test_a_record_grows_by_one_version_with_each_accepted_change(self, phone: Phone) -> None:
        page = change()
        for version in range(4):
            (receipt,) = await push(phone, {**page, "base_version": version, "data": {"text": str(version)}})
            assert (receipt["status"], receipt["version"]) == ("APPLIED", version + 1)

    async def test_changes_of_one_record_in_one_push_build_on_each_other(self, phone: Phone) -> None:
        page = change()
        chain = [{**page, "base_version": version, "data": {"text": str(version)}} for version in range(3)]
        assert [one["version"] for one in await push(phone, *chain)] == [1, 2, 3]
        assert await held(phone, page) == {"text": "2"}

    async def test_a_repeat_with_its_key_replays_the_receipts(self, phone: Phone) -> None:
        order = change(domain="work_order", data={"title": "first"}, client_time=at(1))
        await push(phone, order)
        changes = [change(), {**order, "data": {"title": "x"}, "client_time": at(0)}, change(domain="nope"), {}, 7]
        for how in ({"headers": {"idempotency-key": str(uuid4())}}, {}):
            inside = {} if how else {"idempotency_key": str(uuid4())}
            first = await phone.call("POST", PUSH, json={"changes": changes, **inside}, **how)
            again = await phone.call("POST", PUSH, json={"changes": changes, **inside}, **how)
            assert (first.status_code, again.status_code) == (200, 200)
            assert again.json()["receipts"] == first.json()["receipts"]
        assert statuses(first.json()["receipts"])[1:] == ["CONFLICT", *["REJECTED"] * 3]
        assert (await log(phone))["total"] == 2

    async def test_the_same_push_from_many_sides_at_once_is_applied_once(self, phone: Phone) -> None:
        body = {"changes": [change(), change()], "idempotency_key": str(uuid4())}
        answers = await asyncio.gather(*(phone.call("POST", PUSH, json=body) for _ in range(4)))
        assert [statuses(answer.json()["receipts"]) for answer in answers] == [["APPLIED", "APPLIED"]] * 4
        assert [one["version"] for one in (await pull(phone))["changes"]] == [1, 1]

    async def test_a_key_that_was_used_for_other_content_is_a_conflict(self, phone: Phone) -> None:
        headers = {"idempotency-key": str(uuid4())}
        await phone.call("POST", PUSH, json={"changes": [change()]}, headers=headers)
        before = await pull(phone)
        answer = await phone.call("POST", PUSH, json={"changes": [change()]}, headers=headers)
        assert refusal(answer) == (409, "SYNC_003", [])
        assert await pull(phone) == before

    async def test_deletions_come_as_tombstones_and_a_record_may_come_back(self, phone: Phone) -> None:
        page = change()
        await push(phone, page)
        start = (await pull(phone))["next_cursor"]
        deletion = {**page, "base_version": 1, "operation": "DELETE"}
        (receipt,) = await push(phone, deletion)
        assert (receipt["status"], receipt["version"]) == ("APPLIED", 2)
        (entry,) = (await pull(phone, cursor=start))["changes"]
        assert (entry["version"], entry["deleted"], entry["data"]) == (2, True, {})
        assert statuses(await push(phone, deletion)) == ["DUPLICATE"]
        (receipt,) = await push(phone, {**page, "base_version": 2})
        assert (receipt["status"], receipt["version"]) == ("APPLIED", 3)
        assert await held(phone, page) == page["data"]

    async def test_deleting_what_was_never_there_is_a_duplicate_and_leaves_nothing(self, phone: Phone) -> None:
        (receipt,) = await push(phone, change(operation="DELETE"))
        assert (receipt["status"], receipt["version"]) == ("DUPLICATE", 0)
        assert (await pull(phone))["changes"] == []

    async def test_operations_are_read_in_any_case(self, phone: Phone) -> None:
        page = change(operation="upsert")
        assert statuses(await push(phone, page, {**page, "operation": "Delete", "base_version": 1})) == ["APPLIED"] * 2
        assert await held(phone, page) is None

    @pytest.mark.parametrize(
        ("bad", "reason", "field"),
        [
            ({"domain": "nope"}, "FIELD_INVALID", "domain"),
            ({"domain": None}, "FIELD_MISSING", "domain"),
            ({"domain": 7}, "FIELD_INVALID", "domain"),
            ({"id": ""}, "FIELD_MISSING", "id"),
            ({"id": 7}, "FIELD_INVALID", "id"),
            ({"id": "a b"}, "FIELD_INVALID", "id"),
            ({"operation": "MERGE"}, "FIELD_INVALID", "operation"),
            ({"operation": None}, "FIELD_MISSING", "operation"),
            ({"operation": 7}, "FIELD_INVALID", "operation"),
            ({"base_version": -1}, "FIELD_INVALID", "base_version"),
            ({"base_version": "1"}, "FIELD_INVALID", "base_version"),
            ({"base_version": True}, "FIELD_INVALID", "base_version"),
            ({"client_time": "yesterday"}, "FIELD_INVALID", "client_time"),
            ({"client_time": 1772100000}, "FIELD_INVALID", "client_time"),
            ({"atomic_group": 7}, "FIELD_INVALID", "atomic_group"),
            ({"data": None}, "FIELD_MISSING", "data"),
            ({"data": "text"}, "FIELD_INVALID", "data"),
            ({"data": []}, "FIELD_INVALID", "data"),
            ({"data": {"text": 7}}, "FIELD_INVALID", "data.text"),
            ({"data": {"photo": "x" * 262_144}}, "FIELD_INVALID", "data.photo"),
            ({"domain": "task", "data": {}}, "FIELD_MISSING", "data.title"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
    )
    async def test_a_bad_change_is_rejected_by_name_and_its_neighbours_are_stored(
        self, phone: Phone, bad: dict[str, Any], reason: str, field: str
    ) -> None:
        good = [change(), change()]
        receipts = await push(phone, good[0], change(**bad), good[1])
        assert statuses(receipts) == ["APPLIED", "REJECTED", "APPLIED"]
        receipt = receipts[1]
        assert (receipt["reason"], receipt["field"]) == (reason, f"changes[1].{field}")
        assert receipt["message"].startswith(f"changes[1].{field}: ")
        assert receipt["version"] == 0
        assert [one["id"] for one in (await pull(phone))["changes"]] == [one["id"] for one in good]

    async def test_a_bad_change_of_a_known_record_is_told_its_version(self, phone: Phone) -> None:
        page = change()
        await push(phone, page)
        (receipt,) = await push(phone, {**page, "base_version": 1, "data": {"text": 7}})
        assert (receipt["status"], receipt["id"]) == ("REJECTED", page["id"])
        assert await held(phone, page) == page["data"]

    async def test_a_record_of_256_kib_is_stored_and_a_larger_one_is_not(self, phone: Phone) -> None:
        most = 256 * 1024 - len('{"photo":""}')
        receipts = await push(phone, *(change(data={"photo": "x" * size}) for size in (most, most + 1)))
        assert statuses(receipts) == ["APPLIED", "REJECTED"]

    async def test_1001_changes_and_none_are_refused_whole(self, phone: Phone) -> None:
        answer = await phone.call("POST", PUSH, json={"changes": [change()] * 1001})
        assert refusal(answer) == (400, "SYNC_001", ["changes"])
        for document in ({"changes": []}, {}):
            assert refusal(await phone.call("POST", PUSH, json=document)) == (400, "SYNC_002", ["changes"])
        assert (await pull(phone))["changes"] == []

    async def test_the_free_tier_has_room_for_one_puzzle_a_day_by_this_door_too(self, phone: Phone) -> None:
        puzzles = [puzzle_session() for _ in range(2)]
        receipts = await push(phone, *(change(domain="puzzle", id=one.pop("id"), data=one) for one in puzzles))
        assert [(one["status"], one.get("reason")) for one in receipts] == [
            ("APPLIED", None),
            ("REJECTED", "TIER_LIMIT"),
        ]


class TestPull:
    async def test_a_record_changed_twice_between_pulls_appears_once_at_its_last_position(self, phone: Phone) -> None:
        first, second = change(), change()
        await push(phone, first, second)
        start = (await pull(phone, limit=1))["next_cursor"]
        for version in (1, 2):
            await push(phone, {**first, "base_version": version, "data": {"text": str(version)}})
        page = await pull(phone, cursor=start)
        assert [(one["id"], one["version"]) for one in page["changes"]] == [(second["id"], 1), (first["id"], 3)]

    @pytest.mark.parametrize("limit", [1, 2, 7])
    async def test_pages_cover_everything_while_somebody_writes(self, phone: Phone, limit: int) -> None:
        before = [change() for _ in range(10)]
        await push(phone, *before)
        writer = await another_device(phone)
        meanwhile = [change() for _ in range(8)]

        async def write() -> None:
            for one in meanwhile:
                await push(writer, one)
            await push(writer, {**before[0], "base_version": 1, "data": {"text": "again"}})

        writing = asyncio.create_task(write())
        seen: list[tuple[str, int]] = []
        cursor, more = "", True
        while more or not writing.done():
            page = await pull(phone, cursor=cursor, limit=limit)
            assert len(page["changes"]) <= limit
            seen += [(one["id"], one["version"]) for one in page["changes"]]
            cursor, more = page["next_cursor"], page["has_more"]
        await writing
        page = await pull(phone, cursor=cursor, limit=1000)
        seen += [(one["id"], one["version"]) for one in page["changes"]]
        assert len(seen) == len(set(seen)), "a version came twice"
        assert dict(seen) == {before[0]["id"]: 2, **{one["id"]: 1 for one in (*before[1:], *meanwhile)}}
        assert seen[-1] == (before[0]["id"], 2)

    async def test_only_the_wanted_domains_come(self, phone: Phone) -> None:
        changes = [
            change(),
            change(domain="task", data={"title": "x"}),
            change(domain="ticket", data={"title": "x"}),
            change(),
        ]
        await push(phone, *changes)
        for wanted in (["task"], ["task", "journal"], ["task,journal"], ["task,,ticket", "journal"], [""], ["stats"]):
            names = {name for text in wanted for name in text.split(",") if name}
            page = await pull(phone, domains=wanted)
            expected = [one["id"] for one in changes if not names or one["domain"] in names]
            assert [one["id"] for one in page["changes"]] == expected, wanted
        first = await pull(phone, domains="journal", limit=1)
        second = await pull(phone, domains="journal", limit=1, cursor=first["next_cursor"])
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert [one["id"] for one in (*first["changes"], *second["changes"])] == [changes[0]["id"], changes[3]["id"]]

    async def test_an_unknown_domain_is_refused_by_name(self, phone: Phone) -> None:
        for domains in ("nope", "task,nope"):
            answer = await phone.call("GET", PULL, params={"domains": domains})
            assert refusal(answer) == (400, "SYNC_001", ["domains"])

    async def test_without_a_limit_a_page_has_a_hundred_and_1000_is_the_most(self, phone: Phone) -> None:
        await push(phone, *(change(data={}) for _ in range(101)))
        for parameters in ({}, {"limit": 0}):
            page = await pull(phone, **parameters)
            assert (len(page["changes"]), page["has_more"]) == (100, True)
        assert len((await pull(phone, limit=1000))["changes"]) == 101
        for limit in (1001, -1):
            assert refusal(await phone.call("GET", PULL, params={"limit": limit})) == (400, "SYNC_001", ["limit"])

    async def test_the_page_that_ends_with_the_feed_says_so(self, phone: Phone) -> None:
        await push(phone, change(), change())
        assert [(await pull(phone, limit=limit))["has_more"] for limit in (1, 2, 3)] == [True, False, False]

    async def test_a_cursor_that_this_feed_did_not_give_is_refused(self, edge: Edge, phone: Phone) -> None:
        stranger = await edge.phone()
        await push(stranger, change())
        foreign = (await pull(stranger))["next_cursor"]
        own = (await pull(phone))["next_cursor"]
        for cursor in (foreign, own[:-2], own[1:], own + "AAAA", "made-up", "A" * len(own), "0", "é", "%"):
            answer = await phone.call("GET", PULL, params={"cursor": cursor})
            assert refusal(answer) == (400, "SYNC_001", ["cursor"]), cursor

    async def test_the_cursor_of_an_empty_feed_is_where_the_first_change_comes(self, phone: Phone) -> None:
        start = await pull(phone)
        assert (start["changes"], start["has_more"]) == ([], False)
        page = change()
        await push(phone, page)
        assert [one["id"] for one in (await pull(phone, cursor=start["next_cursor"]))["changes"]] == [page["id"]]

    async def test_what_one_user_pushed_no_other_pulls(self, edge: Edge, phone: Phone) -> None:
        page = change()
        await push(phone, page)
        stranger = await edge.phone()
        assert (await pull(stranger))["changes"] == []
        assert statuses(await push(stranger, {**page, "data": {"text": "mine"}})) == ["APPLIED"]
        assert await held(phone, page) == page["data"]

    async def test_typed_uploads_come_in_the_same_feed(self, phone: Phone) -> None:
        recording, puzzle, exercise = device_session(), puzzle_session(), exercise_session(id=str(uuid4()))
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": [recording]})
        await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle]})
        await phone.call("POST", "/sessions", json=exercise)
        page = await pull(phone)
        assert [(one["domain"], one["id"], one["version"]) for one in page["changes"]] == [
            ("bike", recording["client_session_id"], 1),
            ("puzzle", puzzle["id"], 1),
            ("exercise", exercise["id"], 1),
        ]
        assert page["changes"][1]["data"] == {name: value for name, value in puzzle.items() if name != "id"}

    async def test_what_a_device_deletes_is_gone_from_the_typed_doors(self, phone: Phone) -> None:
        recording, puzzle = device_session(), puzzle_session()
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": [recording]})
        await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle]})
        gone = {"operation": "DELETE", "base_version": 1}
        device = await another_device(phone)
        await push(device, change(domain="bike", id=recording["client_session_id"], **gone))
        await push(device, change(domain="puzzle", id=puzzle["id"], **gone))
        assert (await phone.call("GET", "/v1/sessions")).json()["sessions"] == []
        assert (await phone.call("GET", "/users/me/stats")).json()["total_sessions"] == 0

    async def test_a_pushed_puzzle_is_listed_by_the_typed_door(self, phone: Phone) -> None:
        puzzle = puzzle_session()
        data = {name: value for name, value in puzzle.items() if name != "id"}
        await push(phone, change(domain="puzzle", id=puzzle["id"], data=data))
        assert (await phone.call("GET", "/v1/sessions")).json()["sessions"] == [puzzle]


class TestAtomicGroups:
    async def test_a_good_group_is_applied_whole(self, phone: Phone) -> None:
        assert statuses(await push(phone, change(), change(), atomic_group="g")) == ["APPLIED"] * 2

    async def test_a_bad_member_keeps_all_of_its_group_out_and_nobody_else(self, phone: Phone) -> None:
        known = change()
        await push(phone, known)
        before = await pull(phone)
        update = {**known, "base_version": 1, "data": {"text": "new"}, "atomic_group": "g"}
        alone = change()
        changes = [
            update,
            change(atomic_group="g", data={"text": 7}),
            alone,
            change(atomic_group="g"),
            change(atomic_group="other"),
        ]
        receipts = await push(phone, *changes)
        assert [(one["status"], one["version"], one.get("reason")) for one in receipts] == [
            ("REJECTED", 1, "ATOMIC_GROUP"),
            ("REJECTED", 0, "FIELD_INVALID"),
            ("APPLIED", 1, None),
            ("REJECTED", 0, "ATOMIC_GROUP"),
            ("APPLIED", 1, None),
        ]
        assert receipts[1]["field"] == "changes[1].data.text"
        page = await pull(phone, cursor=before["next_cursor"])
        assert [one["id"] for one in page["changes"]] == [alone["id"], changes[4]["id"]]
        assert await held(phone, known) == known["data"]

    async def test_a_conflicting_member_keeps_all_of_its_group_out_and_is_logged(self, phone: Phone) -> None:
        order = change(domain="work_order", data={"title": "first"}, client_time=at(1))
        await push(phone, order)
        stale = {**order, "data": {"title": "stale"}, "client_time": at(0)}
        receipts = await push(phone, change(), stale, change(), atomic_group="g")
        assert [(one["status"], one["version"]) for one in receipts] == [
            ("REJECTED", 0),
            ("CONFLICT", 1),
            ("REJECTED", 0),
        ]
        assert [one["reason"] for one in receipts if "reason" in one] == ["ATOMIC_GROUP"] * 2
        (entry,) = (await pull(phone))["changes"]
        assert (entry["id"], entry["version"]) == (order["id"], 1)
        (logged,) = (await log(phone))["conflicts"]
        assert (logged["id"], logged["losing_data"]) == (receipts[1]["conflict"]["conflict_id"], {"title": "stale"})

    async def test_of_two_groups_each_stands_or_falls_alone(self, phone: Phone) -> None:
        changes = [
            change(atomic_group="a"),
            change(atomic_group="b"),
            change(atomic_group="a"),
            change(atomic_group="b", operation="MERGE"),
        ]
        receipts = await push(phone, *changes)
        assert statuses(receipts) == ["APPLIED", "REJECTED", "APPLIED", "REJECTED"]
        assert [one["id"] for one in (await pull(phone))["changes"]] == [changes[0]["id"], changes[2]["id"]]

    async def test_a_group_of_the_request_holds_whoever_names_none(self, phone: Phone) -> None:
        receipts = await push(
            phone, change(), change(atomic_group="own"), change(domain="nope"), atomic_group="request"
        )
        assert statuses(receipts) == ["REJECTED", "APPLIED", "REJECTED"]

    async def test_duplicates_do_not_sink_their_group(self, phone: Phone) -> None:
        known = change()
        await push(phone, known)
        assert statuses(await push(phone, known, change(), atomic_group="g")) == ["DUPLICATE", "APPLIED"]

    async def test_a_failed_group_may_be_sent_again_once_it_is_mended(self, phone: Phone) -> None:
        changes = [change(), change(data={"text": 7})]
        assert statuses(await push(phone, *changes, atomic_group="g")) == ["REJECTED"] * 2
        changes[1]["data"] = {"text": "seven"}
        assert [one["version"] for one in await push(phone, *changes, atomic_group="g")] == [1, 1]

    async def test_a_puzzle_over_the_free_tier_sinks_its_group(self, phone: Phone) -> None:
        puzzles = [puzzle_session() for _ in range(2)]
        changes = [change(domain="puzzle", id=one.pop("id"), data=one) for one in puzzles]
        receipts = await push(phone, *changes, atomic_group="g")
        assert [one["reason"] for one in receipts] == ["ATOMIC_GROUP", "TIER_LIMIT"]
        assert (await pull(phone))["changes"] == []


SERVER = {"title": "server", "status": "open", "escalation_level": 2}
CLIENT = {"title": "client", "status": "shut", "note": "x"}
MERGED = {"title": "client", "status": "open", "note": "x", "escalation_level": 2}


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "minutes", "status", "winner", "stored", "losing"),
        [
            ("client_wins", -1, "APPLIED", "client", CLIENT, SERVER),
            ("server_wins", 1, "CONFLICT", "server", SERVER, CLIENT),
            ("most_recent_wins", 1, "APPLIED", "client", CLIENT, SERVER),
            ("most_recent_wins", 0, "CONFLICT", "server", SERVER, CLIENT),
            ("most_recent_wins", -1, "CONFLICT", "server", SERVER, CLIENT),
            ("preserve_escalation", -1, "APPLIED", "merged", MERGED, CLIENT),
            ("manual", 1, "CONFLICT", "none", SERVER, CLIENT),
        ],
    )
    async def test_who_wins_what_is_stored_told_and_logged(
        self, edge: Edge, policy: str, minutes: int, status: str, winner: str, stored: Any, losing: Any
    ) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phone = await edge.phone(tenant_id=tenant)
        await set_policy(administrator, tenant, "ticket", policy)
        ticket = change(domain="ticket", data=SERVER, client_time=at(0))
        await push(phone, ticket)
        before = (await pull(phone))["next_cursor"]
        other = await another_device(phone)
        (receipt,) = await push(other, {**ticket, "data": CLIENT, "client_time": at(minutes)})
        version = 2 if status == "APPLIED" else 1
        assert (receipt["status"], receipt["version"]) == (status, version)
        assert await held(phone, ticket) == stored
        assert len((await pull(phone, cursor=before))["changes"]) == (status == "APPLIED")
        notice = receipt["conflict"]
        assert (notice["server_version"], notice["client_version"], notice["server_data"]) == (1, 0, SERVER)
        assert notice["resolution_options"] == (OPTIONS if policy == "manual" else [])
        (logged,) = (await log(phone))["conflicts"]
        assert (logged["id"], logged["mobile_id"]) == (notice["conflict_id"], ticket["id"])
        assert (logged["resolution_strategy"], logged["winning_version"]) == (policy, winner)
        assert logged["resolution_result"] == ("manual_required" if policy == "manual" else "resolved")
        assert logged["losing_data"] == losing

    async def test_a_merge_that_grows_too_large_is_refused_alone(self, phone: Phone) -> None:
        ticket = change(domain="ticket", data={"title": "t", "status": "open", "escalated_by": "somebody"})
        await push(phone, ticket)
        large = {**ticket, "base_version": 0, "data": {"title": "t", "y": "z" * (256 * 1024 - 60)}}
        assert statuses(await push(phone, change(), large, change())) == ["APPLIED", "REJECTED", "APPLIED"]

    @pytest.mark.parametrize(
        ("policy", "deletes", "status"),
        [
            ("client_wins", "client", "APPLIED"),
            ("client_wins", "server", "APPLIED"),
            ("server_wins", "client", "CONFLICT"),
            ("server_wins", "server", "CONFLICT"),
            ("preserve_escalation", "client", "CONFLICT"),
            ("preserve_escalation", "server", "APPLIED"),
        ],
    )
    async def test_where_one_side_is_a_deletion(self, edge: Edge, policy: str, deletes: str, status: str) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        await set_policy(administrator, tenant, "ticket", policy)
        ticket = change(domain="ticket", data=SERVER)
        await push(administrator, ticket)
        if deletes == "server":
            await push(administrator, {**ticket, "operation": "DELETE", "base_version": 1})
        client = {"operation": "DELETE"} if deletes == "client" else {"data": CLIENT}
        (receipt,) = await push(administrator, {**ticket, "base_version": 0, **client})
        assert receipt["status"] == status
        assert receipt["conflict"]["server_data"] == (None if deletes == "server" else SERVER)
        on_server = None if deletes == "server" else SERVER
        on_client = None if deletes == "client" else CLIENT
        assert await held(administrator, ticket) == (on_client if status == "APPLIED" else on_server)
        (logged,) = (await log(administrator))["conflicts"]
        assert logged["losing_data"] == ((on_server if status == "APPLIED" else on_client) or {})

    async def test_a_clock_that_is_ahead_wins_once_and_not_for_ever(self, phone: Phone) -> None:
        task = change(domain="task", data={"title": "a"}, client_time=at(0))
        await push(phone, task)
        (receipt,) = await push(phone, {**task, "data": {"title": "b"}, "client_time": "2100-01-01T00:00:00Z"})
        assert (receipt["status"], receipt["version"]) == ("APPLIED", 2)
        (receipt,) = await push(phone, {**task, "data": {"title": "c"}, "client_time": None})
        assert (receipt["status"], receipt["version"]) == ("APPLIED", 3)
        assert await held(phone, task) == {"title": "c"}

    async def test_the_defaults_are_those_of_the_domains(self, edge: Edge) -> None:
        tenant = new_tenant()
        phone = await edge.phone(tenant_id=tenant)
        for domain, policy in (
            *((name, "client_wins") for name in ("session", "puzzle", "bike", "stats", "journal", "health_metric")),
            ("attendance", "server_wins"),
            ("task", "most_recent_wins"),
            ("work_order", "most_recent_wins"),
            ("ticket", "preserve_escalation"),
        ):
            answer = await phone.call("GET", f"/api/v1/sync/policies/{tenant}/{domain}")
            assert answer.json() == {
                "tenant_id": tenant,
                "domain": domain,
                "resolution_policy": policy,
                "auto_resolve": True,
                "notify_on_conflict": False,
            }

    async def test_what_is_set_is_told_and_read_back(self, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        for given, auto in (
            ({"resolution_policy": "manual"}, False),
            ({"resolution_policy": "manual", "auto_resolve": False, "notify_on_conflict": True}, False),
            ({"resolution_policy": "client_wins", "auto_resolve": False}, False),
            ({"resolution_policy": "server_wins"}, True),
        ):
            path = f"/api/v1/sync/policies/{tenant}/task"
            answer = await administrator.call("PUT", path, json=given)
            expected = {
                "tenant_id": tenant,
                "domain": "task",
                "notify_on_conflict": False,
                **given,
                "auto_resolve": auto,
            }
            assert answer.status_code == 200
            assert {name: value for name, value in answer.json().items() if name != "dry_run"} == expected
            assert (await administrator.call("GET", path)).json() == expected

    async def test_manual_does_not_resolve_by_itself(self, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        path = f"/api/v1/sync/policies/{tenant}/task"
        before = (await administrator.call("GET", path)).json()
        for given, field in (
            ({"resolution_policy": "manual", "auto_resolve": True}, "auto_resolve"),
            ({"resolution_policy": "newest"}, "resolution_policy"),
        ):
            assert refusal(await administrator.call("PUT", path, json=given)) == (400, "SYNC_001", [field])
        assert (await administrator.call("GET", path)).json() == before

    async def test_a_policy_that_does_not_resolve_by_itself_leaves_the_conflict_open(self, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        await set_policy(administrator, tenant, "journal", "client_wins", auto_resolve=False)
        page = change()
        await push(administrator, page)
        (receipt,) = await push(administrator, {**page, "data": {"text": "other"}})
        assert (receipt["status"], receipt["conflict"]["resolution_options"]) == ("CONFLICT", OPTIONS)
        assert await held(administrator, page) == page["data"]

    async def test_a_policy_is_its_tenants_own(self, edge: Edge) -> None:
        tenant, other = new_tenant(), new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        neighbour = await edge.administrator(tenant_id=other)
        await set_policy(administrator, tenant, "journal", "server_wins")
        page = change()
        for phone, status in ((administrator, "CONFLICT"), (neighbour, "APPLIED")):
            await push(phone, page)
            assert statuses(await push(phone, {**page, "data": {"text": "other"}})) == [status]
        path = f"/api/v1/sync/policies/{tenant}/journal"
        for answer in (
            await neighbour.call("GET", path),
            await neighbour.call("PUT", path, json={"resolution_policy": "manual"}),
            await neighbour.call("PUT", path, json={"resolution_policy": "manual", "validate_only": True}),
            await neighbour.call("GET", CONFLICTS, params={"tenant_id": tenant}),
        ):
            assert refusal(answer) == (403, "AUTH_FORBIDDEN", [])
        assert (await administrator.call("GET", path)).json()["resolution_policy"] == "server_wins"

    async def test_the_path_says_which_policy_is_set_whatever_the_body_says(self, edge: Edge) -> None:
        tenant, other = new_tenant(), new_tenant()
        administrator, neighbour = await edge.administrator(tenant_id=tenant), await edge.phone(tenant_id=other)
        body = {"tenant_id": other, "domain": "task", "resolution_policy": "server_wins"}
        await administrator.call("PUT", f"/api/v1/sync/policies/{tenant}/journal", json=body)
        answer = await neighbour.call("GET", f"/api/v1/sync/policies/{other}/task")
        assert answer.json()["resolution_policy"] == "most_recent_wins"

    async def test_only_an_administrator_sets_a_policy(self, edge: Edge) -> None:
        tenant = new_tenant()
        phone = await edge.phone(tenant_id=tenant)
        path = f"/api/v1/sync/policies/{tenant}/journal"
        answer = await phone.call("PUT", path, json={"resolution_policy": "manual"})
        assert refusal(answer) == (403, "AUTH_FORBIDDEN", [])
        assert (await phone.call("GET", path)).json()["resolution_policy"] == "client_wins"

    async def test_the_account_that_the_settings_name_is_an_administrator(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge(admin_email="boss@example.com")
        boss = await edge.phone(email="boss@example.com")
        assert (await set_policy(boss, 1, "journal", "server_wins"))["resolution_policy"] == "server_wins"

    async def test_there_is_no_policy_for_a_domain_that_is_not_known(self, edge: Edge) -> None:
        administrator = await edge.administrator()
        for verb in ("GET", "PUT"):
            body = {"resolution_policy": "client_wins"} if verb == "PUT" else None
            answer = await administrator.call(verb, "/api/v1/sync/policies/1/nope", json=body)
            assert refusal(answer) == (404, "NOT_FOUND", [])

    @pytest.mark.parametrize(
        ("policy", "client", "server", "merged", "manual", "changed"),
        [
            ("client_wins", 3, 0, 0, 0, 2),
            ("server_wins", 0, 3, 0, 0, 1),
            ("most_recent_wins", 1, 2, 0, 0, 0),
            ("preserve_escalation", 0, 0, 3, 0, 3),
            ("manual", 0, 0, 0, 3, 3),
        ],
    )
    async def test_a_dry_run_counts_and_changes_nothing(
        self, edge: Edge, policy: str, client: int, server: int, merged: int, manual: int, changed: int
    ) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phone = await edge.phone(tenant_id=tenant)
        await set_policy(administrator, tenant, "ticket", "most_recent_wins")
        for minutes in (-1, 0, 1):
            ticket = change(domain="ticket", data=SERVER, client_time=at(0))
            await push(phone, ticket, {**ticket, "data": CLIENT, "client_time": at(minutes)})
        page = change()
        await push(phone, page, {**page, "data": {"text": "of another domain"}})
        before = await pull(phone), await log(phone)
        said = await set_policy(administrator, tenant, "ticket", policy, validate_only=True)
        assert said["resolution_policy"] == policy
        assert said["dry_run"] == {
            "conflicts": 3,
            "client": client,
            "server": server,
            "merged": merged,
            "manual": manual,
            "changed": changed,
        }
        answer = await administrator.call("GET", f"/api/v1/sync/policies/{tenant}/ticket")
        assert answer.json()["resolution_policy"] == "most_recent_wins"
        assert (await pull(phone), await log(phone)) == before

    @pytest.mark.parametrize(
        ("policy", "synced", "duration"), [("client_wins", 1, 2), ("server_wins", 0, 1), ("manual", 0, 1)]
    )
    async def test_typed_uploads_obey_the_policy(self, edge: Edge, policy: str, synced: int, duration: int) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phone = await edge.phone(tenant_id=tenant)
        await set_policy(administrator, tenant, "puzzle", policy)
        session = puzzle_session(duration=1)
        await phone.call("POST", "/v1/sessions", json={"sessions": [session]})
        answer = await phone.call("POST", "/v1/sessions", json={"sessions": [{**session, "duration": 2}]})
        assert answer.json() == {"synced": synced, "conflicts": 1 - synced, "rejected": []}
        assert (await phone.call("GET", "/v1/sessions")).json()["sessions"][0]["duration"] == duration
        (logged,) = (await log(phone))["conflicts"]
        assert (logged["domain"], logged["mobile_id"]) == ("puzzle", session["id"])
        assert (logged["resolution_strategy"], logged["losing_data"]["duration"]) == (policy, 3 - duration)

    async def test_a_recording_that_is_there_is_never_overwritten_and_no_conflict(self, phone: Phone) -> None:
        session = device_session(xp_earned=1)
        for earned in (1, 2):
            body = {"sessions": [{**session, "xp_earned": earned}]}
            await phone.call("POST", "/sessions/batch_upload", json=body)
        assert [one["data"]["xp_earned"] for one in (await pull(phone))["changes"]] == [1]
        assert (await log(phone))["total"] == 0


class Open:
    """A conflict that waits for its user's decision."""

    def __init__(self, tenant: int, administrator: Phone, phone: Phone, page: dict[str, Any], conflict_id: str) -> None:
        self.tenant = tenant
        self.administrator = administrator
        self.phone = phone
        self.page = page
        self.id = conflict_id


@pytest.fixture
async def undecided(edge: Edge) -> Open:
    tenant = new_tenant()
    administrator = await edge.administrator(tenant_id=tenant)
    phone = await edge.phone(tenant_id=tenant)
    await set_policy(administrator, tenant, "journal", "manual")
    page = change(data={"text": "server"})
    await push(phone, page)
    (receipt,) = await push(phone, {**page, "data": {"text": "client"}})
    return Open(tenant, administrator, phone, page, receipt["conflict"]["conflict_id"])


class TestInbox:
    @pytest.mark.parametrize(
        ("resolution", "winner", "version", "stored", "losing"),
        [
            ("accept_server", "server", 1, "server", "client"),
            ("accept_client", "client", 2, "client", "server"),
            ("merge", "merged", 2, "both", "client"),
        ],
    )
    async def test_a_conflict_is_decided_once_by_any_device_of_its_user(
        self, undecided: Open, resolution: str, winner: str, version: int, stored: str, losing: str
    ) -> None:
        phone, other = undecided.phone, await another_device(undecided.phone)
        (logged,) = (await log(other))["conflicts"]
        assert (logged["id"], logged["resolution_result"]) == (undecided.id, "manual_required")
        given = {"client_data": {"text": "both"}} if resolution == "merge" else {}
        answer = await resolve(other, undecided.id, resolution, **given)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "conflict_id": undecided.id,
            "resolution_result": "resolved",
            "winning_version": winner,
            "version": version,
        }
        assert await held(phone, undecided.page) == {"text": stored}
        (logged,) = (await log(phone))["conflicts"]
        assert (logged["resolution_result"], logged["winning_version"]) == ("resolved", winner)
        assert (logged["resolution_strategy"], logged["losing_data"]) == ("manual", {"text": losing})
        before = await pull(phone)
        for again in ("accept_client", "accept_server"):
            assert refusal(await resolve(phone, undecided.id, again)) == (409, "SYNC_004", [])
        assert await pull(phone) == before

    async def test_two_devices_that_decide_at_once_decide_once(self, undecided: Open) -> None:
        answers = await asyncio.gather(*(resolve(undecided.phone, undecided.id, "accept_client") for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        (entry,) = (await pull(undecided.phone))["changes"]
        assert (entry["version"], entry["data"]) == (2, {"text": "client"})

    async def test_nobody_else_decides_it_or_sees_it(self, edge: Edge, undecided: Open) -> None:
        tenant = undecided.tenant
        stranger, neighbour = await edge.phone(), await edge.phone(tenant_id=tenant)
        for other in (stranger, neighbour, await edge.administrator(tenant_id=tenant + 1)):
            assert refusal(await resolve(other, undecided.id, "accept_server")) == (404, "NOT_FOUND", [])
            assert refusal(await other.call("GET", f"{CONFLICTS}/{undecided.id}")) == (404, "NOT_FOUND", [])
        assert refusal(await resolve(undecided.phone, str(uuid4()), "accept_server")) == (404, "NOT_FOUND", [])
        assert (await resolve(undecided.phone, undecided.id, "accept_server")).status_code == 200

    @pytest.mark.parametrize(
        ("resolution", "winner", "stored"),
        [("accept_server", "server", "server"), ("accept_client", "client", "client"), ("merge", "merged", "both")],
    )
    async def test_an_administrator_decides_for_a_user_whose_record_it_stays(
        self, undecided: Open, resolution: str, winner: str, stored: str
    ) -> None:
        boss, phone = undecided.administrator, undecided.phone
        given = {"client_data": {"text": "both"}} if resolution == "merge" else {}
        answer = await resolve(boss, undecided.id, resolution, **given)
        assert (answer.status_code, answer.json()["winning_version"]) == (200, winner), answer.text
        assert await held(phone, undecided.page) == {"text": stored}
        assert (await pull(boss))["changes"] == []
        (logged,) = (await log(phone))["conflicts"]
        assert (logged["winning_version"], logged["user_id"]) == (winner, phone.user_id)
        for other in (boss, phone):
            assert refusal(await resolve(other, undecided.id, "accept_client")) == (409, "SYNC_004", [])

    @pytest.mark.parametrize("resolution", ["accept_server", "accept_client"])
    async def test_the_users_device_hears_what_an_administrator_has_decided(
        self, edge: Edge, undecided: Open, resolution: str
    ) -> None:
        async with (
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(channel, undecided.phone.metadata, device_id="a") as talk,
        ):
            assert (await talk.hear("conflict")).resolution_options
            assert (await resolve(undecided.administrator, undecided.id, resolution)).status_code == 200
            heard = [await talk.hear()]
            if resolution == "accept_client":
                heard.append(await talk.hear())
        said = {one.WhichOneof("message"): one for one in heard}
        assert said["conflict"].conflict.conflict_id == undecided.id
        assert not said["conflict"].conflict.resolution_options, "there is nothing to decide any more"
        if resolution == "accept_client":
            (entry,) = said["changes"].changes.changes
            assert (entry.version, json.loads(entry.data)) == (2, {"text": "client"})

    async def test_an_administrators_decision_leaves_a_line_in_the_log(
        self, own_edge: Callable[..., Awaitable[Edge]], capfd: pytest.CaptureFixture[str]
    ) -> None:
        edge = await own_edge(log_level="info")
        log_to_stderr("tests", "info")
        try:
            boss, phone = await edge.administrator(tenant_id=7), await edge.phone(tenant_id=7)
            await set_policy(boss, 7, "journal", "manual")
            page = change(data={"text": "server"})
            _, receipt = await push(phone, page, {**page, "data": {"text": "client"}})
            id = receipt["conflict"]["conflict_id"]
            assert (await resolve(boss, id, "accept_client")).status_code == 200
        finally:
            log_to_stderr("tests", "warning")
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
        (told,) = [line for line in lines if line.get("conflict") == id]
        assert (told["by"], told["user"], told["tenant"]) == (boss.user_id, phone.user_id, 7)
        assert (told["record"], told["winner"], told["version"]) == (page["id"], "client", 2)

    async def test_both_sides_are_shown_in_full_beside_the_record_as_it_stands(self, undecided: Open) -> None:
        phone, page = undecided.phone, undecided.page
        large = 2**60 + 1
        await push(phone, {**page, "base_version": 1, "data": {"text": "third", "n": large}})
        (receipt,) = await push(phone, {**page, "operation": "DELETE"})
        for reader in (phone, undecided.administrator):
            first = (await reader.call("GET", f"{CONFLICTS}/{undecided.id}")).json()
            assert json.loads(first["server_data"]) == {"text": "server"}
            assert json.loads(first["client_data"]) == {"text": "client"}
            assert (first["conflict"]["id"], first["conflict"]["user_id"]) == (undecided.id, phone.user_id)
            assert is_time(first["server_time"])
            assert is_time(first["client_time"])
            assert (first["record"]["version"], json.loads(first["record"]["data"])["n"]) == (2, large)
        other = (await phone.call("GET", f"{CONFLICTS}/{receipt['conflict']['conflict_id']}")).json()
        assert (json.loads(other["server_data"]), other["client_data"]) == ({"text": "third", "n": large}, "")
        answer = await phone.call("GET", f"{CONFLICTS}/x")
        assert refusal(answer) == (400, "SYNC_001", ["conflict_id"])

    async def test_those_that_wait_are_listed_by_themselves(self, undecided: Open) -> None:
        phone, boss = undecided.phone, undecided.administrator
        (receipt,) = await push(phone, {**undecided.page, "data": {"text": "again"}})
        other = receipt["conflict"]["conflict_id"]
        assert (await resolve(phone, undecided.id, "accept_server")).status_code == 200
        for reader in (phone, boss):
            found = {
                result: await log(reader, resolution_result=result) for result in ("", "manual_required", "resolved")
            }
            listed = {result: [one["id"] for one in page["conflicts"]] for result, page in found.items()}
            assert listed == {"": [other, undecided.id], "manual_required": [other], "resolved": [undecided.id]}
            assert {result: page["total"] for result, page in found.items()} == {
                "": 2,
                "manual_required": 1,
                "resolved": 1,
            }

    async def test_a_decision_that_cannot_be_stored_leaves_it_open(self, undecided: Open) -> None:
        phone = undecided.phone
        for body, code, field in (
            ({"resolution": "merge"}, "SYNC_002", "client_data"),
            ({"resolution": "merge", "client_data": {"text": 7}}, "SYNC_001", "client_data.text"),
            ({"resolution": "merge", "client_data": {"text": "\0"}}, "SYNC_001", "client_data.text"),
            ({"resolution": "guess"}, "SYNC_001", "resolution"),
            ({}, "SYNC_002", "resolution"),
        ):
            answer = await phone.call("POST", f"{CONFLICTS}/{undecided.id}/resolve", json=body)
            assert refusal(answer) == (400, code, [field])
        answer = await phone.call("POST", f"{CONFLICTS}/x/resolve", json={"resolution": "accept_server"})
        assert refusal(answer) == (400, "SYNC_001", ["conflict_id"])
        assert (await log(phone))["conflicts"][0]["resolution_result"] == "manual_required"
        assert await held(phone, undecided.page) == {"text": "server"}

    async def test_a_deletion_that_was_left_to_people_may_be_accepted(self, undecided: Open) -> None:
        phone = undecided.phone
        (receipt,) = await push(phone, {**undecided.page, "operation": "DELETE"})
        assert receipt["status"] == "CONFLICT"
        answer = await resolve(phone, receipt["conflict"]["conflict_id"], "accept_client")
        assert answer.json()["version"] == 2
        assert await held(phone, undecided.page) is None

    async def test_a_record_that_went_on_takes_the_decision_on_top(self, undecided: Open) -> None:
        phone, page = undecided.phone, undecided.page
        await push(phone, {**page, "base_version": 1, "data": {"text": "third"}})
        answer = await resolve(phone, undecided.id, "accept_client")
        assert (answer.status_code, answer.json()["version"]) == (200, 3)
        assert await held(phone, page) == {"text": "client"}
        assert (await log(phone))["total"] == 1

    async def test_what_its_policy_decided_is_not_decided_again(self, phone: Phone) -> None:
        page = change()
        _, receipt = await push(phone, page, {**page, "data": {"text": "other"}})
        answer = await resolve(phone, receipt["conflict"]["conflict_id"], "accept_server")
        assert refusal(answer) == (409, "SYNC_004", [])


class TestLog:
    async def test_the_rate_is_of_the_pushed_changes(self, phone: Phone) -> None:
        order = change(domain="work_order", data={"title": "first"}, client_time=at(1))
        stale = {**order, "data": {"title": "x"}, "client_time": at(0)}
        await push(phone, order, stale, change(), change(), change(), order, change(domain="nope"))
        assert [(await log(phone, **one))["conflict_rate_pct"] for one in ({}, {"domain": "work_order"})] == [
            pytest.approx(100 / 6, abs=0.01),
            pytest.approx(100 / 3, abs=0.01),
        ]
        assert (await log(phone, domain="journal"))["conflict_rate_pct"] == 0

    async def test_it_is_filtered_by_domain_and_time_and_comes_in_pages_newest_first(self, phone: Phone) -> None:
        ids = []
        for domain in ("journal", "ticket", "journal", "journal"):
            one = change(domain=domain, data={"title": "a"})
            _, receipt = await push(phone, one, {**one, "data": {"title": "b"}})
            ids.insert(0, receipt["conflict"]["conflict_id"])
        whole = await log(phone)
        assert ([one["id"] for one in whole["conflicts"]], whole["total"]) == (ids, 4)
        journal = await log(phone, domain="journal")
        assert ([one["id"] for one in journal["conflicts"]], journal["total"]) == ([ids[0], ids[1], ids[3]], 3)
        found, token = [], ""
        while True:
            page = await log(phone, page_size=1, page_token=token)
            assert page["total"] == 4
            found += [one["id"] for one in page["conflicts"]]
            token = page["next_page_token"]
            if not token:
                break
        assert found == ids
        second = whole["conflicts"][1]["created_at"]
        assert [one["id"] for one in (await log(phone, since=second))["conflicts"]] == ids[:2]
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d")
        assert (await log(phone, since=tomorrow))["conflicts"] == []
        for parameters, field in (({"page_size": 1001}, "page_size"), ({"since": "then"}, "since")):
            assert refusal(await phone.call("GET", CONFLICTS, params=parameters)) == (400, "SYNC_001", [field])

    async def test_the_log_of_a_domain_that_cannot_be_is_empty(self, phone: Phone) -> None:
        page = change()
        await push(phone, page, {**page, "data": {"text": "other"}})
        for domain in ("nope", "%00", "journal%00"):
            answer = await phone.call("GET", f"{CONFLICTS}?domain={domain}")
            assert (answer.status_code, answer.json()["conflicts"], answer.json()["total"]) == (200, [], 0)

    async def test_an_administrator_sees_the_tenants_and_everybody_else_their_own(self, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phones = [await edge.phone(tenant_id=tenant) for _ in range(2)]
        for phone in phones:
            page = change()
            await push(phone, page, {**page, "data": {"text": phone.user_id}})
        assert (await log(administrator, tenant_id=tenant))["total"] == 2
        assert [(await log(phone))["total"] for phone in phones] == [1, 1]
        stranger = await edge.administrator()
        answer = await stranger.call("GET", CONFLICTS, params={"tenant_id": tenant})
        assert refusal(answer) == (403, "AUTH_FORBIDDEN", [])


@pytest.fixture(scope="module")
async def stub(edge: Edge) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(edge.target) as channel:
        yield sync_pb2_grpc.SyncServiceStub(channel)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Code, reason and the fields at fault."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    status = rpc_status.from_call(raised.value)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    for detail in status.details:
        detail.Unpack(bad)
    return raised.value.code(), info.reason, [one.field for one in bad.field_violations]


def typed(**given: Any) -> pb.Change:
    """The page of a journal, as a message."""
    one = change(**given)
    data, time = one.pop("data"), Timestamp()
    time.FromJsonString(one.pop("client_time"))
    return pb.Change(**one, data=data if isinstance(data, str) else json.dumps(data), client_time=time)


def values(entry: pb.FeedEntry) -> tuple[str, int, bool, Any]:
    return entry.id, entry.version, entry.deleted, json.loads(entry.data)


class TestGrpc:
    async def test_a_push_is_applied_and_pulled_back_by_both_doors(self, stub: Any, phone: Phone) -> None:
        page = typed(data={"text": "x", "n": 2**53 + 1})
        answer = await stub.PushChanges(pb.PushChangesRequest(changes=[page]), metadata=phone.metadata)
        assert [(one.domain, one.id, one.status, one.version) for one in answer.receipts] == [
            ("journal", page.id, "APPLIED", 1)
        ]
        assert answer.server_time.seconds > 0
        pulled = await stub.PullChanges(pb.PullChangesRequest(), metadata=phone.metadata)
        assert [values(one) for one in pulled.changes] == [(page.id, 1, False, {"text": "x", "n": 2**53 + 1})]
        assert pulled.changes[0].update_time.seconds > 0
        by_rest = await pull(phone)
        assert (by_rest["changes"][0]["data"], by_rest["next_cursor"]) == (json.loads(page.data), pulled.next_cursor)
        assert statuses(await push(phone, change(id=page.id, data=json.loads(page.data)))) == ["DUPLICATE"]

    async def test_a_bad_change_is_rejected_alone(self, stub: Any, phone: Phone) -> None:
        bad = [
            (typed(domain="nope"), "FIELD_INVALID", "domain"),
            (typed(id=""), "FIELD_MISSING", "id"),
            (typed(operation=""), "FIELD_MISSING", "operation"),
            (typed(data=""), "FIELD_MISSING", "data"),
            (typed(data="{"), "FIELD_INVALID", "data"),
            (typed(data="[]"), "FIELD_INVALID", "data"),
            (typed(data='{"a": "\\u0000"}'), "FIELD_INVALID", "data.a"),
            (typed(base_version=-1), "FIELD_INVALID", "base_version"),
        ]
        late = typed()
        late.client_time.seconds = 2**62
        bad.append((late, "FIELD_INVALID", "client_time"))
        request = pb.PushChangesRequest(changes=[typed(), *(one for one, _, _ in bad), typed()])
        answer = await stub.PushChanges(request, metadata=phone.metadata)
        assert [one.status for one in answer.receipts] == ["APPLIED", *["REJECTED"] * len(bad), "APPLIED"]
        for index, (receipt, (sent, reason, field)) in enumerate(zip(answer.receipts[1:-1], bad, strict=True), 1):
            assert (receipt.reason, receipt.field) == (reason, f"changes[{index}].{field}")
            assert (receipt.domain, receipt.id) == (sent.domain, sent.id), "the phone looks for it by its id"

    async def test_a_group_whose_member_holds_no_json_is_kept_out_whole(self, stub: Any, phone: Phone) -> None:
        for grouped in ({"atomic_group": "g"}, {}):
            changes = [typed(**grouped), typed(data="{", **grouped)]
            request = pb.PushChangesRequest(changes=changes, atomic_group="" if grouped else "g")
            answer = await stub.PushChanges(request, metadata=phone.metadata)
            assert [(one.status, one.reason) for one in answer.receipts] == [
                ("REJECTED", "ATOMIC_GROUP"),
                ("REJECTED", "FIELD_INVALID"),
            ]
        assert (await pull(phone))["changes"] == []

    async def test_a_change_without_a_base_version_meets_what_is_there(self, stub: Any, phone: Phone) -> None:
        page = typed()
        other = typed(id=page.id, data={"text": "other"})
        other.ClearField("base_version")
        answer = await stub.PushChanges(pb.PushChangesRequest(changes=[page, other]), metadata=phone.metadata)
        receipt = answer.receipts[1]
        assert (receipt.status, receipt.version, receipt.conflict.client_version) == ("APPLIED", 2, 0)
        assert json.loads(receipt.conflict.server_data) == {"text": "a page"}

    async def test_a_repeat_with_its_key_replays_the_receipts(self, stub: Any, phone: Phone) -> None:
        request = pb.PushChangesRequest(changes=[typed(), typed(domain="nope")], idempotency_key=str(uuid4()))
        first, again = [await stub.PushChanges(request, metadata=phone.metadata) for _ in range(2)]
        assert list(again.receipts) == list(first.receipts)
        request.changes.append(typed())
        call = stub.PushChanges(request, metadata=phone.metadata)
        assert await refused(call) == (grpc.StatusCode.ABORTED, "IDEMPOTENCY_CONFLICT", [])

    async def test_none_and_1001_changes_are_refused_whole(self, stub: Any, phone: Phone) -> None:
        for count, reason in ((0, "FIELD_MISSING"), (1001, "FIELD_INVALID")):
            call = stub.PushChanges(pb.PushChangesRequest(changes=[typed()] * count), metadata=phone.metadata)
            assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, reason, ["changes"])

    async def test_pages_tombstones_and_domains(self, stub: Any, phone: Phone) -> None:
        pages = [typed(), typed(domain="ticket"), typed()]
        deletion = pb.Change(domain="journal", id=pages[0].id, base_version=1, operation="DELETE")
        await stub.PushChanges(pb.PushChangesRequest(changes=[*pages, deletion]), metadata=phone.metadata)
        found, request = [], pb.PullChangesRequest(domains=["journal"], limit=1)
        more = True
        while more:
            answer = await stub.PullChanges(request, metadata=phone.metadata)
            found += [values(one) for one in answer.changes]
            request.cursor, more = answer.next_cursor, answer.has_more
        assert found == [(pages[2].id, 1, False, {"text": "a page"}), (pages[0].id, 2, True, {})]
        for given, field in (({"cursor": "x"}, "cursor"), ({"domains": ["x"]}, "domains"), ({"limit": 1001}, "limit")):
            call = stub.PullChanges(pb.PullChangesRequest(**given), metadata=phone.metadata)
            assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", [field])

    async def test_a_policy_is_set_a_conflict_meets_it_and_is_decided(self, stub: Any, edge: Edge) -> None:
        tenant = new_tenant()
        administrator = await edge.administrator(tenant_id=tenant)
        phone = await edge.phone(tenant_id=tenant)
        request = pb.UpdatePolicyRequest(tenant_id=tenant, domain="journal", resolution_policy="manual")
        call = stub.UpdatePolicy(request, metadata=phone.metadata)
        assert await refused(call) == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN", [])
        said = await stub.UpdatePolicy(request, metadata=administrator.metadata)
        assert (said.resolution_policy, said.auto_resolve, said.HasField("dry_run")) == ("manual", False, False)
        policy = await stub.GetPolicy(pb.GetPolicyRequest(tenant_id=tenant, domain="journal"), metadata=phone.metadata)
        assert (policy.tenant_id, policy.domain, policy.resolution_policy) == (tenant, "journal", "manual")

        page = typed(data={"text": "server"})
        changes = [page, typed(id=page.id, data={"text": "client"})]
        answer = await stub.PushChanges(pb.PushChangesRequest(changes=changes), metadata=phone.metadata)
        notice = answer.receipts[1].conflict
        assert (answer.receipts[1].status, list(notice.resolution_options)) == ("CONFLICT", OPTIONS)
        request.resolution_policy, request.validate_only = "client_wins", True
        said = await stub.UpdatePolicy(request, metadata=administrator.metadata)
        assert (said.dry_run.conflicts, said.dry_run.client, said.dry_run.changed) == (1, 1, 1)

        decision = pb.ResolveConflictRequest(conflict_id=notice.conflict_id, resolution="merge")
        call = stub.ResolveConflict(decision, metadata=phone.metadata)
        assert await refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_MISSING", ["client_data"])
        decision.client_data.update({"text": "both", "n": 7})
        resolved = await stub.ResolveConflict(decision, metadata=phone.metadata)
        assert (resolved.resolution_result, resolved.winning_version, resolved.version) == ("resolved", "merged", 2)
        call = stub.ResolveConflict(decision, metadata=phone.metadata)
        assert await refused(call) == (grpc.StatusCode.ABORTED, "SYNC_CONFLICT", [])
        (entry,) = (await stub.PullChanges(pb.PullChangesRequest(), metadata=phone.metadata)).changes
        assert values(entry) == (page.id, 2, False, {"text": "both", "n": 7})
        logged = await stub.ListConflicts(pb.ListConflictsRequest(domain="journal"), metadata=phone.metadata)
        assert (logged.total, logged.conflicts[0].winning_version) == (1, "merged")
        assert dict(logged.conflicts[0].losing_data) == {"text": "client"}
        call = stub.GetPolicy(pb.GetPolicyRequest(tenant_id=1, domain="journal"), metadata=phone.metadata)
        assert await refused(call) == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN", [])


class TestEdgesOfAPush:
    """What a phone hardly ever sends, and must not bring a push down or lose a word of it."""

    @pytest.mark.parametrize("bad", [{"domain": "\ud83d"}, {"id": "\ud83d"}], ids=["domain", "id"])
    async def test_half_an_emoji_in_a_name_is_refused_alone(self, phone: Phone, bad: dict[str, Any]) -> None:
        content = json.dumps({"changes": [change(), change(**bad)]})
        answer = await phone.call("POST", PUSH, content=content)
        assert answer.status_code == 200, answer.text
        assert statuses(answer.json()["receipts"]) == ["APPLIED", "REJECTED"]

    @pytest.mark.parametrize("bad", [{"domain": "a\0"}, {"id": "a\0"}], ids=["domain", "id"])
    async def test_a_nul_in_a_name_is_refused_alone_and_remembered(self, phone: Phone, bad: dict[str, Any]) -> None:
        body = {"changes": [change(), change(**bad)], "idempotency_key": str(uuid4())}
        for _ in range(2):
            answer = await phone.call("POST", PUSH, json=body)
            assert answer.status_code == 200, answer.text
            assert statuses(answer.json()["receipts"]) == ["APPLIED", "REJECTED"]

    @pytest.mark.parametrize("version", [2**31, 2**63])
    async def test_a_version_beyond_32_bits_is_refused_alone(self, phone: Phone, version: int) -> None:
        page = change()
        await push(phone, page)
        stale = {**page, "base_version": version, "data": {"text": "other"}}
        answer = await phone.call("POST", PUSH, json={"changes": [change(), stale]})
        assert answer.status_code == 200, answer.text
        assert statuses(answer.json()["receipts"]) == ["APPLIED", "REJECTED"]

    @pytest.mark.parametrize(("before", "after"), [(0, False), (1, True), ([1], [True])])
    async def test_a_number_that_became_a_truth_value_is_a_change(self, phone: Phone, before: Any, after: Any) -> None:
        page = change(data={"flag": before})
        await push(phone, page)
        assert statuses(await push(phone, {**page, "base_version": 1, "data": {"flag": after}})) == ["APPLIED"]
        assert json.dumps(await held(phone, page)) == json.dumps({"flag": after})

    async def test_what_is_no_object_sinks_the_group_of_its_request(self, phone: Phone) -> None:
        assert statuses(await push(phone, change(), 7, atomic_group="g")) == ["REJECTED", "REJECTED"]
        assert (await pull(phone))["changes"] == []

    async def test_a_puzzle_of_a_failed_group_takes_no_room_of_the_free_tier(self, phone: Phone) -> None:
        first, second = puzzle_session(), puzzle_session()
        changes = [
            change(domain="puzzle", id=first.pop("id"), data=first, atomic_group="g"),
            change(domain="nope", atomic_group="g"),
            change(domain="puzzle", id=second.pop("id"), data=second),
        ]
        assert statuses(await push(phone, *changes)) == ["REJECTED", "REJECTED", "APPLIED"]

    async def test_a_key_beside_half_an_emoji_counts(self, phone: Phone) -> None:
        changes = [change(), change(data={"text": "\ud83d"})]
        content = json.dumps({"changes": changes, "idempotency_key": str(uuid4())})
        answers = [await phone.call("POST", PUSH, content=content) for _ in range(2)]
        assert [statuses(answer.json()["receipts"]) for answer in answers] == [["APPLIED", "REJECTED"]] * 2

    async def test_a_decision_is_no_push_of_the_rate(self, undecided: Open) -> None:
        assert (await log(undecided.phone))["conflict_rate_pct"] == 50
        await resolve(undecided.phone, undecided.id, "accept_client")
        assert (await log(undecided.phone))["conflict_rate_pct"] == 50

    async def test_a_policy_that_is_not_named_is_missing(self, edge: Edge) -> None:
        administrator = await edge.administrator()
        answer = await administrator.call("PUT", "/api/v1/sync/policies/1/task", json={})
        assert refusal(answer) == (400, "SYNC_002", ["resolution_policy"])
