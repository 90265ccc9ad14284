"""Tokens for programs: shown once, good for what their scopes say, dead within a second of their end."""

from __future__ import annotations

import asyncio
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc

from runtime import contract
from runtime.application_tokens import PREFIX, digest, is_well_formed, new_token
from tests.auth.callers import as_service, bearer
from tests.conftest import Edge
from tests.factories import Phone, puzzle_session
from tests.polling import until

EVERYWHERE = ("/v1/auth/me", "/v1/sessions", "/api/v1/uploads/limits")


@pytest.fixture
async def phone(edge: Edge) -> Phone:
    """Of a guest, who is a user like any other here, and has no password that would have to be hashed."""
    return await Phone.as_guest(edge.http)


async def created(phone: Phone, **given: Any) -> dict[str, Any]:
    answer = await phone.call("POST", "/tokens/", json={"name": "my script", "scopes": ["write"], **given})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def changed(phone: Phone, **given: Any) -> dict[str, Any]:
    answer = await phone.call("PUT", f"/tokens/{phone.user_id}", json=given)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def listed(phone: Phone) -> list[dict[str, Any]]:
    answer = await phone.call("GET", f"/tokens/{phone.user_id}")
    assert answer.status_code == 200, answer.text
    tokens: list[dict[str, Any]] = answer.json()["tokens"]
    return tokens


async def status(edge: Edge, secret: str, path: str, verb: str = "GET", **request: Any) -> int:
    return (await edge.http.request(verb, path, headers=bearer(secret), **request)).status_code


async def dies(edge: Edge, secret: str) -> float:
    """Seconds until a token is refused everywhere."""

    async def refused() -> bool:
        return [await status(edge, secret, path) for path in EVERYWHERE] == [401] * len(EVERYWHERE)

    return await until(refused, seconds=5)


async def test_the_secret_is_shown_once_and_stored_nowhere(edge: Edge, phone: Phone) -> None:
    token = await created(phone)
    secret = token.pop("token")
    assert secret.startswith(PREFIX)
    assert is_well_formed(secret)
    assert (token["name"], token["scopes"], token["expires_at"], token["last_used_at"]) == (
        "my script",
        ["write"],
        None,
        None,
    )
    assert await listed(phone) == [token]
    assert (await changed(phone, name="renamed"))["token"] == ""
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        rows = [
            str(row)
            for table in ("application_tokens", "security_events")
            for row in connection.execute(f"SELECT one::text FROM auth.{table} AS one").fetchall()
        ]
    assert rows
    secret_part = secret.removeprefix(PREFIX)[:40]
    assert not [row for row in rows if secret_part in row or secret_part.encode().hex() in row]


async def test_it_is_the_user_for_every_service_over_rest_and_grpc(edge: Edge, phone: Phone) -> None:
    secret = (await created(phone))["token"]
    assert [await status(edge, secret, path) for path in EVERYWHERE] == [200] * 3
    assert await status(edge, secret, "/v1/sessions", "POST", json={"sessions": [puzzle_session()]}) == 200
    assert (await phone.call("GET", "/v1/sessions")).json()["total"] == 1
    async with grpc.aio.insecure_channel(edge.target) as channel:
        stub = sync_pb2_grpc.SyncServiceStub(channel)
        metadata = (("authorization", f"Bearer {secret}"),)
        answer = await stub.PullChanges(sync_pb2.PullChangesRequest(), metadata=metadata)
    assert len(answer.changes) == 1


