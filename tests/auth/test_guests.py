"""Guests: somebody who tries first, and keeps what was tried when signing up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import psycopg
import pytest

from runtime.database import Database, database
from runtime.errors import Failure, Reason
from services.auth.accounts import NO_SUBSCRIPTION, Account
from services.auth.accounts_store import KEPT, OWNED, AccountStore
from services.auth.deletions_domain import Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.guests_domain import Guests
from services.auth.guests_store import GuestStore
from services.auth.sign_ins_domain import Device, SignIn
from services.auth.sign_ins_store import SignInStore
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone, change, puzzle_session

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
LIFETIME = timedelta(days=90)


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


async def sign_up(guest: Phone, email: str, **given: Any) -> httpx.Response:
    return await guest.call("POST", "/v1/auth/signup", json={"email": email, "password": PASSWORD, **given})


def address() -> str:
    return f"{uuid4().hex}@example.com"


def kinds(edge: Edge, user_id: str) -> list[str]:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        found = connection.execute(
            "SELECT kind FROM auth.security_events WHERE account_id = %s ORDER BY id", [user_id]
        ).fetchall()
    return [kind for (kind,) in found]


async def test_a_guest_is_a_user_without_an_address(edge: Edge) -> None:
    answer = await edge.http.post("/v1/auth/anonymous", json={"device_name": "Pixel", "tenant_id": 7})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["user"]["email"], body["user"]["is_guest"], body["user"]["tier"]) == ("", True, "free")
    claims = claims_of(body["access_token"])
    assert (claims["guest"], claims["role"], claims["tenant_id"]) == (True, "user", 7)
    guest = Phone(edge.http, body["user"]["id"], "", body["access_token"], body["refresh_token"])
    me = (await guest.call("GET", "/v1/auth/me")).json()
    assert (me["id"], me["email"], me["is_guest"]) == (guest.user_id, "", True)
    assert (await guest.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})).json()["synced"] == 1
    refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": guest.refresh_token})
    assert claims_of(refreshed.json()["access_token"])["guest"] is True
    assert kinds(edge, guest.user_id) == ["guest_created"]


async def test_guests_are_no_danger_to_each_other(edge: Edge) -> None:
    guests = [await Phone.as_guest(edge.http) for _ in range(2)]
    assert guests[0].user_id != guests[1].user_id
    for email in ("", " "):
        answer = await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 400


@pytest.mark.parametrize(("field", "value"), [("tenant_id", -1), ("device_name", "x" * 101), ("device_name", "a\nb")])
async def test_a_guest_names_what_is_wrong(edge: Edge, field: str, value: object) -> None:
    answer = await edge.http.post("/v1/auth/anonymous", json={field: value})
    assert (answer.status_code, answer.json()["error"]["details"][0]["field"]) == (400, field)


async def test_guests_of_one_address_come_only_so_often(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(rate_limits="on")
    answers = [await edge.http.post("/v1/auth/anonymous", json={}) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [201] * 10 + [429]
    assert answers[-1].json()["error"]["code"] == "RATE_LIMIT"


async def test_a_guest_who_signs_up_keeps_id_and_data_and_sign_in(edge: Edge) -> None:
    guest, email = await Phone.as_guest(edge.http), address()
    await guest.call("POST", "/api/v1/sync/push", json={"changes": [change(id="kept")]})
    answer = await sign_up(guest, f" {email.upper()} ")
    assert answer.status_code == 201
    body = answer.json()
    assert body["user"] == {**body["user"], "id": guest.user_id, "email": email, "is_guest": False}
    assert "guest" not in claims_of(body["access_token"])
    for one in (guest, replace(guest, access_token=body["access_token"])):
        page = (await one.call("GET", "/api/v1/sync/pull")).json()
        assert [entry["id"] for entry in page["changes"]] == ["kept"]
    for refresh_token in (guest.refresh_token, body["refresh_token"]):
        refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": refresh_token})
        assert refreshed.status_code == 200
        assert "guest" not in claims_of(refreshed.json()["access_token"])
    signed_in = await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})
    assert signed_in.json()["user"]["id"] == guest.user_id
    assert kinds(edge, guest.user_id) == ["guest_created", "guest_signed_up", "signed_in", "signed_in"]


async def test_a_taken_address_leaves_the_guest_as_it_was(edge: Edge, phone: Phone) -> None:
    guest = await Phone.as_guest(edge.http)
    answer = await sign_up(guest, phone.email)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")
    me = (await guest.call("GET", "/v1/auth/me")).json()
    assert (me["id"], me["email"], me["is_guest"]) == (guest.user_id, "", True)
    assert (await sign_up(guest, address())).status_code == 201
    assert kinds(edge, guest.user_id) == ["guest_created", "guest_signed_up", "signed_in"]


async def test_signing_up_twice_as_the_same_guest_is_harmless_and_only_so(edge: Edge) -> None:
    guest, email = await Phone.as_guest(edge.http), address()
    answers = await asyncio.gather(*(sign_up(guest, email) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert {answer.json()["user"]["id"] for answer in answers} == {guest.user_id}
    for wrong in ({"email": email, "password": "another password"}, {"email": address(), "password": PASSWORD}):
        refused = await guest.call("POST", "/v1/auth/signup", json=wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CONFLICT"), wrong
    signed_in = await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})
    assert signed_in.status_code == 200
    assert kinds(edge, guest.user_id).count("guest_signed_up") == 1


async def test_one_address_for_two_guests_at_once_goes_to_one(edge: Edge) -> None:
    guests, email = [await Phone.as_guest(edge.http) for _ in range(3)], address()
    answers = await asyncio.gather(*(sign_up(guest, email) for guest in guests))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]


async def test_a_token_that_is_sent_must_be_good_and_an_accounts_own_changes_nothing(edge: Edge, phone: Phone) -> None:
    refused = await sign_up(replace(phone, access_token="garbage"), address())
    assert refused.status_code == 401
    other = await sign_up(phone, address())
    assert other.status_code == 201
    assert other.json()["user"]["id"] != phone.user_id


async def test_a_guest_signs_up_in_its_own_tenant(edge: Edge) -> None:
    guest = await Phone.as_guest(edge.http, tenant_id=7)
    refused = await sign_up(guest, address(), tenant_id=8)
    assert (refused.status_code, refused.json()["error"]["details"][0]["field"]) == (400, "tenant_id")
    answer = await sign_up(guest, address())
    assert claims_of(answer.json()["access_token"])["tenant_id"] == 7


async def test_a_deleted_guest_signs_up_as_nobody(edge: Edge) -> None:
    guest = await Phone.as_guest(edge.http)
    assert (await guest.call("DELETE", "/v1/auth/me")).status_code == 200
    assert (await sign_up(guest, address())).status_code == 401


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=6, name="test") as opened:
        yield opened


async def stored_guest(db: Database, *, used: datetime, is_guest: bool = True) -> tuple[UUID, SignIn]:
    guest = Account(
        id=uuid4(),
        email="" if is_guest else address(),
        tenant_id=1,
        role="user",
        create_time=NOW - timedelta(days=200),
        subscription=NO_SUBSCRIPTION,
        is_guest=is_guest,
    )
    sign_in = SignIn(
        id=uuid4(),
        account_id=guest.id,
        device=Device(name="phone", ip="192.0.2.1", user_agent="app"),
        method="guest",
        token_key=b"key",
        current_digest=b"digest",
        create_time=used,
        expire_time=NOW + timedelta(days=30),
    )
    await AccountStore(db).create(guest, "", sign_in, SecurityEvent(kind=Kind.GUEST_CREATED, account_id=guest.id))
    return guest.id, sign_in


def guests_of(db: Database, told: list[None]) -> Guests:
    return Guests(
        GuestStore(db),
        AccountStore(db),
        None,  # type: ignore[arg-type]  # nobody signs in here
        Receipts(b"secret"),
        deleted=lambda: told.append(None),
        now=lambda: NOW,
    )


async def living(db: Database) -> set[UUID]:
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT id FROM auth.accounts WHERE delete_time IS NULL")
        return {row["id"] for row in await cursor.fetchall()}


async def test_guests_who_have_not_been_back_are_swept_and_nobody_else(db: Database) -> None:
    long_ago, lately = NOW - LIFETIME - timedelta(seconds=1), NOW - LIFETIME + timedelta(seconds=1)
    idle = [(await stored_guest(db, used=long_ago))[0] for _ in range(5)]
    kept = {(await stored_guest(db, used=lately))[0], (await stored_guest(db, used=long_ago, is_guest=False))[0]}
    told: list[None] = []
    replicas = await asyncio.gather(*(guests_of(db, told).idle(NOW - LIFETIME, 100) for _ in range(3)))
    assert sum(replicas) == 5
    assert told
    assert await living(db) == kept
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT account_id FROM auth.erasures")
        assert {row["account_id"] for row in await cursor.fetchall()} == set(idle)
        cursor = await statements.connection.execute(
            "SELECT actor FROM auth.security_events WHERE kind = 'account_deleted'"
        )
        assert [row["actor"] for row in await cursor.fetchall()] == ["system"] * 5
    assert await guests_of(db, told).idle(NOW - LIFETIME, 100) == 0


async def test_a_guest_who_comes_back_at_the_last_moment_stays(db: Database) -> None:
    guest_id, sign_in = await stored_guest(db, used=NOW - LIFETIME - timedelta(days=1))
    async with db.transaction() as transaction:
        await transaction.connection.execute(
            "UPDATE auth.sign_ins SET last_use_time = %s WHERE id = %s", [NOW, sign_in.id]
        )
        sweeping = asyncio.create_task(guests_of(db, []).idle(NOW - LIFETIME, 100))
        async with db.statements() as statements:
            while True:  # until the sweep waits for who comes back
                cursor = await statements.connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
                if await cursor.fetchone():
                    break
    assert await sweeping == 0
    assert await living(db) == {guest_id}


async def test_a_guest_who_signs_up_while_it_is_swept_is_one_or_the_other(db: Database) -> None:
    for _ in range(20):
        guest_id, _ = await stored_guest(db, used=NOW - LIFETIME - timedelta(days=1))
        event = SecurityEvent(kind=Kind.GUEST_SIGNED_UP, account_id=guest_id)
        upgraded, swept = await asyncio.gather(
            AccountStore(db).upgrade(guest_id, address(), "hash", NOW, event),
            guests_of(db, []).idle(NOW - LIFETIME, 100),
            return_exceptions=True,
        )
        assert (guest_id in await living(db)) is isinstance(upgraded, Account) is (swept == 0)
        if isinstance(upgraded, Failure):
            assert upgraded.reason is Reason.INVALID_TOKEN


async def test_no_table_of_an_account_is_forgotten_when_it_is_deleted(db: Database) -> None:
    async with db.statements() as statements:
        cursor = await statements.connection.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'auth' AND column_name = 'account_id'"
        )
        tables = {row["table_name"] for row in await cursor.fetchall()}
    ended = {statement.table.name for statement in OWNED.values()}  # type: ignore[attr-defined]  # updates, deletes
    assert tables == ended - {"subscription_events"} | KEPT.keys()  # which knows its owner by another name
    assert not ended & KEPT.keys()


async def test_a_deletion_counts_what_it_ended_and_leaves_no_place_where_it_was_used(db: Database) -> None:
    account_id, sign_in = await stored_guest(db, used=NOW)
    sign_ins = SignInStore(db)
    event = SecurityEvent(kind=Kind.SIGNED_IN, account_id=account_id)
    await sign_ins.create(replace(sign_in, id=uuid4()), event)
    await AccountStore(db).delete(account_id, NOW, b"digest", SecurityEvent(kind=Kind.ACCOUNT_DELETED, account_id=None))
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT removed FROM auth.deletions")
        row = await cursor.fetchone()
        assert row is not None
        assert row["removed"]["account"] == {"sign_ins": 2}  # these events say nothing that is to be forgotten
        cursor = await statements.connection.execute("SELECT DISTINCT ip, user_agent, device_name FROM auth.sign_ins")
        assert await cursor.fetchall() == [{"ip": "", "user_agent": "", "device_name": ""}]
