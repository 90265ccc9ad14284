"""Sign-in by the id token of an OpenID provider: who is let in, whose account it opens, and who is not believed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import jwt
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from satchel.auth.v1 import sso_pb2, sso_pb2_grpc

from deploy.parts import Part, running
from deploy.sockets import free_port, http_get
from runtime.config import ConfigError, SsoProvider, from_environment
from runtime.errors import Failure, Reason
from runtime.issuers import IssuerKeys, issuer_client
from runtime.server import serving
from services.auth.app import service as auth
from services.auth.passwords import Passwords
from services.auth.providers import LEEWAY, Provider, providers
from tests.auth.test_second_factors import code_of, turned_on, wrong_code
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import PASSWORD, Phone, change
from tests.issuers import Issuer, Key, b64, compact, issuer, signed_with_secret
from tests.polling import until

GOOGLE = "https://accounts.google.com"
NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def acme() -> Iterator[Issuer]:
    """A provider that is known by its issuer alone; with its keys it also plays those that are known by name."""
    with issuer() as started:
        yield started


@pytest.fixture(scope="module")
async def edge(
    new_database: Callable[[], str], redis_url: str, acme: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    directory = tmp_path_factory.mktemp("sso")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    presets = {f"sso_{name}_audience": "app" for name in ("google", "facebook", "apple")}
    keys = {f"sso_{name}_jwks_url": f"{acme.url}/jwks" for name in ("google", "facebook", "apple")}
    own = {"sso_acme_issuer": acme.url, "sso_acme_audience": "app, tablet", "sso_other_issuer": acme.url}
    part = service_part("all", config, directory, **presets, **keys, **own)
    async with running(part), envoy_for(config, directory) as started:
        await until_healthy(started)
        yield started


def somebody(**given: Any) -> dict[str, Any]:
    """Claims of somebody whose address the provider vouches for."""
    return {"sub": uuid4().hex, "email": f"{uuid4().hex}@example.com", "email_verified": True, **given}


async def sso(edge: Edge, token: str, provider: str = "acme", **given: Any) -> httpx.Response:
    return await edge.http.post(f"/auth/sso/{provider}", json={"id_token": token, **given})


async def phone_by(edge: Edge, token: str, provider: str = "acme", **given: Any) -> Phone:
    answer = await sso(edge, token, provider, **given)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return Phone(edge.http, body["user"]["id"], body["user"]["email"], body["access_token"], body["refresh_token"])


async def identities(phone: Phone) -> list[dict[str, Any]]:
    answer = await phone.call("GET", "/v1/auth/identities")
    assert answer.status_code == 200, answer.text
    listed: list[dict[str, Any]] = answer.json()["identities"]
    return listed


def execute(edge: Edge, statement: str, *values: object) -> list[Any]:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def events(edge: Edge, user_id: str) -> list[str]:
    rows = execute(edge, "SELECT kind FROM auth.security_events WHERE account_id = %s ORDER BY id", user_id)
    return [kind for (kind,) in rows]


async def refused(edge: Edge, token: str, provider: str = "acme", **given: Any) -> str:
    """The reason that a token is refused with."""
    answer = await sso(edge, token, provider, **given)
    assert answer.status_code == 401, answer.text
    error = answer.json()["error"]
    assert error["code"] == "AUTH_UNAUTHORIZED"
    ((field_, reason),) = [(one["field"], one["reason"]) for one in error["details"]]
    assert field_ == "id_token"
    return str(reason)


class TestSignIn:
    async def test_the_first_time_makes_an_account_and_the_next_opens_it(self, edge: Edge, acme: Issuer) -> None:
        claims = somebody(name="Ada Lovelace")
        first = await sso(edge, acme.token(**claims), device_name="Ada's phone")
        assert first.status_code == 200
        body = first.json()
        assert body.keys() == {"user", "access_token", "refresh_token", "is_new_user"}
        assert body["is_new_user"] is True
        assert body["user"]["email"] == claims["email"]
        assert body["user"].keys() == {"id", "email", "tier", "created_at", "is_guest"}
        phone = Phone(edge.http, body["user"]["id"], "", body["access_token"], body["refresh_token"])
        assert (await phone.call("GET", "/v1/auth/me")).json()["email"] == claims["email"]
        assert (await phone.call("GET", "/sessions")).status_code == 200
        again = (await edge.http.post("/v1/auth/sso/acme", json={"id_token": acme.token(**claims)})).json()
        assert (again["user"], again["is_new_user"]) == (body["user"], False)
        (identity,) = await identities(phone)
        assert datetime.fromisoformat(identity.pop("created_at"))
        assert identity == {
            "provider": "acme",
            "subject": claims["sub"],
            "email": claims["email"],
            "email_verified": True,
            "full_name": "Ada Lovelace",
        }
        assert events(edge, phone.user_id) == ["signed_up", "signed_in"]

    async def test_a_refresh_token_of_such_a_sign_in_is_as_good_as_any(self, edge: Edge, acme: Issuer) -> None:
        phone = await phone_by(edge, acme.token(**somebody()))
        answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
        assert answer.status_code == 200

    async def test_a_new_account_belongs_to_the_tenant_that_is_asked_for(self, edge: Edge, acme: Issuer) -> None:
        phone = await phone_by(edge, acme.token(**somebody()), tenant_id=7)
        assert jwt.decode(phone.access_token, options={"verify_signature": False})["tenant_id"] == 7

    async def test_many_first_sign_ins_at_once_make_one_account(self, edge: Edge, acme: Issuer) -> None:
        token = acme.token(**somebody())
        answers = [one.json() for one in await asyncio.gather(*(sso(edge, token) for _ in range(12)))]
        assert len({one["user"]["id"] for one in answers}) == 1
        assert sum(one["is_new_user"] for one in answers) == 1

    async def test_the_name_that_a_phone_is_told_once_is_kept(self, edge: Edge, acme: Issuer) -> None:
        claims = {**somebody(), "iss": "https://appleid.apple.com", "email_verified": "true"}
        await phone_by(edge, acme.token(**claims), "apple", full_name=" Ada Lovelace ")
        phone = await phone_by(edge, acme.token(**claims), "apple")
        (identity,) = await identities(phone)
        assert (identity["full_name"], identity["email_verified"]) == ("Ada Lovelace", True)

    @pytest.mark.parametrize("iss", [GOOGLE, "accounts.google.com"])
    async def test_google_spells_its_name_in_two_ways(self, edge: Edge, acme: Issuer, iss: str) -> None:
        assert (await sso(edge, acme.token(iss=iss, **somebody()), "google")).status_code == 200

    async def test_facebook_may_say_no_address(self, edge: Edge, acme: Issuer) -> None:
        token = acme.token(iss="https://www.facebook.com", sub=uuid4().hex, name="Ada")
        phone = await phone_by(edge, token, "facebook")
        assert (await phone.call("GET", "/v1/auth/me")).json()["email"] == ""
        assert (await phone_by(edge, token, "facebook")).user_id == phone.user_id
        other = acme.token(iss="https://www.facebook.com", sub=uuid4().hex)
        assert (await phone_by(edge, other, "facebook")).user_id != phone.user_id

    @pytest.mark.parametrize("provider", ["nobody", "other", "ACME", "acme%20", "%2e%2e", "x" * 300, "%00", "é"])
    async def test_a_provider_that_is_unknown_or_has_no_audience_is_not_there(
        self, edge: Edge, acme: Issuer, provider: str
    ) -> None:
        answer = await sso(edge, acme.token(**somebody()), provider)
        assert (answer.status_code, answer.json()["error"]["code"]) in ((404, "NOT_FOUND"), (400, "VALIDATION_FAILED"))
        assert provider in ("%00", "é") or answer.status_code == 404

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("id_token", "", "REQUIRED"),
            ("nonce", "x" * 513, "TOO_LONG"),
            ("full_name", "x" * 201, "TOO_LONG"),
            ("full_name", "a\u0000b", "INVALID_FORMAT"),
            ("device_name", "x" * 101, "TOO_LONG"),
            ("tenant_id", -1, "OUT_OF_RANGE"),
        ],
    )
    async def test_a_request_that_cannot_be_right_names_its_field(
        self, edge: Edge, acme: Issuer, name: str, value: object, reason: str
    ) -> None:
        request = {"id_token": acme.token(**somebody()), name: value}
        answer = await edge.http.post("/auth/sso/acme", json=request)
        assert answer.status_code == 400
        assert answer.json()["error"]["details"] == [{"field": name, "reason": reason}]

    @pytest.mark.parametrize("name", ["id_token", "nonce", "full_name", "device_name", "tenant_id"])
    async def test_a_field_of_another_type_is_refused(self, edge: Edge, acme: Issuer, name: str) -> None:
        for value in ({}, [], ["x"], True, 1.5, {"a": 1}):
            answer = await edge.http.post("/auth/sso/acme", json={"id_token": acme.token(), name: value})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VALIDATION_FAILED"), value


class TestWhoseAccount:
    async def test_a_proved_address_opens_the_account_that_has_it(self, edge: Edge, acme: Issuer) -> None:
        phone = await edge.phone()
        execute(edge, "UPDATE auth.accounts SET email_verify_time = now() WHERE id = %s", phone.user_id)
        answer = await sso(edge, acme.token(**somebody(email=phone.email.upper())))
        body = answer.json()
        assert (body["user"]["id"], body["is_new_user"]) == (phone.user_id, False)
        assert (await phone.call("GET", "/v1/auth/me")).status_code == 200
        password = {"email": phone.email, "password": PASSWORD}
        assert (await edge.http.post("/v1/auth/signin", json=password)).status_code == 200
        assert events(edge, phone.user_id)[1:3] == ["identity_linked", "signed_in"]

    async def test_a_token_never_names_a_role_that_was_taken_away_while_it_was_made(
        self, edge: Edge, acme: Issuer
    ) -> None:
        phone = await edge.phone()
        execute(edge, "UPDATE auth.accounts SET email_verify_time = now(), role = 'admin' WHERE id = %s", phone.user_id)
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            connection.execute("UPDATE auth.accounts SET role = 'user' WHERE id = %s", [phone.user_id])
            opening = asyncio.create_task(phone_by(edge, acme.token(**somebody(email=phone.email))))

            async def held_up() -> bool:
                return connection.execute("SELECT FROM pg_locks WHERE NOT granted").fetchone() is not None

            await until(held_up)  # the account was found while it had the role
        opened = await opening
        claims = jwt.decode(opened.access_token, options={"verify_signature": False})
        assert (opened.user_id, claims["role"]) == (phone.user_id, "user")
        assert (await opened.call("GET", "/v1/auth/devices")).json()["devices"][0]["id"] == claims["sid"]

    @pytest.mark.parametrize("verified", [False, "false", None, 1, "True", "yes", []])
    async def test_an_address_that_is_not_proved_opens_nobodys_account(
        self, edge: Edge, acme: Issuer, verified: object
    ) -> None:
        victim = await edge.phone()
        execute(edge, "UPDATE auth.accounts SET email_verify_time = now() WHERE id = %s", victim.user_id)
        phone = await phone_by(edge, acme.token(**somebody(email=victim.email, email_verified=verified)))
        assert phone.user_id != victim.user_id
        assert phone.email == ""
        assert [one["email"] for one in await identities(phone)] == [victim.email]

    async def test_who_took_an_address_before_its_owner_came_is_out(self, edge: Edge, acme: Issuer) -> None:
        """The squatter has a password, live sign-ins and an identity of his own on the account."""
        squatter = await edge.phone()
        trojan = acme.token(**{**somebody(), "iss": GOOGLE})
        linked = await squatter.call("POST", "/v1/auth/identities", json={"provider": "google", "id_token": trojan})
        assert linked.status_code == 200
        second = await phone_by(edge, trojan, "google")
        assert second.user_id == squatter.user_id

        owner = await phone_by(edge, acme.token(**somebody(email=squatter.email)))
        assert owner.user_id == squatter.user_id
        password = {"email": squatter.email, "password": PASSWORD}
        assert (await edge.http.post("/v1/auth/signin", json=password)).status_code == 401

        async def out() -> bool:
            answers = [await one.call("GET", "/users/me/stats") for one in (squatter, second)]
            return [one.status_code for one in answers] == [401, 401]

        assert await until(out, seconds=5) < 2
        for one in (squatter, second):
            answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": one.refresh_token})
            assert answer.status_code == 401
        assert (await phone_by(edge, trojan, "google")).user_id != owner.user_id
        assert [one["provider"] for one in await identities(owner)] == ["acme"]
        assert (await owner.call("GET", "/v1/auth/me")).status_code == 200
        assert "account_reclaimed" in events(edge, owner.user_id)

    async def test_a_second_owner_of_an_address_does_not_get_the_firsts_account(self, edge: Edge, acme: Issuer) -> None:
        first = somebody()
        await phone_by(edge, acme.token(**first))
        answer = await sso(edge, acme.token(**somebody(email=first["email"])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")

    async def test_sign_up_and_sign_in_of_one_address_at_once_leave_one_account(self, edge: Edge, acme: Issuer) -> None:
        claims = somebody()
        signing_up = edge.http.post("/v1/auth/signup", json={"email": claims["email"], "password": PASSWORD})
        answers = await asyncio.gather(sso(edge, acme.token(**claims)), signing_up, sso(edge, acme.token(**claims)))
        assert [answer.status_code for answer in (answers[0], answers[2])] == [200, 200]
        assert answers[1].status_code in (201, 409)
        (count,) = execute(edge, "SELECT count(*) FROM auth.accounts WHERE email = %s", claims["email"])
        assert count == (1,)
        assert answers[0].json()["user"]["id"] == answers[2].json()["user"]["id"]

    async def test_the_end_of_an_account_frees_its_identities(self, edge: Edge, acme: Issuer) -> None:
        claims = somebody()
        phone = await phone_by(edge, acme.token(**claims))
        assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
        assert execute(edge, "SELECT 1 FROM auth.identities WHERE subject = %s", claims["sub"]) == []
        again = (await sso(edge, acme.token(**claims))).json()
        assert again["is_new_user"] is True
        assert again["user"]["id"] != phone.user_id

    async def test_an_account_without_a_password_opens_by_none(self, edge: Edge, acme: Issuer) -> None:
        phone = await phone_by(edge, acme.token(**somebody()))
        for password in ("nobody's password", " ", PASSWORD):
            body = {"email": phone.email, "password": password}
            assert (await edge.http.post("/v1/auth/signin", json=body)).status_code == 401
        passwords = Passwords()
        assert not await passwords.verify("", "nobody's password")
        passwords.close()

    async def test_nothing_that_somebody_else_made_outlives_it(self, edge: Edge, acme: Issuer) -> None:
        squatter = await edge.phone()
        made = await squatter.call("POST", "/tokens/", json={"name": "mine", "scopes": ["read"]})
        program = replace(squatter, access_token=made.json()["token"])
        assert (await program.call("GET", "/sessions")).status_code == 200
        other = {"new_email": f"{uuid4().hex}@example.com", "password": PASSWORD}
        assert (await squatter.call("POST", "/v1/auth/email/change", json=other)).status_code == 200
        await turned_on(edge, squatter)

        owner = await phone_by(edge, acme.token(**somebody(email=squatter.email)))
        assert owner.user_id == squatter.user_id
        assert (await owner.call("GET", "/v1/auth/second-factor")).json()["enabled"] is False
        for table in ("second_factors", "recovery_codes", "mails"):
            assert execute(edge, f"SELECT 1 FROM auth.{table} WHERE account_id = %s", squatter.user_id) == []
        assert (await owner.call("GET", f"/tokens/{owner.user_id}")).json()["tokens"] == []

        async def out() -> bool:
            return (await program.call("GET", "/sessions")).status_code == 401

        await until(out, seconds=5)
        assert "application_token_revoked" in events(edge, owner.user_id)


def asked_for(answer: httpx.Response) -> tuple[int, list[dict[str, str]]]:
    return answer.status_code, answer.json()["error"]["details"]


REQUIRED = (401, [{"field": "code", "reason": "SECOND_FACTOR_REQUIRED"}])
WRONG = (401, [{"field": "code", "reason": "SECOND_FACTOR_INVALID"}])


class TestSecondFactor:
    async def test_an_identity_alone_does_not_open_an_account_that_has_one(self, edge: Edge, acme: Issuer) -> None:
        token = acme.token(**somebody())
        phone = await phone_by(edge, token)
        secret, codes = await turned_on(edge, phone, password="")
        assert asked_for(await sso(edge, token)) == REQUIRED
        assert asked_for(await sso(edge, token, code=wrong_code(secret))) == WRONG
        code = code_of(secret)
        assert (await sso(edge, token, code=code)).json()["user"]["id"] == phone.user_id
        assert asked_for(await sso(edge, token, code=code)) == WRONG
        assert (await sso(edge, token, code=codes[0])).status_code == 200
        assert events(edge, phone.user_id).count("signed_in") == 2

    async def test_nor_does_a_proved_address_and_nothing_is_linked(self, edge: Edge, acme: Issuer) -> None:
        phone = await edge.phone()
        execute(edge, "UPDATE auth.accounts SET email_verify_time = now() WHERE id = %s", phone.user_id)
        secret, _ = await turned_on(edge, phone)
        token = acme.token(**somebody(email=phone.email))
        assert asked_for(await sso(edge, token)) == REQUIRED
        assert await identities(phone) == []
        assert (await sso(edge, token, code=code_of(secret))).json()["user"]["id"] == phone.user_id
        assert len(await identities(phone)) == 1


def is_guest(token: str) -> bool:
    return bool(jwt.decode(token, options={"verify_signature": False}).get("guest"))


class TestGuests:
    async def sign_in(self, guest: Phone, token: str, **given: Any) -> httpx.Response:
        return await guest.call("POST", "/auth/sso/acme", json={"id_token": token, **given})

    async def test_a_guest_who_signs_in_keeps_id_and_data(self, edge: Edge, acme: Issuer) -> None:
        guest, claims = await Phone.as_guest(edge.http), somebody()
        await guest.call("POST", "/api/v1/sync/push", json={"changes": [change(id="kept")]})
        answer = await self.sign_in(guest, acme.token(**claims))
        body = answer.json()
        assert (answer.status_code, body["is_new_user"]) == (200, True)
        assert body["user"] == {**body["user"], "id": guest.user_id, "email": claims["email"]}
        phone = replace(guest, access_token=body["access_token"])
        assert not is_guest(phone.access_token)
        assert (await phone.call("GET", "/v1/auth/me")).json().get("is_guest", False) is False
        page = (await phone.call("GET", "/api/v1/sync/pull")).json()
        assert [one["id"] for one in page["changes"]] == ["kept"]
        assert events(edge, guest.user_id) == ["guest_created", "guest_signed_up", "signed_in"]
        # A phone that did not hear the answer comes again with the token that still says guest.
        again = (await self.sign_in(guest, acme.token(**claims))).json()
        assert (again["user"]["id"], again["is_new_user"]) == (guest.user_id, False)

    async def test_the_same_call_many_times_at_once_is_one_account(self, edge: Edge, acme: Issuer) -> None:
        guest, token = await Phone.as_guest(edge.http), acme.token(**somebody())
        answers = await asyncio.gather(*(self.sign_in(guest, token) for _ in range(5)))
        assert {one.json()["user"]["id"] for one in answers} == {guest.user_id}
        assert sum(one.json()["is_new_user"] for one in answers) == 1

    async def test_an_account_that_is_there_is_opened_and_the_guest_stays_one(self, edge: Edge, acme: Issuer) -> None:
        token = acme.token(**somebody())
        owner, guest = await phone_by(edge, token), await Phone.as_guest(edge.http)
        assert (await self.sign_in(guest, token)).json()["user"]["id"] == owner.user_id
        assert (await guest.call("GET", "/v1/auth/me")).json()["is_guest"] is True
        merged = await owner.call("POST", "/v1/auth/merge", json={"guest_refresh_token": guest.refresh_token})
        assert merged.status_code == 200

    async def test_who_has_become_an_account_otherwise_is_no_guest(self, edge: Edge, acme: Issuer) -> None:
        guest = await Phone.as_guest(edge.http)
        up = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
        assert (await guest.call("POST", "/v1/auth/signup", json=up)).status_code == 201
        assert (await self.sign_in(guest, acme.token(**somebody()))).status_code == 409

    async def test_a_token_that_comes_along_must_be_good(self, edge: Edge, acme: Issuer) -> None:
        guest = replace(await Phone.as_guest(edge.http), access_token="garbage")
        assert (await self.sign_in(guest, acme.token(**somebody()))).status_code == 401

    async def test_a_guest_stays_in_its_tenant(self, edge: Edge, acme: Issuer) -> None:
        guest = await Phone.as_guest(edge.http, tenant_id=7)
        answer = await self.sign_in(guest, acme.token(**somebody()), tenant_id=8)
        assert (answer.status_code, answer.json()["error"]["details"][0]["field"]) == (400, "tenant_id")

    async def test_a_guest_who_links_an_identity_is_none_any_more(self, edge: Edge, acme: Issuer) -> None:
        guest, claims = await Phone.as_guest(edge.http), somebody()
        link = {"provider": "acme", "id_token": acme.token(**claims)}
        for _ in range(2):
            assert (await guest.call("POST", "/v1/auth/identities", json=link)).status_code == 200
        me = (await guest.call("GET", "/v1/auth/me")).json()
        assert (me["email"], me.get("is_guest", False)) == (claims["email"], False)
        refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": guest.refresh_token})
        assert not is_guest(refreshed.json()["access_token"])
        assert events(edge, guest.user_id) == ["guest_created", "guest_signed_up", "identity_linked"]
        owner = await edge.phone()
        merge = {"guest_refresh_token": refreshed.json()["refresh_token"]}
        assert (await owner.call("POST", "/v1/auth/merge", json=merge)).status_code == 409

    async def test_a_guest_whose_address_is_anothers_stays_one(self, edge: Edge, acme: Issuer) -> None:
        guest, owner = await Phone.as_guest(edge.http), await edge.phone()
        link = {"provider": "acme", "id_token": acme.token(**somebody(email=owner.email))}
        assert (await guest.call("POST", "/v1/auth/identities", json=link)).status_code == 409
        assert (await guest.call("GET", "/v1/auth/me")).json()["is_guest"] is True
        assert await identities(guest) == []


class TestIdentities:
    async def link(self, phone: Phone, token: str, provider: str = "acme") -> httpx.Response:
        return await phone.call("POST", "/v1/auth/identities", json={"provider": provider, "id_token": token})

    async def test_an_account_has_many_and_each_opens_it(self, edge: Edge, acme: Issuer) -> None:
        phone = await edge.phone()
        tokens = {"acme": acme.token(**somebody()), "google": acme.token(**{**somebody(), "iss": GOOGLE})}
        for provider, token in tokens.items():
            for _ in range(2):  # a repeat is harmless
                answer = await self.link(phone, token, provider)
                assert answer.status_code == 200
                assert answer.json()["identity"]["provider"] == provider
        assert [one["provider"] for one in await identities(phone)] == ["acme", "google"]
        for provider, token in tokens.items():
            assert (await phone_by(edge, token, provider)).user_id == phone.user_id
        assert events(edge, phone.user_id).count("identity_linked") == 2

    async def test_one_that_opens_another_account_is_taken(self, edge: Edge, acme: Issuer) -> None:
        token = acme.token(**somebody())
        owner, other = await phone_by(edge, token), await edge.phone()
        answer = await self.link(other, token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")
        assert (await phone_by(edge, token)).user_id == owner.user_id

    async def test_of_two_who_link_one_at_once_one_gets_it(self, edge: Edge, acme: Issuer) -> None:
        token, phones = acme.token(**somebody()), [await edge.phone() for _ in range(4)]
        answers = await asyncio.gather(*(self.link(phone, token) for phone in phones))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]

    async def test_a_second_one_of_a_provider_is_refused(self, edge: Edge, acme: Issuer) -> None:
        phone = await phone_by(edge, acme.token(**somebody()))
        answer = await self.link(phone, acme.token(**somebody()))
        assert (answer.status_code, "unlink" in answer.json()["error"]["message"]) == (409, True)

    @pytest.mark.parametrize("token", ["", "garbage"])
    async def test_a_link_wants_a_good_token(self, edge: Edge, token: str) -> None:
        answer = await self.link(await edge.phone(), token)
        assert answer.status_code == (401 if token else 400)
        assert answer.json()["error"]["code"] == ("UNAUTHORIZED" if token else "INVALID_REQUEST")

    async def test_unlinking_ends_the_sign_ins_that_were_made_by_it(self, edge: Edge, acme: Issuer) -> None:
        phone, token = await edge.phone(), acme.token(**somebody())
        assert (await self.link(phone, token)).status_code == 200
        thief = await phone_by(edge, token)
        answer = await phone.call("DELETE", "/v1/auth/identities/acme")
        assert (answer.status_code, answer.json()) == (200, {"signed_out": 1})
        assert await identities(phone) == []
        refresh = await edge.http.post("/v1/auth/refresh", json={"refresh_token": thief.refresh_token})
        assert refresh.status_code == 401
        assert (await phone_by(edge, token)).user_id != phone.user_id
        assert (await phone.call("DELETE", "/v1/auth/identities/acme")).status_code == 404
        assert "identity_unlinked" in events(edge, phone.user_id)

    async def test_the_last_way_in_stays(self, edge: Edge, acme: Issuer) -> None:
        claims = somebody()
        phone = await phone_by(edge, acme.token(**claims))
        answer = await phone.call("DELETE", "/v1/auth/identities/acme")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")
        assert "password" in answer.json()["error"]["message"]
        assert (await phone_by(edge, acme.token(**claims))).user_id == phone.user_id

    async def test_of_two_that_are_unlinked_at_once_one_stays(self, edge: Edge, acme: Issuer) -> None:
        for _ in range(5):
            phone = await phone_by(edge, acme.token(**somebody()))
            assert (await self.link(phone, acme.token(**{**somebody(), "iss": GOOGLE}), "google")).status_code == 200
            doors = [f"/v1/auth/identities/{name}" for name in ("acme", "google")]
            answers = await asyncio.gather(*(phone.call("DELETE", door) for door in doors))
            assert sorted(answer.status_code for answer in answers) == [200, 409]
            assert len(await identities(phone)) == 1


class TestForgeries:
    async def test_a_token_without_a_signature_is_refused(self, edge: Edge, acme: Issuer) -> None:
        for alg in ("none", "None", "NONE", "nOnE", ""):
            assert await refused(edge, compact({"alg": alg, "kid": "one"}, acme.claims())) == "INVALID_TOKEN"
        head, _, _ = acme.token().rpartition(".")
        assert await refused(edge, f"{head}.") == "INVALID_TOKEN"

    async def test_the_public_key_is_no_secret(self, edge: Edge, acme: Issuer) -> None:
        key = acme.keys[0]
        for secret in (key.pem, key.pem.strip(), json.dumps(key.jwk).encode(), base64.b64decode(b"AQAB"), b""):
            forged = signed_with_secret({"alg": "HS256", "kid": key.kid}, acme.claims(), secret)
            assert await refused(edge, forged) == "INVALID_TOKEN"

    async def test_a_key_id_looks_nothing_up_but_keys(self, edge: Edge, acme: Issuer) -> None:
        kids = (
            "../../../../dev/null",
            "/dev/null",
            "' OR '1'='1",
            "one'; DROP TABLE auth.accounts; --",
            "",
            "x" * 5000,
        )
        for kid in (*kids, "\0", "http://127.0.0.1/jwks"):
            assert await refused(edge, acme.keys[0].sign(acme.claims(), kid=kid)) == "INVALID_TOKEN"
            assert await refused(edge, signed_with_secret({"alg": "HS256", "kid": kid}, acme.claims(), b"")) != ""
        for kid in (None, 7, ["one"], {"one": 1}):
            assert await refused(edge, compact({"alg": "RS256", "kid": kid}, acme.claims(), b"x")) == "INVALID_TOKEN"
        assert (await sso(edge, acme.token(**somebody()))).status_code == 200

    async def test_nobody_asks_where_a_token_says_that_its_keys_are(self, edge: Edge, acme: Issuer) -> None:
        forger = Key(kid="forged")
        with issuer() as other:
            other.keys = [forger]
            headers = (
                {"jku": f"{other.url}/jwks"},
                {"x5u": f"{other.url}/cert.pem"},
                {"jwk": forger.jwk},
                {"x5c": [b64(forger.pem)]},
                {"jku": f"{other.url}/jwks", "kid": "one"},
            )
            for header in headers:
                assert await refused(edge, forger.sign(acme.claims(), **header)) == "INVALID_TOKEN"
            discovered = forger.sign({**acme.claims(), "iss": other.url})
            assert await refused(edge, discovered) == "INVALID_TOKEN"
            assert other.asked == []

    async def test_a_token_with_a_critical_header_is_refused(self, edge: Edge, acme: Issuer) -> None:
        for crit in (["b64"], ["exp"], [], "x"):
            token = acme.keys[0].sign(acme.claims(), crit=crit, exp=1)
            assert await refused(edge, token) == "INVALID_TOKEN"

    async def test_a_token_that_was_changed_is_refused(self, edge: Edge, acme: Issuer) -> None:
        head, _, signature = acme.token().split(".")
        assert await refused(edge, f"{head}.{b64(json.dumps(acme.claims(sub='9')).encode())}.{signature}") != ""
        assert await refused(edge, Key().sign(acme.claims())) == "INVALID_TOKEN"

    @pytest.mark.parametrize(
        "token",
        [
            "x" * 20_000,
            "." * 16_000,
            compact({"alg": "RS256", "kid": "one"}, {"x": "x" * 100_000}, b"x"),
            compact(b"[" * 3000, b"{}", b"x"),
            compact({"alg": "RS256", "kid": "one"}, b'{"a":' * 1500 + b"1" + b"}" * 1500, b"x"),
            compact(b'{"alg": "RS256", "kid": "one", "x": ' + b"9" * 6000 + b"}", b"{}", b"x"),
        ],
        ids=["long", "dots", "large", "deep header", "deep claims", "long number"],
    )
    async def test_a_huge_token_is_refused(self, edge: Edge, token: str) -> None:
        assert await refused(edge, token) == "INVALID_TOKEN"

    async def test_a_token_for_another_provider_is_refused(self, edge: Edge, acme: Issuer) -> None:
        assert await refused(edge, acme.token(**somebody()), "google") == "INVALID_TOKEN"
        assert await refused(edge, acme.token(**{**somebody(), "iss": GOOGLE})) == "INVALID_TOKEN"

    async def test_failed_tries_are_security_events(self, edge: Edge) -> None:
        await refused(edge, "garbage", "facebook")
        rows = execute(
            edge,
            "SELECT count(*) FROM auth.security_events WHERE kind = 'sign_in_failed' AND detail->>'method' = %s",
            "sso:facebook",
        )
        assert rows[0][0] >= 1


@dataclass
class Believer:
    """A provider with a clock in hand, and its issuer."""

    issuer: Issuer
    http: httpx.AsyncClient
    now: datetime = NOW
    provider: Provider = field(init=False)

    def __post_init__(self) -> None:
        keys = IssuerKeys(self.http, issuer=self.issuer.url)
        self.provider = Provider(
            "acme",
            issuers=(self.issuer.url,),
            audiences=frozenset(("app", "tablet")),
            check=keys.check,
            now=lambda: self.now,
        )

    async def told(self, nonce: str = "", /, **claims: Any) -> str:
        """What claims are refused with; empty: they are believed."""
        now = int(NOW.timestamp())
        return await self.told_of(self.issuer.token(**{"iat": now, "exp": now + 600, **claims}), nonce)

    async def told_of(self, token: str, nonce: str = "") -> str:
        try:
            await self.provider.identity(token, nonce)
        except Failure as failure:
            return failure.reason.name
        return ""


@pytest.fixture
async def believer(acme: Issuer) -> AsyncIterator[Believer]:
    async with issuer_client() as http:
        yield Believer(acme, http)


BAD = "INVALID_TOKEN"


class TestClaims:
    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({}, ""),
            *(({"iss": iss}, BAD) for iss in (None, "", "https://evil.example", 7, [])),
            *(({"aud": aud}, BAD) for aud in (None, "", "other", [], ["other"], 7, {"app": 1}, ["app", 7], "app,x")),
            *(({"aud": aud}, "") for aud in ("tablet", ["app"], ["app", "app"])),
            ({"aud": ["app", "other"]}, BAD),
            ({"aud": ["app", "other"], "azp": "other"}, BAD),
            ({"aud": ["app", "other"], "azp": ["app"]}, BAD),
            ({"aud": ["app", "other"], "azp": "app"}, ""),
            ({"aud": "app", "azp": "android"}, ""),
            *(({"sub": sub}, BAD) for sub in (None, "", " ", 7, ["x"], "x" * 256, "a\0b", "\ud800")),
            ({"sub": "x" * 255}, ""),
            *(({"exp": exp}, BAD) for exp in (None, "x", "9999999999", True, [], 10**30, 1e300)),
            *(({"iat": iat}, BAD) for iat in (None, "x", False, 10**30)),
            *(({"nbf": nbf}, BAD) for nbf in ("x", 10**12)),
            ({"nbf": 0}, ""),
            *(({"email": email, "email_verified": True}, "") for email in (7, "no address", "x" * 1000, [], "")),
        ],
    )
    async def test_what_a_token_must_say(self, believer: Believer, wrong: dict[str, Any], reason: str) -> None:
        assert await believer.told(**wrong) == reason

    @pytest.mark.parametrize("email", [7, "no address", "x" * 1000, [], ""])
    async def test_what_is_no_address_proves_none(self, believer: Believer, email: object) -> None:
        now = int(NOW.timestamp())
        token = believer.issuer.token(iat=now, exp=now + 600, email=email, email_verified=True)
        assert (await believer.provider.identity(token, "")).proved_email == ""

    async def test_numbers_that_json_does_not_have_are_no_dates(self, believer: Believer) -> None:
        for number in ("NaN", "Infinity", "1e999"):
            claims = json.dumps(believer.issuer.claims(exp=0)).replace('"exp": 0', f'"exp": {number}')
            key = believer.issuer.keys[0]
            signed = jwt.api_jws.encode(claims.encode(), key.private, algorithm="RS256", headers={"kid": key.kid})
            assert await believer.told_of(signed) == BAD

    async def test_the_leeway_has_edges(self, believer: Believer) -> None:
        now = int(NOW.timestamp())
        leeway = int(LEEWAY)
        assert await believer.told(exp=now - leeway + 1) == ""
        assert await believer.told(exp=now - leeway) == "TOKEN_EXPIRED"
        assert await believer.told(iat=now + leeway) == ""
        assert await believer.told(iat=now + leeway + 1) == BAD
        assert await believer.told(nbf=now + leeway) == ""
        assert await believer.told(nbf=now + leeway + 1) == BAD

    async def test_a_nonce_goes_with_its_token(self, believer: Believer) -> None:
        raw = "what the phone has thrown"
        hashed = hashlib.sha256(raw.encode()).hexdigest()
        assert await believer.told(raw, nonce=raw) == ""
        assert await believer.told(raw, nonce=hashed) == ""
        assert await believer.told("another", nonce=raw) == BAD
        assert await believer.told(raw) == BAD
        assert await believer.told("", nonce=raw) == BAD
        assert await believer.told("", nonce="") == BAD
        assert await believer.told("", nonce=hashlib.sha256(b"").hexdigest()) == BAD
        assert await believer.told("7", nonce=7) == BAD
        assert await believer.told("\ud800", nonce="x") == BAD

    @settings(max_examples=150)
    @given(
        st.one_of(
            st.text(max_size=60),
            st.builds(
                ".".join,
                st.lists(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL0123456789-_=+/", max_size=30), max_size=5),
            ),
            st.builds(
                compact,
                st.one_of(
                    st.binary(max_size=40),
                    st.recursive(
                        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
                        lambda inner: (
                            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
                        ),
                        max_leaves=9,
                    ),
                    st.fixed_dictionaries(
                        {"alg": st.sampled_from(["RS256", "ES256", "none", "HS256", 7, None, ["RS256"], {}])},
                        optional={"kid": st.text(max_size=9) | st.none() | st.integers(), "b64": st.booleans()},
                    ),
                ),
                st.dictionaries(
                    st.sampled_from(["iss", "aud", "sub", "exp"]), st.none() | st.text(max_size=9), max_size=4
                ),
                st.binary(max_size=300),
            ),
        )
    )
    async def test_whatever_is_sent_as_a_token_is_refused(self, believer: Believer, token: str) -> None:
        if token:
            assert await believer.told_of(token) == BAD

    @settings(max_examples=200)
    @given(
        st.dictionaries(
            st.sampled_from(
                ["iss", "aud", "azp", "sub", "exp", "iat", "nbf", "nonce", "email", "email_verified", "name"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=5,
            ),
            max_size=6,
        )
    )
    async def test_whatever_a_provider_signs_is_an_identity_or_a_refusal(
        self, believer: Believer, claims: dict[str, Any]
    ) -> None:
        assert await believer.told(**claims) in ("", BAD, "TOKEN_EXPIRED")


class TestSettings:
    @pytest.fixture
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        def read(**given: str) -> Any:
            monkeypatch.setenv("SATCHEL_DATABASE_URL", "postgresql://nowhere/none")
            for name, value in given.items():
                monkeypatch.setenv(f"SATCHEL_{name}", value)
            return from_environment()

        return read

    async def test_a_provider_is_named_by_its_variables(self, environment: Callable[..., Any]) -> None:
        config = environment(SSO_MY_IDP_ISSUER="https://id.example.com", SSO_MY_IDP_AUDIENCE="a, b,,")
        assert config.sso.keys() == {"my_idp"}
        assert config.sso["my_idp"].audiences == {"a", "b"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("SSO_ACME_ISSUER", "http://id.example.com"),
            ("SSO_ACME_JWKS_URL", "ftp://id.example.com"),
            ("SSO_ACME_JWKS_URL", "https://user@id.example.com"),
            ("SSO_ACME_ISSUER", "id.example.com"),
            ("SUPABASE_ISSUER", "http://project.example.com"),
            ("SUPABASE_JWT_SECRET", "short"),
            ("SUPABASE_TENANT", "0"),
        ],
    )
    async def test_a_setting_that_is_not_safe_is_named(
        self, environment: Callable[..., Any], name: str, value: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"SATCHEL_{name}"):
            environment(**{name: value})

    async def test_no_secret_shows_where_settings_are_printed(self, environment: Callable[..., Any]) -> None:
        secret = "x" * 16 + "y" * 16
        config = environment(SUPABASE_ISSUER="https://p.example.com", SUPABASE_JWT_SECRET=secret)
        assert secret not in repr(config)

    async def test_an_unknown_provider_must_say_its_issuer(self) -> None:
        async with issuer_client() as http:
            with pytest.raises(ConfigError, match="SATCHEL_SSO_ACME_ISSUER"):
                providers({"acme": SsoProvider(audience="app")}, http, now=lambda: NOW)
            known = providers({"google": SsoProvider(), "apple": SsoProvider(audience="app")}, http, now=lambda: NOW)
            with pytest.raises(Failure) as refused_:
                known.provider("google")
            assert refused_.value.reason is Reason.NOT_FOUND
            assert known.provider("apple")


@asynccontextmanager
async def provider(directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A whole OpenID provider, which is none of ours, as a process of its own."""
    port = free_port()

    async def answers() -> bool:
        return (await http_get(("127.0.0.1", port), "/"))[0] == 200

    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true"]
    part = Part(name="provider", command=command, log=directory / "provider.log", ready=answers)
    async with running(part), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        yield http


