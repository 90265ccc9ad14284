"""Services that act for users: RFC 8693, short tokens that name both, ended with whom they speak for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import jwt
import psycopg
import pytest

from deploy.parts import running
from runtime.errors import Failure, Reason
from runtime.identity import ISSUER, MESH_AUDIENCE, ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import TOKEN_EXCHANGE, USER_ID_TYPE, Acting
from tests.auth.callers import as_service, bearer, service_headers
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone, puzzle_session
from tests.polling import until

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
JWT = "urn:ietf:params:oauth:token-type:jwt"


@pytest.fixture
async def phone(edge: Edge) -> Phone:
    """Of a guest, who is a user like any other here, and has no password that would have to be hashed."""
    return await Phone.as_guest(edge.http)


def asked(token: str, **given: str) -> dict[str, str]:
    return {"grant_type": TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": ACCESS_TOKEN, **given}


def for_user(phone: Phone) -> dict[str, str]:
    return asked(phone.user_id, subject_token_type=USER_ID_TYPE)


async def exchange(edge: Edge, request: dict[str, Any]) -> httpx.Response:
    return await as_service(edge, "POST", "/v1/auth/token", json=request)


async def exchanged(edge: Edge, request: dict[str, Any]) -> str:
    answer = await exchange(edge, request)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


async def status(edge: Edge, token: str, path: str = "/v1/auth/me", verb: str = "GET", **request: Any) -> int:
    return (await edge.http.request(verb, path, headers=bearer(token), **request)).status_code


@pytest.mark.parametrize("kind", ["token", "jwt", "user"])
async def test_the_answer_is_that_of_the_rfc_and_its_token_names_both(edge: Edge, phone: Phone, kind: str) -> None:
    request = {
        "token": asked(phone.access_token),
        "jwt": asked(phone.access_token, subject_token_type=JWT, requested_token_type=JWT),
        "user": for_user(phone),
    }[kind]
    answer = await exchange(edge, request)
    assert answer.status_code == 200
    body = answer.json()
    token = body.pop("access_token")
    assert body == {
        "issued_token_type": JWT if kind == "jwt" else ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": "",
    }
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["act"]) == (phone.user_id, {"sub": "service:garmin"})
    assert claims["exp"] - claims["iat"] == 300
    me = await edge.http.get("/v1/auth/me", headers=bearer(token))
    assert me.json()["id"] == phone.user_id


async def test_only_services_may(edge: Edge, phone: Phone) -> None:
    administrator = await edge.administrator()
    acting = await exchanged(edge, for_user(phone))
    for headers in (phone.headers, administrator.headers, bearer(acting)):
        answer = await edge.http.post("/v1/auth/token", json=for_user(phone), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert (await edge.http.post("/v1/auth/token", json=for_user(phone))).status_code == 401


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ({"grant_type": ""}, "grant_type", "REQUIRED"),
        ({"grant_type": "password"}, "grant_type", "UNKNOWN_VALUE"),
        ({"subject_token": ""}, "subject_token", "REQUIRED"),
        ({"subject_token": "me", "subject_token_type": USER_ID_TYPE}, "subject_token", "INVALID_FORMAT"),
        ({"subject_token_type": ""}, "subject_token_type", "REQUIRED"),
        ({"subject_token_type": "urn:x"}, "subject_token_type", "UNKNOWN_VALUE"),
        ({"requested_token_type": "urn:x"}, "requested_token_type", "UNKNOWN_VALUE"),
        ({"scope": "everything"}, "scope", "UNKNOWN_VALUE"),
        ({"scope": "read \0"}, "scope", "UNKNOWN_VALUE"),
    ],
)
async def test_what_is_no_exchange_is_refused(edge: Edge, phone: Phone, given: Any, field: str, reason: str) -> None:
    answer = await exchange(edge, asked(phone.access_token, **given))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["details"] == [{"field": field, "reason": reason}]


async def test_a_subject_that_is_nobody_is_refused(edge: Edge, phone: Phone) -> None:
    acting = await exchanged(edge, for_user(phone))
    service = service_headers(edge)["authorization"].removeprefix("Bearer ")
    for request, code, reason in (
        (asked(str(uuid4()), subject_token_type=USER_ID_TYPE), 404, None),
        (asked("garbage"), 401, "INVALID_TOKEN"),
        (asked(phone.refresh_token), 401, "INVALID_TOKEN"),
        (asked("sat_" + "x" * 46), 401, "INVALID_TOKEN"),
        (asked(service), 403, None),
        (asked(acting), 403, None),
    ):
        answer = await exchange(edge, request)
        assert answer.status_code == code, answer.text
        if reason:
            assert answer.json()["error"]["details"] == [{"field": "Authorization", "reason": reason}]
    assert (await phone.call("POST", "/v1/auth/signout", json={})).status_code == 200
    answer = await exchange(edge, asked(phone.access_token))
    assert answer.json()["error"]["details"] == [{"field": "Authorization", "reason": "TOKEN_REVOKED"}]
    assert (await exchange(edge, for_user(phone))).status_code == 200, "who signed out still has a background"
    second = await edge.phone()
    assert (await second.call("DELETE", "/v1/auth/me")).status_code == 200
    assert (await exchange(edge, for_user(second))).status_code == 404


async def test_it_ends_with_the_sign_in_or_the_account(edge: Edge) -> None:
    phone = await edge.phone()
    by_token, by_id = await exchanged(edge, asked(phone.access_token)), await exchanged(edge, for_user(phone))
    paths = ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits")

    def refused(token: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return [await status(edge, token, path) for path in paths] == [401] * 3

        return check

    assert [await status(edge, token, path) for token in (by_token, by_id) for path in paths] == [200] * 6
    assert (await phone.call("POST", "/v1/auth/signout", json={})).status_code == 200
    assert await until(refused(by_token), seconds=5) < 1.5
    assert [await status(edge, by_id, path) for path in paths] == [200] * 3
    answer = await edge.http.post("/v1/auth/signin", json={"email": phone.email, "password": "securepassword123"})
    again = bearer(answer.json()["access_token"])
    assert (await edge.http.delete("/v1/auth/me", headers=again)).status_code == 200
    assert await until(refused(by_id), seconds=5) < 1.5


async def test_who_acts_for_a_user_changes_no_way_into_the_account(edge: Edge, phone: Phone) -> None:
    token = await exchanged(edge, for_user(phone))
    for verb, path, body in (
        ("DELETE", "/v1/auth/me", None),
        ("POST", "/v1/auth/signout", {"scope": "all"}),
        ("POST", "/tokens/", {"name": "x", "scopes": ["read"]}),
        ("PUT", f"/tokens/{phone.user_id}", {"revoke": True}),
        ("GET", f"/tokens/{phone.user_id}", None),
        ("GET", f"/garmin_credentials/{phone.user_id}", None),
        ("POST", "/users", {"email": "x@example.com"}),
    ):
        assert await status(edge, token, path, verb, **({"json": body} if body else {})) == 403, path
    assert await status(edge, token, f"/users/{phone.user_id}") == 200
    assert await status(edge, token, "/v1/sessions", "POST", json={"sessions": [puzzle_session()]}) == 200
    assert (await phone.call("GET", "/v1/sessions")).json()["total"] == 1


async def test_an_administrators_rights_are_not_lent(edge: Edge) -> None:
    administrator = await edge.administrator()
    for request in (for_user(administrator), asked(administrator.access_token)):
        claims = jwt.decode(await exchanged(edge, request), options={"verify_signature": False})
        assert claims["role"] == "user"


async def test_a_scope_narrows_and_never_widens(edge: Edge, phone: Phone) -> None:
    reads = await exchanged(edge, {**for_user(phone), "scope": "read"})
    assert await status(edge, reads, "/v1/sessions") == 200
    assert await status(edge, reads, "/v1/sessions", "POST", json={"sessions": [puzzle_session()]}) == 403
    made = await phone.call("POST", "/tokens/", json={"name": "x", "scopes": ["sessions:read"]})
    secret = made.json()["token"]
    narrow = await exchanged(edge, asked(secret))
    assert [await status(edge, narrow, path) for path in ("/v1/sessions", "/api/v1/uploads/limits")] == [200, 403]
    assert (await exchange(edge, asked(secret, scope="read"))).status_code == 403


async def test_every_exchange_is_an_event_that_names_the_service(edge: Edge, phone: Phone) -> None:
    await exchanged(edge, for_user(phone))
    await exchanged(edge, asked(phone.access_token))
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        rows = connection.execute(
            "SELECT actor, detail, sign_in_id IS NULL FROM auth.security_events"
            " WHERE account_id = %s AND kind = 'token_exchanged' ORDER BY id",
            [phone.user_id],
        ).fetchall()
    assert rows == [
        ("service:garmin", {"subject": "user"}, True),
        ("service:garmin", {"subject": "token"}, False),
    ]


async def test_the_logs_of_every_service_show_both(database_url: str, redis_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    part = service_part("all", config, tmp_path)
    async with running(part), envoy_for(config, tmp_path / "edge") as edge:
        await until_healthy(edge)
        phone = await edge.phone()
        token = await exchanged(edge, for_user(phone))
        for path in ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits"):
            assert await status(edge, token, path) == 200
        assert (await phone.call("GET", "/sessions")).status_code == 200
    lines = [json.loads(line) for line in part.log.read_text().splitlines() if '"rpc"' in line]
    told = [(line["method"].rpartition("/")[2], line.get("actor")) for line in lines if line["user"] == phone.user_id]
    assert set(told) == {
        ("GetMe", "service:garmin"),
        ("ListExerciseSessions", "service:garmin"),
        ("GetUploadLimits", "service:garmin"),
        ("ListExerciseSessions", None),
    }
    assert token not in part.log.read_text() + edge.log.read_text()


@pytest.mark.parametrize("name", ["", "garmin", "user:garmin", "service:", "service:" + "x" * 101, "service:a b", 7])
async def test_a_service_without_a_proper_name_is_none(edge: Edge, name: Any) -> None:
    claims = {"iss": ISSUER, "aud": MESH_AUDIENCE, "sub": name, "iat": int(time.time()), "exp": int(time.time()) + 60}
    token = jwt.encode(claims, mesh_secret(edge.mesh.config.keys), algorithm="HS256")
    answer = await edge.http.get(f"/users/{uuid4()}", headers=bearer(token))
    assert answer.status_code == 401


class TestActing:
    """What services use of it."""

    async def test_tokens_are_kept_and_asked_for_once(self, edge: Edge, phone: Phone) -> None:
        moment = 0.0
        tokens = ServiceTokens(mesh_secret(edge.mesh.config.keys), "garmin")
        async with grpc.aio.insecure_channel(edge.target) as channel:
            acting = Acting(channel, tokens, monotonic=lambda: moment)
            first, *others = await asyncio.gather(*(acting.acting_for(self.id(phone)) for _ in range(20)))
            assert set(others) == {first}
            moment = 149.0
            assert await acting.acting_for(self.id(phone)) == first
            assert await status(edge, first[0][1].removeprefix("Bearer ")) == 200
            assert self.exchanges(edge, phone) == 1
            moment = 151.0
            await acting.acting_for(self.id(phone))
            assert self.exchanges(edge, phone) == 2
            acting.forget(self.id(phone))
            await acting.acting_for(self.id(phone))
            assert self.exchanges(edge, phone) == 3

    async def test_one_who_is_gone_is_told_and_stops_nobody_else(self, edge: Edge, phone: Phone) -> None:
        tokens = ServiceTokens(mesh_secret(edge.mesh.config.keys), "garmin")
        async with grpc.aio.insecure_channel(edge.target) as channel:
            acting = Acting(channel, tokens)
            outcomes = await asyncio.gather(
                *(acting.acting_for(one) for one in (uuid4(), self.id(phone), uuid4())), return_exceptions=True
            )
        assert isinstance(outcomes[1], tuple)
        for outcome in (outcomes[0], outcomes[2]):
            assert isinstance(outcome, Failure)
            assert outcome.reason is Reason.NOT_FOUND

    def id(self, phone: Phone) -> Any:
        return UUID(phone.user_id)

    def exchanges(self, edge: Edge, phone: Phone) -> int:
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            query = "SELECT count(*) FROM auth.security_events WHERE account_id = %s AND kind = 'token_exchanged'"
            row = connection.execute(query, [phone.user_id]).fetchone()
        assert row is not None
        return int(row[0])
