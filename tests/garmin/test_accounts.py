"""Linking an account at Garmin: right and wrong, with a code and without, and what is left where of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from typing import Any
from uuid import UUID

import grpc
import httpx
import psycopg
import pytest
from satchel.garmin.v1 import garmin_pb2, garmin_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.errors import Failure
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import channel
from runtime.server import serving
from services.garmin.accounts_sessions import LinkedSessions
from services.garmin.accounts_store import AccountStore
from services.garmin.app import service as garmin
from services.garmin.breaker import GuardedGarmin
from services.garmin.connect import GarminAway, SignInEnded
from services.garmin.credentials import CredentialsClient
from services.garmin.garminconnect_client import GarminConnect, Hosts
from tests.auth.callers import as_service
from tests.auth.test_garmin_credentials import everything_stored, spellings
from tests.conftest import Edge, config_for
from tests.factories import Phone
from tests.garmin.standin import SSO, TOKENS, Account, StandIn
from tests.polling import until

LINKED = {"message": "Garmin account linked successfully.", "mfa_required": False}
WRONG = {"detail": "Invalid Garmin credentials provided."}
OVER = {"detail": "This sign-in at Garmin is over; begin again with POST /api/garmin/login."}
DAY = date(2026, 2, 26)
Start = Callable[..., Awaitable[Edge]]


@pytest.fixture
async def phone(edge: Edge) -> Phone:
    return await Phone.as_guest(edge.http)


async def login(phone: Phone, account: Account, **given: str) -> httpx.Response:
    body = {"username": account.username, "password": account.password, **given}
    return await phone.call("POST", "/api/garmin/login", json=body)


async def send_code(phone: Phone, code: str) -> httpx.Response:
    return await phone.call("POST", "/api/garmin/mfa", json={"mfa_code": code})


async def shown(phone: Phone) -> dict[str, Any]:
    answer = await phone.call("GET", "/api/garmin/account")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def linked(phone: Phone, account: Account) -> None:
    answer = await login(phone, account)
    assert (answer.status_code, answer.json()) == (200, LINKED), answer.text


async def vault(edge: Edge, phone: Phone) -> dict[str, Any] | None:
    """What the auth service has."""
    answer = await as_service(edge, "GET", f"/garmin_credentials/{phone.user_id}")
    if answer.status_code == 404:
        return None
    body: dict[str, Any] = answer.json()
    return body


def rows(config: Config, table: str, phone: Phone) -> list[Any]:
    column = "account_id" if table.startswith("auth.") else "user_id"
    with psycopg.connect(config.database_url) as connection:
        return connection.execute(f"SELECT * FROM {table} WHERE {column} = %s", [phone.user_id]).fetchall()


def change(config: Config, what: str, phone: Phone, *, table: str = "links") -> None:
    with psycopg.connect(config.database_url) as connection:
        assert connection.execute(f"UPDATE garmin.{table} SET {what} WHERE user_id = %s", [phone.user_id]).rowcount == 1


@asynccontextmanager
async def sessions_of(config: Config, **seams: Any) -> AsyncIterator[LinkedSessions]:
    """What a replica of the connector opens sessions with."""
    async with (
        database(config.database_url, connections=4, name="test") as db,
        channel(config.auth_address) as auth,
    ):
        client = CredentialsClient(auth, ServiceTokens(mesh_secret(config.keys), "garmin"))
        guarded = GuardedGarmin(GarminConnect(Hosts(domain="garmin.com", url=config.garmin_url)))
        opened = LinkedSessions(guarded, AccountStore(db), client, now=utc_now)
        yield opened
        await opened.close()


class TestLinking:
    async def test_the_right_password_links(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account()
        assert await shown(phone) == {
            "linked": False,
            "garmin_username": "",
            "needs_sign_in": False,
            "interval_hours": 0,
        }
        await linked(phone, account)
        found = await shown(phone)
        assert found["linked_at"]
        assert found["next_sync_at"] > found["linked_at"]
        assert {name: found[name] for name in ("linked", "garmin_username", "needs_sign_in", "interval_hours")} == {
            "linked": True,
            "garmin_username": account.username,
            "needs_sign_in": False,
            "interval_hours": 6,
        }
        kept = await vault(edge, phone)
        assert kept is not None
        assert kept["garmin_username"] == account.username
        assert kept["garmin_password_plaintext"] == ""
        assert kept["token_expiration_date"]
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            assert await session.activities(0, DAY, 10) == []

    async def test_a_wrong_password_stores_nothing(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account()
        answer = await login(phone, account, password="wrong")
        assert (answer.status_code, answer.json()) == (401, WRONG)
        assert answer.headers["content-type"].startswith("application/json")
        for table in ("auth.garmin_credentials", "garmin.links", "garmin.sign_ins"):
            assert rows(edge.mesh.config, table, phone) == []
        assert (await shown(phone))["linked"] is False

    async def test_a_wrong_password_leaves_what_is_linked(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account()
        await linked(phone, account)
        before = await vault(edge, phone), await shown(phone)
        assert (await login(phone, account, password="wrong")).status_code == 401
        assert (await vault(edge, phone), await shown(phone)) == before

    async def test_linking_again_replaces_and_keeps_the_schedule(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        one, other = standin.account(), standin.account()
        await linked(phone, one)
        change(edge.mesh.config, "needs_sign_in = true, interval_hours = 3", phone)
        await linked(phone, other)
        found, kept = await shown(phone), await vault(edge, phone)
        assert (found["garmin_username"], found["needs_sign_in"], found["interval_hours"]) == (other.username, False, 3)
        assert kept is not None
        assert kept["garmin_username"] == other.username
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            other.add_activity(utc_now(), activityId=7)
            assert [one.id for one in await session.activities(0, DAY, 10)] == ["7"]

    async def test_unlinking_forgets_and_is_harmless_twice(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        await linked(phone, standin.account())
        for unlinked in (True, False):
            answer = await phone.call("DELETE", "/api/garmin/account")
            assert (answer.status_code, answer.json()) == (200, {"unlinked": unlinked})
            assert await vault(edge, phone) is None
            assert rows(edge.mesh.config, "garmin.links", phone) == []
        assert (await shown(phone))["linked"] is False
        async with sessions_of(edge.mesh.config) as sessions:
            with pytest.raises(Failure, match="NOT_FOUND"):
                async with sessions.session(UUID(phone.user_id)):
                    pass

    async def test_each_user_has_an_account_of_their_own(self, edge: Edge, standin: StandIn) -> None:
        phones = [await Phone.as_guest(edge.http) for _ in range(3)]
        accounts = [standin.account() for _ in phones]
        await asyncio.gather(*(linked(phone, account) for phone, account in zip(phones, accounts, strict=True)))
        assert [(await shown(phone))["garmin_username"] for phone in phones] == [one.username for one in accounts]

    async def test_the_same_sign_in_twice_at_once_is_one(self, standin: StandIn, phone: Phone) -> None:
        account = standin.account()
        slow = standin.trouble("/mobile/api/login", seconds=1, times=1)
        answers = await asyncio.gather(login(phone, account), login(phone, account))
        standin.troubles.remove(slow)
        assert [answer.json() for answer in answers] == [LINKED, LINKED]
        assert account.sign_ins == 1

    async def test_a_deleted_account_leaves_no_link(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        await linked(phone, standin.account())
        assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200

        async def gone() -> bool:
            config = edge.mesh.config
            return not rows(config, "garmin.links", phone) and not rows(config, "auth.garmin_credentials", phone)

        await until(gone)

    async def test_nothing_secret_is_stored_or_logged(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account, other = standin.account(), standin.account(mfa=True, code="739215")
        await linked(phone, account)
        await login(phone, account, password="another-secret-password")
        assert (await login(phone, other)).json()["mfa_required"] is True
        assert (await send_code(phone, "739216")).status_code == 401
        pending = next(iter(standin._sign_ins))
        stored = everything_stored(edge.mesh.config)
        (state,) = rows(edge.mesh.config, "garmin.sign_ins", phone)
        assert state
        assert (await send_code(phone, other.code)).status_code == 200
        kept = await vault(edge, phone)
        assert kept is not None
        logs = "\n".join(file.read_text(errors="replace") for file in edge.log.parent.glob("*.log"))
        assert "LinkAccount" in logs
        secrets = [account.password, other.password, "another-secret-password", pending, *account.refresh]
        secrets += [token for one in (account, other) for token in (*one.access, *one.refresh)]
        for secret in secrets:
            for spelling in spellings(secret):
                assert spelling not in stored
                assert spelling not in logs
        for secret in (account.username, other.username):
            assert secret not in stored
            assert secret not in logs
        assert "739215" not in logs

    async def test_the_password_is_stored_where_the_server_was_told_to(
        self, own_garmin_edge: Start, own_standin: StandIn
    ) -> None:
        edge = await own_garmin_edge(garmin_store_passwords="on")
        phone, account = await Phone.as_guest(edge.http), own_standin.account()
        await linked(phone, account)
        kept = await vault(edge, phone)
        assert kept is not None
        assert kept["garmin_password_plaintext"] == account.password


class TestCodes:
    async def test_the_right_code_links(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account(mfa=True)
        answer = await login(phone, account)
        assert (answer.status_code, answer.json()) == (200, {"message": "", "mfa_required": True})
        assert (await shown(phone))["linked"] is False
        assert await vault(edge, phone) is None
        answer = await send_code(phone, account.code)
        assert (answer.status_code, answer.json()) == (200, {"message": LINKED["message"]})
        assert (await shown(phone))["garmin_username"] == account.username
        assert rows(edge.mesh.config, "garmin.sign_ins", phone) == []

    async def test_a_code_that_is_known_before_links_at_once(self, standin: StandIn, phone: Phone) -> None:
        account = standin.account(mfa=True)
        answer = await login(phone, account, mfa_code=account.code)
        assert (answer.status_code, answer.json()) == (200, LINKED)

    async def test_a_code_that_was_sent_along_and_is_wrong_may_be_put_right(
        self, standin: StandIn, phone: Phone
    ) -> None:
        account = standin.account(mfa=True)
        answer = await login(phone, account, mfa_code="000000")
        assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid Garmin MFA code provided."})
        assert (await send_code(phone, account.code)).status_code == 200

    async def test_a_wrong_code_may_be_put_right_a_few_times(self, standin: StandIn, phone: Phone) -> None:
        account = standin.account(mfa=True)
        await login(phone, account)
        for _ in range(4):
            answer = await send_code(phone, "000000")
            assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid Garmin MFA code provided."})
        assert (await send_code(phone, account.code)).status_code == 200

    async def test_a_code_that_is_wrong_too_often_ends_the_sign_in(self, standin: StandIn, phone: Phone) -> None:
        account = standin.account(mfa=True)
        await login(phone, account)
        for _ in range(5):
            assert (await send_code(phone, "000000")).status_code == 401
        answer = await send_code(phone, account.code)
        assert (answer.status_code, answer.json()) == (401, OVER)

    async def test_a_code_without_a_sign_in_or_too_late_is_told_to_begin_again(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        answer = await send_code(phone, "123456")
        assert (answer.status_code, answer.json()) == (401, OVER)
        account = standin.account(mfa=True)
        await login(phone, account)
        change(edge.mesh.config, "expire_time = now()", phone, table="sign_ins")
        answer = await send_code(phone, account.code)
        assert (answer.status_code, answer.json()) == (401, OVER)
        assert (await shown(phone))["linked"] is False

    async def test_a_state_that_somebody_moved_to_another_user_is_no_sign_in(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        account, other = standin.account(mfa=True), await Phone.as_guest(edge.http)
        await login(phone, account)
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            connection.execute(
                "UPDATE garmin.sign_ins SET user_id = %s WHERE user_id = %s", [other.user_id, phone.user_id]
            )
        answer = await send_code(other, account.code)
        assert (answer.status_code, answer.json()) == (401, OVER)

    async def test_another_replica_takes_the_code(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account(mfa=True)
        await login(phone, account)
        config = edge.mesh.config
        other = config_for(
            config.home,
            database_url=config.database_url,
            auth_address=config.auth_address,
            garmin_url=config.garmin_url,
        )
        async with serving(other, {"garmin": garmin}), grpc.aio.insecure_channel(other.garmin_address) as opened:
            stub = garmin_pb2_grpc.GarminServiceStub(opened)
            await stub.VerifyMfa(garmin_pb2.VerifyMfaRequest(mfa_code=account.code), metadata=phone.metadata)
        assert (await shown(phone))["linked"] is True


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "username"),
            ({"username": " ", "password": "x"}, "username"),
            ({"username": "ada@example.com"}, "password"),
            ({"username": "a" * 321, "password": "x"}, "username"),
            ({"username": "ada@example.com", "password": "x" * 1025}, "password"),
            ({"username": "ada@example.com", "password": "x", "mfa_code": "1" * 33}, "mfa_code"),
            ({"username": "a\x00", "password": "x"}, "username"),
            ({"username": 7, "password": []}, ""),
        ],
    )
    async def test_what_is_no_sign_in_never_gets_to_garmin(
        self, standin: StandIn, phone: Phone, body: dict[str, Any], field: str
    ) -> None:
        before = len(standin.requests)
        answer = await phone.call("POST", "/api/garmin/login", json=body)
        assert answer.status_code == 400
        assert field in answer.json()["detail"]
        assert len(standin.requests) == before

    async def test_a_user_has_five_attempts_in_fifteen_minutes(self, standin: StandIn, phone: Phone) -> None:
        for _ in range(5):
            assert (await login(phone, standin.account(), password="wrong")).status_code == 401
        account = standin.account()
        answer = await login(phone, account)
        assert answer.status_code == 429
        assert 14 * 60 < int(answer.headers["retry-after"]) <= 15 * 60
        assert "15 minutes" in answer.json()["detail"]
        assert account.sign_ins == 0

    async def test_a_name_at_garmin_has_five_attempts_however_many_users_try(
        self, edge: Edge, standin: StandIn
    ) -> None:
        account = standin.account()
        phones = [await Phone.as_guest(edge.http) for _ in range(7)]
        names = [account.username, account.username.upper()]
        answers = await asyncio.gather(
            *(login(phone, account, username=names[number % 2]) for number, phone in enumerate(phones))
        )
        assert sorted(answer.status_code for answer in answers).count(429) == 2

    async def test_attempts_that_are_long_ago_do_not_count(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        for _ in range(5):
            await login(phone, standin.account(), password="wrong")
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            connection.execute(
                "UPDATE garmin.attempts SET times = ARRAY(SELECT one - interval '15 minutes' FROM unnest(times) AS one)"
            )
        assert (await login(phone, standin.account())).status_code == 200


class TestBadDays:
    async def test_a_limit_of_garmins_holds_for_all_users_and_costs_no_attempts(
        self, own_garmin_edge: Start, own_standin: StandIn
    ) -> None:
        edge = await own_garmin_edge()
        phones = [await Phone.as_guest(edge.http) for _ in range(2)]
        own_standin.limit(SSO)
        answer = await login(phones[0], own_standin.account())
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 300
        own_standin.well()
        asked = len(own_standin.requests)
        for _ in range(7):
            answer = await login(phones[1], own_standin.account())
            assert answer.status_code == 429
            assert 0 < int(answer.headers["retry-after"]) <= 300
        assert len(own_standin.requests) == asked
        assert rows(edge.mesh.config, "garmin.links", phones[1]) == []

    async def test_garmin_down_is_a_503_and_passes(self, own_garmin_edge: Start, own_standin: StandIn) -> None:
        edge = await own_garmin_edge()
        phone, account = await Phone.as_guest(edge.http), own_standin.account()
        for trouble in (own_standin.down, own_standin.nonsense):
            trouble("/")
            answer = await login(phone, account)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "Garmin" in answer.json()["detail"]
            assert await vault(edge, phone) is None
            own_standin.well()
        own_standin.trouble(TOKENS, status=500)
        assert (await login(phone, account)).status_code == 503
        assert await vault(edge, phone) is None
        own_standin.well()
        await linked(phone, account)

    async def test_a_slow_sign_in_goes_on_and_links_though_nobody_waits(
        self, own_garmin_edge: Start, own_standin: StandIn
    ) -> None:
        edge = await own_garmin_edge(call_timeout=2.0)
        phone, account = await Phone.as_guest(edge.http), own_standin.account()
        own_standin.trouble("/mobile/api/login", seconds=3, times=1)
        answer = await login(phone, account)
        assert answer.status_code == 503
        assert "GET /api/garmin/account" in answer.json()["detail"]

        async def is_linked() -> bool:
            return bool((await shown(phone))["linked"])

        await until(is_linked)
        assert account.sign_ins == 1

    async def test_the_auth_service_away_leaves_nothing_half_done(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        account = standin.account()
        config = edge.mesh.config
        away = config_for(config.home, database_url=config.database_url)
        async with sessions_of(config.model_copy(update={"auth_address": away.auth_address})) as sessions:
            await linked(phone, account)
            with pytest.raises(GarminAway):
                async with sessions.session(UUID(phone.user_id)):
                    pass


class TestTokens:
    async def test_refreshed_tokens_are_stored_by_the_call_that_refreshed_them(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        account = standin.account()
        await linked(phone, account)
        before = await vault(edge, phone)
        account.expire()
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            assert await session.activities(0, DAY, 10) == []
            after = await vault(edge, phone)
            assert before is not None
            assert after is not None
            assert after["access_token"] == session.tokens != before["access_token"]
            assert after["garmin_username"] == account.username
            account.add_day(DAY)
            assert await session.daily_metrics(DAY)
            assert await session.activities(0, DAY, 10) == []
        assert account.refreshes == 1
        assert (await shown(phone))["needs_sign_in"] is False

    async def test_many_sessions_of_two_replicas_refresh_once(self, edge: Edge, standin: StandIn, phone: Phone) -> None:
        account = standin.account()
        await linked(phone, account)
        user_id = UUID(phone.user_id)
        async with sessions_of(edge.mesh.config) as one, sessions_of(edge.mesh.config) as other:
            for round in range(3):
                account.expire()

                async def ask(sessions: LinkedSessions) -> int:
                    async with sessions.session(user_id) as session:
                        pages = await asyncio.gather(*(session.activities(0, DAY, 10) for _ in range(3)))
                        return len(pages)

                assert await asyncio.gather(*(ask(sessions) for sessions in (one, other) * 3)) == [3] * 6
                assert account.refreshes == round + 1
        assert len(account.refresh) == 1
        assert (await shown(phone))["needs_sign_in"] is False

    async def test_who_is_cancelled_while_refreshing_loses_no_tokens(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        account = standin.account()
        await linked(phone, account)
        before = await vault(edge, phone)
        account.expire()
        slow = standin.trouble("/di-oauth2-service/", seconds=1, times=1)
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            asked = standin.count("/di-oauth2-service/")
            task = asyncio.create_task(session.activities(0, DAY, 10))

            async def has_begun() -> bool:
                return standin.count("/di-oauth2-service/") > asked

            await until(has_begun)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        standin.troubles.remove(slow)
        after = await vault(edge, phone)
        assert before is not None
        assert after is not None
        assert after["access_token"] != before["access_token"]
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            assert await session.activities(0, DAY, 10) == []
        assert account.refreshes == 1

    async def test_a_revoked_account_needs_a_sign_in_and_linking_again_gives_it(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        account, user_id = standin.account(), UUID(phone.user_id)
        await linked(phone, account)
        account.revoke()
        async with sessions_of(edge.mesh.config) as sessions:
            async with sessions.session(user_id) as session:
                with pytest.raises(SignInEnded):
                    await session.activities(0, DAY, 10)
            found = await shown(phone)
            assert (found["linked"], found["needs_sign_in"]) == (True, True)
            asked = len(standin.requests)
            with pytest.raises(SignInEnded):
                async with sessions.session(user_id):
                    pass
            assert len(standin.requests) == asked
            await linked(phone, account)
            assert (await shown(phone))["needs_sign_in"] is False
            async with sessions.session(user_id) as session:
                assert await session.activities(0, DAY, 10) == []

    async def test_tokens_of_an_earlier_link_never_take_the_place_of_a_later_one(
        self, edge: Edge, standin: StandIn, phone: Phone
    ) -> None:
        one, other = standin.account(), standin.account()
        await linked(phone, one)
        one.expire()
        slow = standin.trouble("/di-oauth2-service/", seconds=1.5, times=1)
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            asked = standin.count("/di-oauth2-service/")
            task = asyncio.create_task(session.activities(0, DAY, 10))

            async def has_begun() -> bool:
                return standin.count("/di-oauth2-service/") > asked

            await until(has_begun)
            await linked(phone, other)
            await asyncio.gather(task, return_exceptions=True)
        standin.troubles.remove(slow)
        kept = await vault(edge, phone)
        assert kept is not None
        assert kept["garmin_username"] == other.username
        assert any(token in kept["access_token"] for token in other.refresh)
        assert (await shown(phone))["needs_sign_in"] is False

    async def test_garmin_away_while_refreshing_is_no_end_of_the_sign_in(
        self, own_garmin_edge: Start, own_standin: StandIn
    ) -> None:
        edge = await own_garmin_edge()
        phone, account = await Phone.as_guest(edge.http), own_standin.account()
        await linked(phone, account)
        account.expire()
        own_standin.down(TOKENS)
        async with sessions_of(edge.mesh.config) as sessions, sessions.session(UUID(phone.user_id)) as session:
            with pytest.raises(GarminAway):
                await session.activities(0, DAY, 10)
            own_standin.well()
            assert await session.activities(0, DAY, 10) == []
        assert (await shown(phone))["needs_sign_in"] is False