async def id_token_of(http: httpx.AsyncClient, sub: str, *, nonce: str, client_id: str = "app", **claims: Any) -> str:
    """What a phone gets that has its user sign in at the provider, by the authorization code flow."""
    assert (await http.put(f"/users/{sub}", json=claims)).status_code == 204
    back = "http://127.0.0.1/back"
    query = {
        "client_id": client_id,
        "redirect_uri": back,
        "response_type": "code",
        "scope": "openid email profile",
        "nonce": nonce,
        "state": "x",
    }
    agreed = await http.post("/oauth2/authorize", params=query, data={"sub": sub})
    assert agreed.status_code == 302, agreed.text
    code = httpx.URL(agreed.headers["location"]).params["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back}
    got = await http.post("/oauth2/token", data=form, auth=(client_id, "any"))
    assert got.status_code == 200, got.text
    token: str = got.json()["id_token"]
    return token


async def test_the_tokens_of_a_whole_provider_are_believed(own_edge: Callable[..., Any], tmp_path: Path) -> None:
    async with provider(tmp_path) as http:
        issuer_url = str(http.base_url).rstrip("/")
        edge = await own_edge(sso={"whole": SsoProvider(issuer=issuer_url, audience="app")})
        claims = {"email": "ada@example.com", "email_verified": True, "name": "Ada Lovelace"}
        raw = uuid4().hex
        hashed = hashlib.sha256(raw.encode()).hexdigest()
        first = await sso(edge, await id_token_of(http, "ada", nonce=hashed, **claims), "whole", nonce=raw)
        assert first.status_code == 200, first.text
        assert (first.json()["user"]["email"], first.json()["is_new_user"]) == ("ada@example.com", True)
        again = await sso(edge, await id_token_of(http, "ada", nonce="n", **claims), "whole", nonce="n")
        assert (again.json()["user"]["id"], again.json()["is_new_user"]) == (first.json()["user"]["id"], False)
        assert await refused(edge, await id_token_of(http, "ada", nonce="n2", **claims), "whole") == BAD
        for_another = await id_token_of(http, "ada", nonce="n3", client_id="other", **claims)
        assert await refused(edge, for_another, "whole", nonce="n3") == BAD


async def test_a_provider_that_is_away_is_unavailable_until_it_is_back(
    own_edge: Callable[..., Any],
) -> None:
    with issuer() as away:
        away.go_away()
        edge = await own_edge(sso={"acme": SsoProvider(issuer=away.url, audience="app")})
        answer = await sso(edge, away.token(**somebody()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        away.come_back()

        async def back() -> bool:
            return (await sso(edge, away.token(**somebody()))).status_code == 200

        assert await until(back, seconds=15) < 12
        away.go_away()
        assert (await sso(edge, away.token(**somebody()))).status_code == 200


async def test_one_token_counts_per_address_and_others_beside_it(own_edge: Callable[..., Any]) -> None:
    with issuer() as acme:
        edge = await own_edge(sso={"acme": SsoProvider(issuer=acme.url, audience="app")}, rate_limits="on")
        token = acme.token(**somebody())
        assert [(await sso(edge, token)).status_code for _ in range(6)] == [200] * 5 + [429]
        # They begin alike, and are not.
        assert (await sso(edge, acme.token(**somebody()))).status_code == 200


async def test_two_replicas_make_one_account_of_one_identity(database_url: str, redis_url: str, tmp_path: Path) -> None:
    with issuer() as acme:
        known = {"acme": SsoProvider(issuer=acme.url, audience="app")}
        configs = [config_for(tmp_path, database_url=database_url, redis_url=redis_url, sso=known) for _ in range(2)]
        async with AsyncExitStack() as stack:
            for config in configs:
                await stack.enter_async_context(serving(config, {"auth": auth}))
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(config.auth_address)) for config in configs
            ]
            stubs = [sso_pb2_grpc.SsoServiceStub(channel) for channel in channels]
            for _ in range(10):
                request = sso_pb2.SignInWithProviderRequest(provider="acme", id_token=acme.token(**somebody()))
                answers = await asyncio.gather(*(stub.SignInWithProvider(request) for stub in stubs * 3))
                assert len({answer.user.id for answer in answers}) == 1
                assert sum(answer.is_new_user for answer in answers) == 1