@pytest.mark.parametrize(
    ("scopes", "reads", "writes", "reads_files"),
    [
        (["read"], True, False, True),
        (["write"], True, True, True),
        (["sessions:read"], True, False, False),
        (["sessions:write"], True, True, False),
        (["uploads:read"], False, False, True),
        (["sessions:read", "uploads:write"], True, False, True),
        (["health:write"], False, False, False),
    ],
)
async def test_it_is_good_for_its_scopes(
    edge: Edge, phone: Phone, scopes: list[str], reads: bool, writes: bool, reads_files: bool
) -> None:
    secret = (await created(phone, scopes=scopes))["token"]
    answers = [
        await status(edge, secret, "/v1/sessions"),
        await status(edge, secret, "/v1/sessions", "POST", json={"sessions": [puzzle_session()]}),
        await status(edge, secret, "/api/v1/uploads/limits"),
    ]
    assert answers == [200 if allowed else 403 for allowed in (reads, writes, reads_files)]
    async with grpc.aio.insecure_channel(edge.target) as channel:
        stream = sync_pb2_grpc.SyncServiceStub(channel).Sync(metadata=bearer_metadata(secret))
        if writes:
            await stream.write(sync_pb2.SyncRequest(hello=sync_pb2.Hello(device_id="script")))
            assert (await stream.read()).WhichOneof("message") == "welcome"
            stream.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.read()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def bearer_metadata(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


def test_everything_that_is_read_over_rest_is_open_to_the_scope_that_reads() -> None:
    for policy in contract.policies().values():
        if any(rule.verb in ("GET", "HEAD") for rule in policy.http):
            assert policy.read_only, policy.method


async def test_it_changes_no_way_into_the_account(edge: Edge, phone: Phone) -> None:
    token = await created(phone, scopes=["read", "write", "auth:write"])
    for verb, path, body in (
        ("POST", "/tokens/", {"name": "another", "scopes": ["read"]}),
        ("POST", "/tokens", {"name": "another", "scopes": ["read"]}),
        ("PUT", f"/tokens/{phone.user_id}", {"rotate": True}),
        ("GET", f"/tokens/{phone.user_id}", None),
        ("DELETE", "/v1/auth/me", None),
        ("POST", "/v1/auth/signout", {"scope": "all"}),
        ("POST", "/v1/auth/token", {"grant_type": "x"}),
    ):
        assert await status(edge, token["token"], path, verb, **({"json": body} if body else {})) == 403, path
    assert len(await listed(phone)) == 1


async def test_an_administrators_token_is_a_users(edge: Edge) -> None:
    administrator = await edge.administrator()
    secret = (await created(administrator))["token"]
    assert await status(edge, secret, "/users?email=a@example.com") == 403
    assert await status(edge, secret, f"/users/{administrator.user_id}") == 200
    assert await status(edge, secret, f"/users/{(await edge.phone()).user_id}") == 403


async def test_a_sign_in_that_has_just_ended_makes_no_token_and_rotates_none(edge: Edge, phone: Phone) -> None:
    """The services hear of an end some moments late; what is made in between would outlive the sign-in."""
    token = await created(phone)
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute("UPDATE auth.sign_ins SET revoke_time = now() WHERE account_id = %s", [phone.user_id])
    answer = await phone.call("POST", "/tokens/", json={"name": "too late", "scopes": ["read"]})
    assert answer.status_code == 401
    answer = await phone.call("PUT", f"/tokens/{phone.user_id}", json={"id": token["id"], "rotate": True})
    assert answer.status_code == 401
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM auth.application_tokens WHERE account_id = %s", [phone.user_id]
        ).fetchone()
    assert row == (1,)


async def test_an_ended_one_is_refused_everywhere_within_a_second(edge: Edge, phone: Phone) -> None:
    kept, token = await created(phone, name="kept"), await created(phone)
    assert [await status(edge, token["token"], path) for path in EVERYWHERE] == [200] * 3
    assert (await changed(phone, id=token["id"], revoke=True))["revoked"] is True
    assert await dies(edge, token["token"]) < 1.5
    answer = await edge.http.get("/sessions", headers=bearer(token["token"]))
    assert answer.json()["error"]["details"] == [{"field": "Authorization", "reason": "TOKEN_REVOKED"}]
    assert [await status(edge, kept["token"], path) for path in EVERYWHERE] == [200] * 3
    assert [one["id"] for one in await listed(phone)] == [kept["id"]]
    answer = await phone.call("PUT", f"/tokens/{phone.user_id}", json={"id": token["id"], "revoke": True})
    assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such token."})


