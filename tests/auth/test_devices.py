"""Devices as the owner of an account sees them: which are signed in, and how one of them is signed out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import psycopg
from satchel.auth.v1 import auth_pb2

from runtime.database import Database, database
from services.auth.sign_ins_domain import MAX_SIGN_INS, MEMORY
from services.auth.sweeps_domain import Sweeps
from services.auth.sweeps_store import SweepStore
from tests.auth.replicas import Guest, replicas
from tests.conftest import Edge, config_for
from tests.factories import PASSWORD, Phone
from tests.polling import until

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)


def sign_in_id(phone: Phone) -> str:
    return str(jwt.decode(phone.access_token, options={"verify_signature": False})["sid"])


async def another(edge: Edge, phone: Phone, name: str = "") -> Phone:
    """A further device of the phone's user."""
    account = {"email": phone.email, "password": PASSWORD, "device_name": name}
    body = (await edge.http.post("/v1/auth/signin", json=account, headers={"user-agent": "Tablet/1"})).json()
    return Phone(edge.http, phone.user_id, phone.email, body["access_token"], body["refresh_token"])


async def devices(phone: Phone, **query: Any) -> list[dict[str, Any]]:
    answer = await phone.call("GET", "/v1/auth/devices", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["devices"]
    return found


def sign_ins_of(edge: Edge, phone: Phone, sql: str) -> None:
    """Changes the sign-ins of the phone's user."""
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute(f"UPDATE auth.sign_ins SET {sql} WHERE account_id = %s", [phone.user_id])  # type: ignore[arg-type]


async def test_the_list_tells_of_each_device_and_which_one_asks(edge: Edge) -> None:
    phone = await edge.phone(device_name="Ann's phone")
    tablet = await another(edge, phone, "Ann's tablet")
    first, second = await devices(phone)
    assert (first["id"], first["current"]) == (sign_in_id(tablet), False)
    assert (second["id"], second["current"]) == (sign_in_id(phone), True)
    assert (first["device_name"], second["device_name"]) == ("Ann's tablet", "Ann's phone")
    assert (first["method"], first["ip"], first["user_agent"]) == ("password", "127.0.0.1", "Tablet/1")
    created, used, expires = (
        datetime.fromisoformat(first[f"{name}_time"]) for name in ("create", "last_use", "expire")
    )
    assert created == used
    assert expires == created + timedelta(days=30)


async def test_the_device_that_was_used_last_comes_first_from_where_it_was_used(edge: Edge) -> None:
    phone = await edge.phone()
    tablet = await another(edge, phone)
    await edge.http.post(
        "/v1/auth/refresh", json={"refresh_token": phone.refresh_token}, headers={"user-agent": "Phone/2"}
    )
    first, second = await devices(tablet)
    assert (first["id"], first["user_agent"]) == (sign_in_id(phone), "Phone/2")
    assert first["last_use_time"] > first["create_time"]
    assert second["id"] == sign_in_id(tablet)


async def test_what_has_ended_or_expired_or_is_somebody_elses_is_not_listed(edge: Edge, phone: Phone) -> None:
    await edge.phone()
    gone = await another(edge, phone)
    assert (await gone.call("POST", "/v1/auth/signout", json={})).status_code == 200
    assert [one["id"] for one in await devices(phone)] == [sign_in_id(phone)]
    sign_ins_of(edge, phone, "expire_time = now()")
    assert await devices(phone) == []


async def test_many_devices_come_in_pages_each_once(edge: Edge, phone: Phone) -> None:
    for _ in range(4):
        await another(edge, phone)
    sign_ins_of(edge, phone, "last_use_time = '2026-02-26T10:00:00Z'")  # at one moment the ids decide
    whole = [one["id"] for one in await devices(phone)]
    seen, token = [], ""
    while True:
        page = (await phone.call("GET", f"/v1/auth/devices?page_size=2&page_token={token}")).json()
        seen += [one["id"] for one in page["devices"]]
        token = page["next_page_token"]
        if not token:
            break
        assert len(page["devices"]) == 2
    assert seen == whole
    assert len(set(seen)) == 5


async def test_a_device_that_is_signed_out_is_refused_everywhere_within_a_second(edge: Edge, phone: Phone) -> None:
    tablet = await another(edge, phone)
    answer = await phone.call("DELETE", f"/v1/auth/devices/{sign_in_id(tablet)}")
    assert (answer.status_code, answer.json()) == (200, {"signed_out": 1})

    async def refused() -> bool:
        answers = [await tablet.call("GET", path) for path in ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits")]
        return all(answer.status_code == 401 for answer in answers)

    assert await until(refused, seconds=5) < 1.5
    assert (await phone.call("GET", "/v1/auth/me")).status_code == 200
    refresh = await edge.http.post("/v1/auth/refresh", json={"refresh_token": tablet.refresh_token})
    assert refresh.status_code == 401
    again = await phone.call("DELETE", f"/v1/auth/devices/{sign_in_id(tablet)}")
    assert (again.status_code, again.json()) == (200, {"signed_out": 0})


async def test_somebody_elses_device_and_an_unknown_one_are_not_found_alike(edge: Edge, phone: Phone) -> None:
    stranger = await edge.phone()
    answers = [await phone.call("DELETE", f"/v1/auth/devices/{id}") for id in (sign_in_id(stranger), str(uuid4()))]
    assert [answer.status_code for answer in answers] == [404, 404]
    first, second = (answer.json()["error"] for answer in answers)
    assert (first["code"], first["message"]) == (second["code"], second["message"]) == ("NOT_FOUND", first["message"])
    assert len(await devices(stranger)) == 1


async def test_signing_out_the_device_that_asks_is_a_sign_out(edge: Edge, phone: Phone) -> None:
    both = await asyncio.gather(*(phone.call("DELETE", f"/v1/auth/devices/{sign_in_id(phone)}") for _ in range(2)))
    assert sorted(answer.json().get("signed_out", 0) for answer in both) == [0, 1]
    assert (await edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})).status_code == 401


