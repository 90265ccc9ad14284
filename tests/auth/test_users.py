"""Accounts of other people: created and seen by services and by those who administer their tenant."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.auth.callers import as_service
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone


def address() -> str:
    return f"{uuid4().hex}@example.com"


async def sign_in(edge: Edge, email: str, password: str = PASSWORD) -> int:
    return (await edge.http.post("/v1/auth/signin", json={"email": email, "password": password})).status_code


async def test_a_service_creates_a_user_and_finds_it_by_id_and_by_address(edge: Edge) -> None:
    email = address()
    created = await as_service(edge, "POST", "/users", json={"email": f" {email.upper()} "})
    assert created.status_code == 201
    user = created.json()
    assert (user["email"], user["tenant_id"], user["role"]) == (email, 1, "user")
    assert user["created_at"].endswith("Z")
    for path in (f"/users/{user['id']}", f"/users?email={email}", f"/users?email={email.upper()}"):
        found = await as_service(edge, "GET", path)
        assert (found.status_code, found.json()) == (200, user)


async def test_an_address_that_is_taken_is_a_conflict(edge: Edge, phone: Phone) -> None:
    for email in (phone.email, phone.email.upper()):
        answer = await as_service(edge, "POST", "/users", json={"email": email})
        assert (answer.status_code, answer.json()) == (409, {"detail": "This email is registered already."})


async def test_of_many_at_once_one_is_created(edge: Edge) -> None:
    email = address()
    answers = await asyncio.gather(*(as_service(edge, "POST", "/users", json={"email": email}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


async def test_with_a_password_the_user_signs_in_and_without_one_nobody_does(edge: Edge) -> None:
    with_one, without = address(), address()
    for email, body in ((with_one, {"password": PASSWORD}), (without, {})):
        answer = await as_service(edge, "POST", "/users", json={"email": email, **body})
        assert answer.status_code == 201
        assert PASSWORD not in answer.text
    assert await sign_in(edge, with_one) == 200
    # The second is what the time of an unknown account is made from.
    for password in (PASSWORD, "nobody's password", " "):
        assert await sign_in(edge, without, password) == 401


async def test_an_administrator_acts_in_the_own_tenant_only(edge: Edge) -> None:
    administrator, stranger = await edge.administrator(tenant_id=7), await edge.phone(tenant_id=8)
    created = await administrator.call("POST", "/users", json={"email": address()})
    assert (created.status_code, created.json()["tenant_id"]) == (201, 7)
    same = await administrator.call("POST", "/users", json={"email": address(), "tenant_id": 7})
    assert same.status_code == 201
    foreign = await administrator.call("POST", "/users", json={"email": address(), "tenant_id": 8})
    assert (foreign.status_code, foreign.json()) == (403, {"detail": "This is another tenant."})
    assert (await administrator.call("GET", f"/users/{created.json()['id']}")).json() == created.json()
    assert (await administrator.call("GET", f"/users?email={created.json()['email']}")).json() == created.json()
    assert (await administrator.call("GET", f"/users/{stranger.user_id}")).status_code == 403
    assert (await administrator.call("GET", f"/users?email={stranger.email}")).status_code == 404
    by_service = await as_service(edge, "POST", "/users", json={"email": address(), "tenant_id": 8})
    assert by_service.json()["tenant_id"] == 8


async def test_a_user_sees_no_account_but_the_own(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    mine = await phone.call("GET", f"/users/{phone.user_id}")
    assert (mine.status_code, mine.json()["email"]) == (200, phone.email)
    for verb, path, body in (
        ("GET", f"/users/{other.user_id}", None),
        ("GET", f"/users/{uuid4()}", None),
        ("GET", f"/users?email={phone.email}", None),
        ("POST", "/users", {"email": address()}),
    ):
        answer = await phone.call(verb, path, **({"json": body} if body else {}))
        assert answer.status_code == 403
        assert answer.json().keys() == {"detail"}


async def test_who_is_gone_is_not_found(edge: Edge, phone: Phone) -> None:
    assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
    for path in (f"/users/{phone.user_id}", f"/users?email={phone.email}", f"/users/{uuid4()}"):
        answer = await as_service(edge, "GET", path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such user."})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "email"),
        ({"email": ""}, "email"),
        ({"email": "x"}, "email"),
        ({"email": 7}, "email"),
        ({"email": "x" * 300 + "@example.com"}, "email"),
        ({"email": "a\0b@example.com"}, "email"),
        ({"email": "a@example.com", "password": "short"}, "password"),
        ({"email": "a@example.com", "password": "x" * 129}, "password"),
        ({"email": "a@example.com", "tenant_id": -1}, "tenant_id"),
        ({"email": "a@example.com", "tenant_id": "x"}, "tenant_id"),
    ],
)
async def test_what_is_no_account_is_refused(edge: Edge, body: Any, field: str) -> None:
    answer = await as_service(edge, "POST", "/users", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    "path", ["/users", "/users?email=", "/users?email=x", "/users/me", "/users/7", "/users?name=x"]
)
async def test_what_names_nobody_is_refused(edge: Edge, path: str) -> None:
    answer = await as_service(edge, "GET", path)
    assert answer.status_code == 400
    assert answer.json().keys() == {"detail"}


async def test_who_created_a_user_is_in_the_log_of_events(edge: Edge) -> None:
    administrator = await edge.administrator()
    created = [
        (await caller).json()["id"]
        for caller in (
            as_service(edge, "POST", "/users", json={"email": address()}),
            administrator.call("POST", "/users", json={"email": address()}),
        )
    ]
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        query = "SELECT kind, actor, tenant_id FROM auth.security_events WHERE account_id = %s"
        events = [connection.execute(query, [one]).fetchall() for one in created]
    assert events == [
        [("user_created", "service:garmin", 1)],
        [("user_created", f"admin:{administrator.user_id}", 1)],
    ]
