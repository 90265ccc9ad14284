"""The log of security events: who reads which of them, what stays of a deleted account, that nobody can flood it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from satchel.auth.v1 import auth_pb2, security_events_pb2

from runtime.database import database
from services.auth.events_domain import FOLDS, Kind, SecurityEvent
from services.auth.events_store import EventStore, write_event
from tests.auth.replicas import Guest, Refusal, bearer, replica, replicas
from tests.conftest import Edge, config_for
from tests.factories import PASSWORD, Phone
from tests.polling import until


async def events(phone: Phone, path: str = "/v1/auth/security-events", **query: Any) -> list[dict[str, Any]]:
    answer = await phone.call("GET", path, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


async def sign_in(edge: Edge, email: str, password: str = PASSWORD) -> int:
    answer = await edge.http.post(
        "/v1/auth/signin", json={"email": email, "password": password}, headers={"user-agent": "Phone/1"}
    )
    return answer.status_code


async def test_an_owner_reads_what_happened_newest_first(edge: Edge, phone: Phone) -> None:
    await sign_in(edge, phone.email)
    await sign_in(edge, phone.email, "wrong")
    await phone.call("POST", "/v1/auth/signout", json={"scope": "others"})
    found = await events(phone)
    assert [one["kind"] for one in found] == ["signed_out", "sign_in_failed", "signed_in", "signed_up"]
    failed = found[1]
    assert failed["user_id"] == phone.user_id
    assert (failed["ip"], failed["user_agent"], failed["actor"]) == ("127.0.0.1", "Phone/1", "")
    assert (failed["detail"], failed["count"], failed["sign_in_id"]) == ({"method": "password"}, 1, "")
    assert failed["request_id"]
    assert UUID(found[2]["sign_in_id"])
    assert datetime.fromisoformat(found[0]["time"]) > datetime.now(UTC) - timedelta(minutes=5)


async def test_a_filter_shows_one_kind_and_pages_show_each_event_once(edge: Edge, phone: Phone) -> None:
    for _ in range(4):
        await sign_in(edge, phone.email)
    assert [one["kind"] for one in await events(phone, kind="signed_up")] == ["signed_up"]
    whole = [one["id"] for one in await events(phone, kind="signed_in")]
    seen: list[str] = []
    token = ""
    while True:
        query = {"kind": "signed_in", "page_size": 3, "page_token": token}
        page = (await phone.call("GET", "/v1/auth/security-events", params=query)).json()
        seen += [one["id"] for one in page["events"]]
        token = page["next_page_token"]
        if not token:
            break
    assert seen == whole
    assert len(whole) == 4


async def test_nobody_reads_anothers_events(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    assert {one["user_id"] for one in await events(phone)} == {phone.user_id}
    refused = await other.call("GET", "/v1/auth/tenant/security-events")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")


async def test_an_administrator_reads_the_tenant_and_no_other_one(edge: Edge) -> None:
    tenant = 500_000 + uuid4().int % 1_000_000
    boss = await edge.administrator(tenant_id=tenant)
    worker, stranger = await edge.phone(tenant_id=tenant), await edge.phone(tenant_id=tenant + 1)
    path = "/v1/auth/tenant/security-events"
    assert {one["user_id"] for one in await events(boss, path)} == {boss.user_id, worker.user_id}
    assert {one["user_id"] for one in await events(boss, path, user_id=worker.user_id)} == {worker.user_id}
    assert await events(boss, path, user_id=stranger.user_id) == []
    assert await events(boss, path, kind="signed_out") == []
    newest, oldest = await events(boss, path)
    assert [one["id"] for one in await events(boss, path, since=newest["time"])] == [newest["id"]]
    assert [one["id"] for one in await events(boss, path, since="2026-01-01")] == [newest["id"], oldest["id"]]
    first = (await boss.call("GET", path, params={"page_size": 1})).json()
    second = (await boss.call("GET", path, params={"page_size": 1, "page_token": first["next_page_token"]})).json()
    assert [one["id"] for one in (*first["events"], *second["events"])] == [newest["id"], oldest["id"]]
    assert second["next_page_token"] == ""


async def test_what_stays_of_a_deleted_account_says_what_happened_and_not_from_where(edge: Edge) -> None:
    tenant = 500_000 + uuid4().int % 1_000_000
    boss = await edge.administrator(tenant_id=tenant)
    leaver = await edge.phone(tenant_id=tenant)
    await sign_in(edge, leaver.email, "wrong")
    assert (await leaver.call("DELETE", "/v1/auth/me")).status_code == 200
    found = await events(boss, "/v1/auth/tenant/security-events", user_id=leaver.user_id)
    assert [one["kind"] for one in found] == ["account_deleted", "sign_in_failed", "signed_up"]
    for one in found:
        assert (one["ip"], one["user_agent"], one["detail"]) == ("", "", {})
    (kept,) = [one for one in await events(boss) if one["kind"] == "signed_up"]
    assert kept["ip"] == "127.0.0.1", "nobody else's are touched"


async def test_what_is_logged_while_an_account_is_being_deleted_is_cleared_soon_after(edge: Edge, phone: Phone) -> None:
    """Somebody's wrong password, looked up before the account was deleted and written down after."""
    assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
    with psycopg.connect(edge.mesh.config.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO auth.security_events (time, kind, tenant_id, account_id, actor, ip, user_agent, request_id,"
            " detail) VALUES (now(), 'sign_in_failed', 1, %s, '', '10.1.2.3', 'x', '', '{}')",
            [phone.user_id],
        )

        async def cleared() -> bool:
            # The first round may still be under way, and puts off the next one when it ends.
            connection.execute("UPDATE auth.erasures SET due_time = now() WHERE account_id = %s", [phone.user_id])
            row = connection.execute(
                "SELECT count(*) FROM auth.security_events WHERE account_id = %s AND ip <> ''", [phone.user_id]
            ).fetchone()
            return row == (0,)

        await until(cleared)


@pytest.mark.parametrize("known", [True, False])
async def test_failed_sign_ins_of_a_minute_are_a_few_rows_with_a_count(
    database_url: str, tmp_path: Path, known: bool
) -> None:
    """Strangers at many addresses and through two replicas, at an account that exists and at many that do not."""
    async with replicas(*(config_for(tmp_path, database_url=database_url) for _ in range(2))) as both:
        email = f"{uuid4().hex}@example.com"
        if known:
            await Guest(both[0], "10.0.0.1").sign_up(email)
        tries = 60
        busy = asyncio.Semaphore(8)

        async def guess(number: int) -> Any:
            async with busy:
                guest = Guest(both[number % 2], f"10.0.1.{number % 30}")
                return await guest.sign_in(email if known else f"{uuid4().hex}@example.com", "wrong")

        answers = await asyncio.gather(*(guess(number) for number in range(tries)))
        assert {answer.reason for answer in answers if isinstance(answer, Refusal)} == {"INVALID_CREDENTIALS"}
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT date_trunc('minute', time), count(*), sum(count) FROM auth.security_events"
                " WHERE kind = 'sign_in_failed' AND (account_id IS NOT NULL) = %s GROUP BY 1",
                [known],
            ).fetchall()
        assert sum(counted for _, _, counted in rows) == tries, "each one is counted"
        assert all(1 < number <= FOLDS for _, number, _ in rows), "of many places there are several rows, and no more"