async def test_an_account_has_a_hundred_live_sign_ins_at_most_also_through_two_replicas(
    database_url: str, tmp_path: Path
) -> None:
    configs = [config_for(tmp_path, database_url=database_url) for _ in range(2)]
    async with replicas(*configs) as both:
        email = f"{uuid4().hex}@example.com"
        first = await Guest(both[0], "10.0.0.1").sign_up(email)
        with psycopg.connect(database_url) as connection:
            # As many as may be: the ones that were used after the first.
            connection.execute(
                "INSERT INTO auth.sign_ins (id, account_id, device_name, ip, token_key, current_digest, create_time,"
                " last_use_time, expire_time) SELECT gen_random_uuid(), account_id, 'n' || n, ip, token_key,"
                " current_digest, create_time, create_time + n * interval '1 us', expire_time"
                " FROM auth.sign_ins, generate_series(1, %s) AS n",
                [MAX_SIGN_INS - 1],
            )
        answers = await asyncio.gather(*(Guest(both[n % 2], "10.0.0.1").sign_in(email) for n in range(6)))
        assert all(isinstance(answer, auth_pb2.SignInResponse) for answer in answers)
        with psycopg.connect(database_url) as connection:
            ended = connection.execute(
                "SELECT id, device_name FROM auth.sign_ins WHERE revoke_time IS NOT NULL ORDER BY last_use_time"
            ).fetchall()
            live = connection.execute("SELECT count(*) FROM auth.sign_ins WHERE revoke_time IS NULL").fetchone()
            told = connection.execute(
                "SELECT count(*) FROM auth.security_events WHERE kind = 'signed_out' AND actor = 'system'"
            ).fetchone()
        assert live == (MAX_SIGN_INS,)
        assert [name for _, name in ended[1:]] == ["n1", "n2", "n3", "n4", "n5"], "the least recently used ones go"
        claims = jwt.decode(first.access_token, options={"verify_signature": False})
        assert str(ended[0][0]) == claims["sid"]
        assert told == (6,)