async def test_a_rotated_one_has_a_successor_and_dies(edge: Edge, phone: Phone) -> None:
    expires = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = await created(phone, scopes=["read"], expires_at=expires)
    assert await status(edge, old["token"], "/sessions") == 200
    new = await changed(phone, rotate=True)
    assert new["id"] != old["id"]
    assert new["token"] != old["token"]
    assert [new[name] for name in ("name", "scopes", "expires_at")] == ["my script", ["read"], expires]
    assert await status(edge, new["token"], "/sessions") == 200
    assert await dies(edge, old["token"]) < 1.5
    assert [one["id"] for one in await listed(phone)] == [new["id"]]


async def test_many_rotations_at_once_leave_one_that_works(edge: Edge, phone: Phone) -> None:
    token = await created(phone)
    answers = await asyncio.gather(
        *(phone.call("PUT", f"/tokens/{phone.user_id}", json={"id": token["id"], "rotate": True}) for _ in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 5
    (won,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert [one["id"] for one in await listed(phone)] == [won["id"]]


async def test_a_deleted_account_takes_its_tokens_along(edge: Edge, phone: Phone) -> None:
    secret = (await created(phone, name="a name of mine"))["token"]
    assert [await status(edge, secret, path) for path in EVERYWHERE] == [200] * 3
    assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
    assert await dies(edge, secret) < 1.5
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = "SELECT name FROM auth.application_tokens WHERE account_id = %s"
        assert connection.execute(query, [phone.user_id]).fetchall() == [("",)]


async def test_an_expired_one_says_so(edge: Edge, phone: Phone) -> None:
    token = await created(phone)
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = "UPDATE auth.application_tokens SET expire_time = now() - interval '1 s' WHERE id = %s"
        connection.execute(query, [token["id"]])
    answer = await edge.http.get("/sessions", headers=bearer(token["token"]))
    assert answer.status_code == 401
    assert answer.json()["error"]["details"] == [{"field": "Authorization", "reason": "TOKEN_EXPIRED"}]


async def test_when_it_was_last_used_is_known(edge: Edge, phone: Phone) -> None:
    secret = (await created(phone))["token"]
    before = datetime.now(UTC)
    assert await status(edge, secret, "/sessions") == 200
    (token,) = await listed(phone)
    assert before - timedelta(seconds=5) <= datetime.fromisoformat(token["last_used_at"]) <= datetime.now(UTC)


async def test_a_made_up_one_opens_nothing(edge: Edge, phone: Phone) -> None:
    secret = (await created(phone))["token"]
    for text in (
        new_token(),
        secret[:-1],
        secret[:-1] + ("x" if secret[-1] != "x" else "y"),
        PREFIX,
        PREFIX + "é" * 46,
    ):
        answer = await edge.http.get("/sessions", headers={b"authorization": f"Bearer {text}".encode()})
        assert answer.status_code == 401
        assert answer.json()["error"]["details"] == [{"field": "Authorization", "reason": "INVALID_TOKEN"}]


async def test_who_may_make_one_for_whom(edge: Edge, phone: Phone) -> None:
    body = {"user_id": phone.user_id, "name": "for them", "scopes": ["read"]}
    mine, theirs = await edge.administrator(), await edge.administrator(tenant_id=9)
    other = await edge.phone()
    for answer, code in (
        (await phone.call("POST", "/tokens/", json=body), 201),
        (await mine.call("POST", "/tokens/", json=body), 201),
        (await as_service(edge, "POST", "/tokens/", json=body), 201),
        (await theirs.call("POST", "/tokens/", json=body), 403),
        (await other.call("POST", "/tokens/", json=body), 403),
        (await edge.http.post("/tokens/", json=body), 401),
        (await as_service(edge, "POST", "/tokens/", json={**body, "user_id": str(uuid4())}), 404),
        (await as_service(edge, "POST", "/tokens/", json={**body, "user_id": ""}), 400),
        (await other.call("PUT", f"/tokens/{phone.user_id}", json={"revoke": True}), 403),
        (await theirs.call("PUT", f"/tokens/{phone.user_id}", json={"revoke": True}), 403),
        (await other.call("GET", f"/tokens/{phone.user_id}"), 403),
        (await theirs.call("GET", f"/tokens/{phone.user_id}"), 403),
        (await mine.call("GET", f"/tokens/{phone.user_id}"), 200),
        (await as_service(edge, "GET", f"/tokens/{phone.user_id}"), 200),
    ):
        assert answer.status_code == code, answer.text
        if code >= 400:
            assert answer.json().keys() == {"detail"}
        elif code == 201:
            assert answer.json()["user_id"] == phone.user_id
            assert await status(edge, answer.json()["token"], "/sessions") == 200
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        rows = connection.execute(
            "SELECT actor FROM auth.security_events WHERE account_id = %s AND kind = 'application_token_created'"
            " ORDER BY id",
            [phone.user_id],
        ).fetchall()
    assert rows == [("",), (f"admin:{mine.user_id}",), ("service:garmin",)]
    assert len(await listed(phone)) == 3


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": 7}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"scopes": ["read", ""]}, "scopes"),
        ({"scopes": ["garmin:\0"]}, "scopes"),
        ({"scopes": ["x" * 10_000]}, "scopes"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"user_id": "me"}, "user_id"),
    ],
)
async def test_what_is_no_token_is_refused(phone: Phone, given: Any, field: str) -> None:
    answer = await phone.call("POST", "/tokens/", json={"name": "x", "scopes": ["read"], **given})
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert await listed(phone) == []


