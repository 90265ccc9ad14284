"""The export of an account: all there is of it in one download that anybody can check for being whole."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.auth.callers import as_service
from tests.auth.test_receipts import mesh_with_processes, store_file
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, change
from tests.sessions.test_exports import store_42_megabytes

PATH = "/v1/auth/export"


async def export(phone: Phone) -> list[dict[str, Any]]:
    answer = await phone.call("GET", PATH)
    assert answer.status_code == 200, answer.text
    assert answer.content.endswith(b"\n")
    return [json.loads(line) for line in answer.content.splitlines()]


async def test_a_new_account_has_itself_and_the_sign_in_that_it_began_with(phone: Phone) -> None:
    header, account, sign_in, event, end = await export(phone)
    assert header == {
        "format": "satchel-account-export",
        "version": 1,
        "user_id": phone.user_id,
        "export_time": header["export_time"],
    }
    assert (account["type"], account["id"], account["email"]) == ("account", phone.user_id, phone.email)
    assert (sign_in["type"], sign_in["method"], sign_in["revoke_time"]) == ("sign_in", "password", None)
    assert (event["type"], event["kind"], event["sign_in_id"]) == ("security_event", "signed_up", sign_in["id"])
    (listed,) = (await phone.call("GET", "/v1/auth/security-events")).json()["events"]
    assert event["id"] == listed["id"]
    assert end == {
        "end": True,
        "sign_ins": 1,
        "security_events": 1,
        "garmin_links": 0,
        "files": 0,
        "records": 0,
        "conflicts": 0,
    }


async def test_everything_of_the_account_is_in_it_and_nothing_of_anybody_else(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    for one in (phone, other):
        for start in (0, 700):
            changes = [change(id=f"r{start + number}", data={"text": one.email}) for number in range(700)]
            await one.call("POST", "/api/v1/sync/push", json={"changes": changes})
        await one.call("POST", "/api/v1/sync/push", json={"changes": [change(id="r0", data={"text": "met"})]})
        await store_file(one, one.email.encode())
    for number in range(3):
        credentials = {"email": phone.email, "password": PASSWORD, "device_name": f"phone {number}"}
        await edge.http.post("/v1/auth/signin", json=credentials)
    lines = await export(phone)
    assert lines[-1] == {
        "end": True,
        "sign_ins": 4,
        "security_events": 4,
        "garmin_links": 0,
        "files": 1,
        "records": lines[-1]["records"],
        "conflicts": 1,
    }
    assert lines[-1]["records"] in (1400, 1401)  # with or without the file's, which may not yet be in the feed
    records = [line for line in lines if line.get("type") == "record" and line["domain"] == "journal"]
    assert {line["id"] for line in records} == {f"r{number}" for number in range(1400)}
    assert {line["data"]["text"] for line in records} == {phone.email, "met"}
    (file,) = [line for line in lines if line.get("type") == "file"]
    assert (await phone.call("GET", httpx.URL(file["file_url"]).path)).content == phone.email.encode()
    assert len([line for line in lines if line.get("type") == "conflict"]) == 1
    assert other.user_id not in json.dumps(lines)


async def test_it_is_a_file_without_a_secret(edge: Edge, phone: Phone) -> None:
    answer = await phone.call("GET", PATH)
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["content-disposition"] == 'attachment; filename="satchel-account-export.jsonl"'
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        ((password_hash,),) = connection.execute(
            "SELECT password_hash FROM auth.accounts WHERE id = %s", [phone.user_id]
        ).fetchall()
        ((key, digest),) = connection.execute(
            "SELECT encode(token_key, 'hex'), encode(current_digest, 'hex') FROM auth.sign_ins WHERE account_id = %s",
            [phone.user_id],
        ).fetchall()
    for secret in (password_hash, key, digest, phone.refresh_token, phone.access_token):
        assert secret not in answer.text


async def test_more_sign_ins_than_a_page_are_all_there(edge: Edge, phone: Phone) -> None:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute(
            "INSERT INTO auth.sign_ins SELECT gen_random_uuid(), account_id, 'phone', ip, token_key, current_digest,"
            " NULL, NULL, create_time, last_use_time, expire_time, NULL FROM auth.sign_ins,"
            " generate_series(1, 1200) WHERE account_id = %s",
            [phone.user_id],
        )
    lines = [line for line in await export(phone) if line.get("type") == "sign_in"]
    assert len({line["id"] for line in lines}) == len(lines) == 1201


async def test_a_service_that_is_away_is_told_before_anything_is_sent(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        edge, services = await mesh_with_processes(stack, database_url, tmp_path, "uploads", "sessions")
        phone = await edge.phone()
        for service in services:
            await service.stop()
            answer = await phone.call("GET", PATH)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
            assert "content-disposition" not in answer.headers


async def test_one_that_cannot_go_on_breaks_the_line(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        edge, (sessions,) = await mesh_with_processes(stack, database_url, tmp_path, "sessions")
        phone = await edge.phone()
        store_42_megabytes(edge, phone)
        got = bytearray()
        async with edge.http.stream("GET", PATH, headers=phone.headers) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                async for piece in answer.aiter_bytes():
                    got += piece
                    if sessions.running:
                        sessions.kill()
                        await sessions.wait()
        assert b'"format":"satchel-account-export"' in got[:100]
        assert b'"end":true' not in got[-200:]


async def test_every_account_may_ask_only_so_often(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(rate_limits="on")
    phone = await edge.phone()
    answers = [await phone.call("GET", PATH) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]


async def test_a_linked_account_at_garmin_is_in_it_without_what_is_secret(edge: Edge, phone: Phone) -> None:
    path = f"/garmin_credentials/{phone.user_id}"
    secrets = {"access_token": "an-access-token", "garmin_password_plaintext": "a-password"}
    answer = await as_service(edge, "POST", path, json={"garmin_username": "ada@garmin.example", **secrets})
    assert answer.status_code == 201, answer.text
    lines = await export(phone)
    (link,) = [line for line in lines if line.get("type") == "garmin_link"]
    assert link["garmin_username"] == "ada@garmin.example"
    assert link.keys() == {"type", "garmin_username", "create_time", "update_time"}
    assert lines[-1]["garmin_links"] == 1
    assert not any(secret in json.dumps(lines) for secret in secrets.values())
