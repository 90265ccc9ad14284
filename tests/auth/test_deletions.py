"""The end of an account: it is gone at once, its tokens within a second, and everything it had as soon as can be."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from runtime.database import Database, database
from runtime.errors import Reason
from services.auth.accounts import Account, Subscription
from services.auth.accounts_store import AccountStore
from services.auth.deletions_store import DeletionStore
from services.auth.erasures_domain import AGAIN_AFTER, Erasures
from services.auth.erasures_store import ErasureStore
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.sign_ins_domain import Device, SignIn
from services.auth.sign_ins_store import SignInStore
from tests.auth.test_receipts import let_claims_pass, mesh_with_processes
from tests.conftest import Edge, until_healthy
from tests.factories import PASSWORD, Phone, device_session, puzzle_session
from tests.polling import until

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)


async def delete(phone: Phone) -> httpx.Response:
    return await phone.call("DELETE", "/v1/auth/me")


async def sign_in(edge: Edge, email: str) -> httpx.Response:
    return await edge.http.post("/v1/auth/signin", json={"email": email, "password": PASSWORD})


def rows(edge: Edge, marker: str) -> list[str]:
    """Where the marker stands in any row of the services' schemas."""
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        tables = connection.execute(
            "SELECT table_schema || '.' || table_name FROM information_schema.tables"
            " WHERE table_schema IN ('auth', 'sessions', 'uploads')"
        ).fetchall()
        return [
            table
            for (table,) in tables
            if connection.execute(
                f"SELECT 1 FROM {table} AS one WHERE one::text ILIKE %s LIMIT 1",  # names of our own
                [f"%{marker}%"],
            ).fetchone()
        ]


async def test_the_answer_says_when_and_the_account_is_gone(edge: Edge, phone: Phone) -> None:
    answer = await delete(phone)
    assert answer.status_code == 200
    assert answer.json()["id"] == phone.user_id
    assert answer.json()["deleted_at"].endswith("Z")
    assert (await phone.call("GET", "/v1/auth/me")).status_code == 401
    refused = await sign_in(edge, phone.email)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "INVALID_CREDENTIALS")
    refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
    assert (refreshed.status_code, refreshed.json()["error"]["code"]) == (401, "UNAUTHORIZED")


async def test_tokens_of_every_device_die_within_a_second_everywhere(edge: Edge, phone: Phone) -> None:
    body = (await sign_in(edge, phone.email)).json()
    second = Phone(edge.http, phone.user_id, phone.email, body["access_token"], body["refresh_token"])
    await delete(phone)

    async def refused() -> bool:
        paths = ("/sessions", "/v1/auth/me", "/api/v1/uploads/limits")
        answers = [await one.call("GET", path) for one in (phone, second) for path in paths]
        return all(answer.status_code == 401 for answer in answers)

    assert await until(refused, seconds=5) < 1.5


async def test_deleting_twice_is_harmless(edge: Edge, phone: Phone) -> None:
    first, second = await asyncio.gather(delete(phone), delete(phone))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    refused = [401]

    async def known() -> bool:
        refused[0] = (await delete(phone)).status_code
        return refused[0] == 401

    await until(known, seconds=5)


async def test_nothing_that_says_who_it_was_is_left_and_the_address_may_sign_up_anew(edge: Edge) -> None:
    marker = f"secret{uuid4().hex}"
    old = await edge.phone(email=f"{marker}@example.com", device_name=f"{marker} phone")
    await old.call("POST", "/v1/sessions", json={"sessions": [puzzle_session(declutter_text=marker)]})
    text = marker.encode()
    asked = {"filename": f"{marker}.txt", "mime_type": "text/plain", "file_hash": hashlib.sha256(text).hexdigest()}
    begun = await old.call("POST", "/api/v1/uploads/init", json={**asked, "total_size": len(text)})
    upload_id = begun.json()["upload_id"]
    await old.call("PUT", f"/api/v1/uploads/{upload_id}/content", content=text)
    assert (await old.call("POST", f"/api/v1/uploads/{upload_id}/finalize")).status_code == 200
    (blob,) = (edge.mesh.config.home / "blobs" / "files").glob(f"*/{upload_id}")
    assert set(rows(edge, marker)) >= {"auth.accounts", "auth.sign_ins", "sessions.records", "uploads.uploads"}
    await delete(old)

    async def erased() -> bool:
        return not rows(edge, marker) and not blob.exists()

    await until(erased)
    new = await edge.phone(email=old.email)
    assert new.user_id != old.user_id
    assert (await new.call("GET", "/v1/sessions")).json()["total"] == 0
    assert (await sign_in(edge, new.email)).json()["user"]["id"] == new.user_id


async def test_an_account_that_never_was_cannot_be_deleted(edge: Edge, phone: Phone) -> None:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute("DELETE FROM auth.accounts WHERE id = %s", [phone.user_id])
    assert (await delete(phone)).status_code == 401


async def test_what_is_away_while_an_account_is_deleted_erases_when_it_is_back(
    database_url: str, tmp_path: Path
) -> None:
    marker = f"secret{uuid4().hex}"
    async with AsyncExitStack() as stack:
        edge, (auth, records) = await mesh_with_processes(stack, database_url, tmp_path, "auth", "sessions")
        phone = await edge.phone()
        sessions = [device_session(training_id=marker) for _ in range(20)]
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions})
        await records.stop()
        started = time.monotonic()
        assert (await delete(phone)).status_code == 200
        assert time.monotonic() - started < 5, "the phone does not wait for it"
        assert rows(edge, marker) == ["sessions.records"]
        await auth.restart()  # what is still to be done outlives the process that promised it
        assert rows(edge, marker) == ["sessions.records"]
        await records.start()
        await until_healthy(edge)
        let_claims_pass(database_url)

        async def erased() -> bool:
            return not rows(edge, marker)

        await until(erased, seconds=60)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=6, name="test") as opened:
        yield opened