async def test_an_update_says_what_and_which(phone: Phone) -> None:
    path = f"/tokens/{phone.user_id}"
    assert (await phone.call("PUT", path, json={"name": "x"})).status_code == 404
    first = await created(phone)
    for body, detail in (
        ({}, "name: is required"),
        ({"name": "x" * 101}, "name: is longer than 100 characters"),
        ({"rotate": True, "revoke": True}, "revoke: cannot go with rotate"),
        ({"id": "x", "name": "y"}, "id: must be a UUID"),
    ):
        answer = await phone.call("PUT", path, json=body)
        assert (answer.status_code, answer.json()) == (400, {"detail": detail})
    second = await created(phone, name="second")
    answer = await phone.call("PUT", path, json={"name": "which?"})
    assert (answer.status_code, answer.json()) == (400, {"detail": "id: is required"})
    await changed(phone, id=second["id"], name="renamed")
    assert [(one["id"], one["name"]) for one in await listed(phone)] == [
        (second["id"], "renamed"),
        (first["id"], "my script"),
    ]


async def test_a_token_of_somebody_else_is_not_there(edge: Edge, phone: Phone) -> None:
    theirs = await created(await edge.phone())
    await created(phone)
    for change in ({"revoke": True}, {"rotate": True}, {"name": "mine"}):
        answer = await phone.call("PUT", f"/tokens/{phone.user_id}", json={"id": theirs["id"], **change})
        assert answer.status_code == 404
    assert await status(edge, theirs["token"], "/sessions") == 200


async def test_nobody_has_more_than_fifty_however_many_come_at_once(phone: Phone) -> None:
    body = {"name": "x", "scopes": ["read"]}
    answers = await asyncio.gather(*(phone.call("POST", "/tokens/", json=body) for _ in range(55)))
    assert sorted({answer.status_code for answer in answers}) == [201, 409]
    assert len(await listed(phone)) == 50


def test_a_scanner_tells_a_token_from_other_text() -> None:
    token = new_token()
    assert len(token) == 50
    rest, digits = zlib.crc32(token[4:44].encode()), ""
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    while rest:
        digits, rest = alphabet[rest % 62] + digits, rest // 62
    assert token[44:] == digits.rjust(6, "0")
    assert len({new_token() for _ in range(100)}) == 100
    assert len(digest(token)) == 32