async def test_two_minutes_and_two_accounts_are_not_one_row(database_url: str) -> None:
    async with database(database_url, connections=2, name="test") as db:
        store = EventStore(db)
        moment = datetime(2026, 2, 26, 10, tzinfo=UTC)
        for account_id in (None, uuid4(), uuid4()):
            event = SecurityEvent(kind=Kind.SIGN_IN_FAILED, account_id=account_id)
            for now in (moment, moment + timedelta(seconds=59), moment + timedelta(seconds=60)):
                await store.fold(event, now)
        async with db.transaction() as transaction:
            for _ in range(2):
                await write_event(transaction, SecurityEvent(kind=Kind.SIGNED_IN, account_id=None), moment)
        async with db.statements() as statements:
            cursor = await statements.connection.execute("SELECT count FROM auth.security_events ORDER BY id")
            assert [row["count"] for row in await cursor.fetchall()] == [2, 1, 2, 1, 2, 1, 1, 1]


async def test_reuse_of_a_token_is_told_to_its_owner(database_url: str, tmp_path: Path) -> None:
    async with replica(config_for(tmp_path, database_url=database_url)) as one:
        guest = Guest(one, "10.0.0.1")
        account = await guest.sign_up()
        token = account.refresh_token
        for _ in range(2):
            token = (await one.accounts.Refresh(auth_pb2.RefreshRequest(refresh_token=token))).refresh_token
        with pytest.raises(Exception, match="revoked"):
            await one.accounts.Refresh(auth_pb2.RefreshRequest(refresh_token=account.refresh_token))
        other = await guest.sign_in(account.user.email)
        request = security_events_pb2.ListSecurityEventsRequest(kind="token_reused")
        (event,) = (await one.events.ListSecurityEvents(request, metadata=bearer(other.access_token))).events
        assert (event.user_id, event.count) == (account.user.id, 1)