class TestSweeps:
    async def sweep(self, db: Database, now: datetime) -> Any:
        async def nobody(before: datetime, limit: int) -> int:
            return 0

        sweeps = Sweeps(
            SweepStore(db),
            events_lifetime=timedelta(days=365),
            idle_guests=nobody,
            guest_lifetime=timedelta(days=90),
            now=lambda: now,
            batch=2,
        )
        return await sweeps.round()

    async def test_sign_ins_go_long_after_their_end_and_none_before(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(database(database_url, connections=2, name="test"))
            hour = timedelta(hours=1)
            ages = {
                "revoked long ago": (-MEMORY - hour, hour),
                "expired long ago": (None, -MEMORY - hour),
                "revoked and expired": (-MEMORY - hour, -MEMORY - hour),
                "revoked, to be remembered": (-MEMORY + hour, hour),
                "expired, to be remembered": (None, -MEMORY + hour),
                "ended just now": (timedelta(0), hour),
                "live": (None, hour),
            }
            async with db.transaction() as transaction:
                await transaction.connection.execute(
                    "INSERT INTO auth.accounts (id, email, password_hash, tenant_id, role, tier, subscription_status,"
                    " cancel_at_period_end, create_time) VALUES (%s, 'a@example.com', '', 1, 'user', 'free',"
                    " 'inactive', false, now())",
                    [uuid4()],
                )
                for name, (revoked, expires) in ages.items():
                    await transaction.connection.execute(
                        "INSERT INTO auth.sign_ins (id, account_id, device_name, ip, token_key, current_digest,"
                        " create_time, last_use_time, revoke_time, expire_time)"
                        " SELECT %s, id, %s, '', '', '', %s, %s, %s, %s FROM auth.accounts",
                        [uuid4(), name, NOW, NOW, None if revoked is None else NOW + revoked, NOW + expires],
                    )
            assert (await self.sweep(db, NOW))["sign_ins"] == 3
            async with db.statements() as statements:
                cursor = await statements.connection.execute("SELECT device_name FROM auth.sign_ins")
                left = {row["device_name"] for row in await cursor.fetchall()}
            assert left == {"revoked, to be remembered", "expired, to be remembered", "ended just now", "live"}
            assert (await self.sweep(db, NOW))["sign_ins"] == 0

    async def test_security_events_go_after_a_year_and_attempts_after_an_hour(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(database(database_url, connections=2, name="test"))
            async with db.transaction() as transaction:
                for age in (364, 366, 400, 500):
                    await transaction.connection.execute(
                        "INSERT INTO auth.security_events (time, kind, tenant_id, actor, ip, user_agent, request_id,"
                        " detail) VALUES (%s, 'signed_in', 1, '', '', '', '', '{}')",
                        [NOW - timedelta(days=age)],
                    )
                for minutes in (59, 61):
                    await transaction.connection.execute(
                        "INSERT INTO auth.attempts VALUES ('x', %s, 1, %s, %s)",
                        [str(minutes), NOW - timedelta(minutes=minutes), NOW],
                    )
            swept = await self.sweep(db, NOW)
            assert (swept["security_events"], swept["attempts"]) == (3, 1)

    async def test_codes_their_tries_and_their_mail_go_when_their_time_is_over(self, database_url: str) -> None:
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(database(database_url, connections=2, name="test"))
            account, minute = uuid4(), timedelta(minutes=1)
            async with db.transaction() as transaction:
                await transaction.connection.execute(
                    "INSERT INTO auth.accounts (id, email, password_hash, tenant_id, role, tier, subscription_status,"
                    " cancel_at_period_end, create_time) VALUES (%s, 'a@example.com', '', 1, 'user', 'free',"
                    " 'inactive', false, now())",
                    [account],
                )
                for expires in (NOW - 3 * minute, NOW - 2 * minute, NOW - minute, NOW + minute):
                    for statement in (
                        "INSERT INTO auth.codes (id, account_id, purpose, email, number, tries, create_time,"
                        " expire_time) VALUES (%(id)s, %(account)s, 'reset', '', '', 0, %(now)s, %(expires)s)",
                        "INSERT INTO auth.code_tries (holder_id, ip, tries, expire_time)"
                        " VALUES (%(id)s, '', 1, %(expires)s)",
                        "INSERT INTO auth.mails (id, kind, email, create_time, expire_time, due_time, attempts)"
                        " VALUES (%(id)s, 'reset', '', %(now)s, %(expires)s, %(now)s, 0)",
                    ):
                        values = {"id": uuid4(), "account": account, "now": NOW, "expires": expires}
                        await transaction.connection.execute(statement.encode(), values)
            swept = await self.sweep(db, NOW)
            assert {kind: swept[kind] for kind in ("codes", "code_tries", "mails")} == dict.fromkeys(
                ("codes", "code_tries", "mails"), 3
            )
            assert not +(await self.sweep(db, NOW))