def account() -> Account:
    return Account(
        id=uuid4(),
        email=f"{uuid4().hex}@example.com",
        tenant_id=1,
        role="user",
        create_time=NOW,
        subscription=Subscription(tier="free", status="inactive", end_time=None, cancel_at_period_end=False),
    )


def sign_in_of(one: Account) -> SignIn:
    return SignIn(
        id=uuid4(),
        account_id=one.id,
        device=Device(name="", ip="", user_agent=""),
        method="password",
        token_key=b"",
        current_digest=b"",
        create_time=NOW,
        expire_time=NOW + timedelta(days=30),
    )


def event_of(one: Account) -> SecurityEvent:
    return SecurityEvent(kind=Kind.SIGNED_UP, account_id=one.id)


async def deleted(db: Database) -> UUID:
    store, one = AccountStore(db), account()
    await store.create(one, "hash", sign_in_of(one), event_of(one))
    assert await store.delete(one.id, NOW, one.id.bytes, event_of(one)) == NOW
    return one.id


class Elsewhere:
    """Another service, which can be away."""

    def __init__(self) -> None:
        self.erased: list[UUID] = []
        self.away = False

    async def erase(self, user_id: UUID) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError("away")
        self.erased.append(user_id)
        return {"files": self.erased.count(user_id)}


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


async def listed(db: Database) -> int:
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT count(*) AS listed FROM auth.erasures")
        row = await cursor.fetchone()
        assert row is not None
        return int(row["listed"])


async def test_a_push_that_was_under_way_is_erased_the_next_time_and_then_it_is_done(db: Database) -> None:
    one, elsewhere, clock = await deleted(db), Elsewhere(), Clock()
    erasures = Erasures(ErasureStore(db), [elsewhere.erase], receipts=DeletionStore(db), now=clock)
    for number, after in enumerate((timedelta(0), *AGAIN_AFTER), 1):
        clock.time = NOW + after - timedelta(seconds=1)
        await erasures.carry_out()
        assert len(elsewhere.erased) == number - 1
        clock.time = NOW + after
        await erasures.carry_out()
        assert elsewhere.erased == [one] * number
    assert await listed(db) == 0


async def test_what_fails_is_put_off_longer_each_time_and_stops_nobody_else(db: Database) -> None:
    first, elsewhere, clock = await deleted(db), Elsewhere(), Clock()
    erasures = Erasures(ErasureStore(db), [elsewhere.erase], receipts=DeletionStore(db), now=clock)
    elsewhere.away = True
    await erasures.carry_out()
    elsewhere.away = False
    second = await deleted(db)
    await erasures.carry_out()
    assert elsewhere.erased == [second], "the first is not due yet"
    elsewhere.away = True
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        clock.time += timedelta(seconds=seconds)
        await erasures.carry_out()
    elsewhere.away = False
    elsewhere.erased.clear()
    clock.time += timedelta(seconds=59)
    await erasures.carry_out()
    assert first not in elsewhere.erased
    clock.time += timedelta(seconds=1)
    await erasures.carry_out()
    assert first in elsewhere.erased


async def test_many_replicas_carry_each_out_once(db: Database) -> None:
    elsewhere, clock = Elsewhere(), Clock()
    accounts = [await deleted(db) for _ in range(20)]
    replicas = [Erasures(ErasureStore(db), [elsewhere.erase], receipts=DeletionStore(db), now=clock) for _ in range(4)]
    await asyncio.gather(*(replica.carry_out() for replica in replicas))
    assert sorted(elsewhere.erased) == sorted(accounts)


async def test_one_that_a_replica_took_down_with_it_is_taken_up_by_another(db: Database) -> None:
    one, elsewhere, clock = await deleted(db), Elsewhere(), Clock()
    assert await ErasureStore(db).take(NOW, timedelta(seconds=60))
    erasures = Erasures(ErasureStore(db), [elsewhere.erase], receipts=DeletionStore(db), now=clock)
    await erasures.carry_out()
    assert elsewhere.erased == []
    clock.time += timedelta(seconds=60)
    await erasures.carry_out()
    assert elsewhere.erased == [one]


async def test_no_sign_in_outlives_its_account_however_close_they_come(db: Database) -> None:
    store, sign_ins = AccountStore(db), SignInStore(db)
    for _ in range(30):
        one = account()
        await store.create(one, "hash", sign_in_of(one), event_of(one))
        signing_in = [sign_ins.create(sign_in_of(one), event_of(one)) for _ in range(4)]
        at_once = [*signing_in[:2], store.delete(one.id, NOW, one.id.bytes, event_of(one)), *signing_in[2:]]
        outcomes = await asyncio.gather(*at_once, return_exceptions=True)
        assert outcomes[2] == NOW
        for index in (0, 1, 3, 4):
            assert outcomes[index] is None or getattr(outcomes[index], "reason", None) is Reason.INVALID_CREDENTIALS
    async with db.statements() as statements:
        cursor = await statements.connection.execute("SELECT 1 FROM auth.sign_ins WHERE revoke_time IS NULL")
        assert await cursor.fetchone() is None
