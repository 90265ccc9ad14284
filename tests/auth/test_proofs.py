"""What proves who somebody is proves nothing else: tokens in the wrong place, guesses, floods, and races over them."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
from satchel.auth.v1 import auth_pb2, guests_pb2, guests_pb2_grpc

import services.auth
from runtime.application_tokens import digest, new_token
from runtime.database import database
from runtime.identity import ServiceTokens
from runtime.keys import mesh_secret
from runtime.mesh import TOKEN_EXCHANGE, AuthClient, channel
from services.auth.codes_domain import LIFETIME, MAX_TRIES, CodeBook, Codes, Purpose
from services.auth.codes_store import CodeStore
from services.auth.events_domain import FOLDS
from services.auth.events_store import EventStore
from tests.auth.callers import as_service
from tests.auth.replicas import Refusal, bearer, replica
from tests.conftest import Edge, config_for
from tests.factories import PASSWORD, Phone

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


async def test_what_a_service_acts_with_does_not_prove_that_a_guest_is_ones_own(edge: Edge, phone: Phone) -> None:
    guest = await Phone.as_guest(edge.http)
    request = {"grant_type": TOKEN_EXCHANGE, "subject_token": guest.access_token, "subject_token_type": ACCESS_TOKEN}
    lent = (await as_service(edge, "POST", "/v1/auth/token", json={**request, "scope": "read"})).json()
    answer = await phone.call("POST", "/v1/auth/merge", json={"guest_access_token": lent["access_token"]})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["details"] == [{"field": "guest_access_token", "reason": "INVALID_TOKEN"}]
    assert (await guest.call("GET", "/v1/auth/me")).status_code == 200
    own = await phone.call("POST", "/v1/auth/merge", json={"guest_access_token": guest.access_token})
    assert own.status_code == 200


async def test_made_up_tokens_of_programs_take_nobody_elses_question_down(edge: Edge, phone: Phone) -> None:
    secret = (await phone.call("POST", "/tokens/", json={"name": "x", "scopes": ["read"]})).json()["token"]
    config = edge.mesh.config
    async with channel(config.auth_address) as opened:
        client = AuthClient(opened, ServiceTokens(mesh_secret(config.keys), "test"))
        made_up = [client.resolve(digest(new_token())) for _ in range(2500)]
        *others, found = await asyncio.gather(*made_up, client.resolve(digest(secret)))
    assert found is not None
    assert str(found.user_id) == phone.user_id
    assert others == [None] * 2500


async def test_all_addresses_of_one_ipv6_network_share_the_tries_of_a_code(database_url: str) -> None:
    book, account = CodeBook(b"x" * 32), uuid4()
    async with database(database_url, connections=2, name="tests") as db:
        codes = Codes(CodeStore(db), EventStore(db), book, now=lambda: NOW)
        async with db.statements() as statements:
            await statements.connection.execute(
                "INSERT INTO auth.accounts (id, email, password_hash, tenant_id, role, tier, subscription_status,"
                " cancel_at_period_end, create_time) VALUES (%s, 'a@example.com', '', 1, 'user', 'free', 'inactive',"
                " false, now())",
                [account],
            )
            await statements.connection.execute(
                "INSERT INTO auth.codes (id, account_id, purpose, email, number, tries, create_time, expire_time)"
                " VALUES (%s, %s, 'reset', 'a@example.com', %s, 0, %s, %s)",
                [account, account, book.code(account, Purpose.RESET)[:3], NOW, NOW + LIFETIME],
            )

        async def tries(code: str, ip: str) -> bool:
            try:
                await codes.check(code, account_id=account, email="a@example.com", purposes=[Purpose.RESET], ip=ip)
            except Exception:  # as everybody is told of a wrong code
                return False
            return True

        right = book.code(account, Purpose.RESET)
        other = right[:2] + ("0" if right[2] != "0" else "1") + right[3:]
        for number in range(MAX_TRIES):
            assert not await tries(other, f"2001:db8:0:7::{number}")
        assert not await tries(right, "2001:db8:0:7:ffff::1")
        assert await tries(right, "2001:db8:0:8::1")


async def test_strangers_who_guess_codes_and_tokens_leave_few_rows(edge: Edge, phone: Phone) -> None:
    """Of one kind, account and minute there are FOLDS at most; a minute may end while this runs."""
    guess = {"email": phone.email, "code": "0000-0000", "new_password": "another password 77"}
    for _ in range(5):
        assert (await edge.http.post("/auth/password/reset", json=guess)).status_code == 400
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        found = connection.execute(
            "SELECT count(*), sum(count) FROM auth.security_events WHERE account_id = %s AND kind = 'proof_refused'",
            [phone.user_id],
        ).fetchone()
    assert found is not None
    assert found[0] <= 2 < FOLDS
    assert found[1] == 5


async def test_who_signed_up_as_a_guest_is_no_place_to_guess_the_password_at(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = {"database_url": database_url, "redis_url": redis_url, "rate_limits": "on"}
    async with replica(config_for(tmp_path / "home", **settings)) as one:
        async with grpc.aio.insecure_channel(one.config.auth_address) as opened:
            guest = await guests_pb2_grpc.GuestServiceStub(opened).CreateGuest(
                guests_pb2.CreateGuestRequest(), metadata=(("x-envoy-external-address", "10.0.0.1"),)
            )
        email = f"{uuid4().hex}@example.com"

        async def sign_up(password: str) -> Any:
            request = auth_pb2.SignUpRequest(email=email, password=password)
            metadata = (*bearer(guest.access_token), ("x-envoy-external-address", "10.0.0.1"))
            try:
                return await one.accounts.SignUp(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return Refusal(error)

        def guesses() -> list[Any]:
            with psycopg.connect(database_url) as connection:
                return connection.execute("SELECT failures FROM auth.attempts").fetchall()

        assert (await sign_up(PASSWORD)).access_token
        assert (await sign_up(PASSWORD)).access_token, "who did not hear the answer comes again"
        assert guesses() == []
        assert (await sign_up("a guess that is wrong")).reason == "NOT_A_GUEST"
        assert guesses() == [(1,)]


SECRETS = ("password", "password_hash", "secret", "digest", "successor", "token_key", "token", "access", "refresh")
# The place of a page, and which of its keys a device goes by: a digest already.
NO_SECRETS = ("next_token", "device_key")


def values() -> Iterator[type]:
    for module in pkgutil.iter_modules(services.auth.__path__):
        if module.name != "__main__":
            found = vars(importlib.import_module(f"services.auth.{module.name}")).values()
            yield from (one for one in found if isinstance(one, type) and is_dataclass(one))


def test_no_value_shows_a_secret_when_it_is_printed() -> None:
    shown = set()
    for value in values():
        if hasattr(value.__repr__, "__wrapped__"):  # made by dataclass, and not by the class itself
            shown |= {
                f"{value.__name__}.{one.name}" for one in fields(value) if one.repr and one.name.endswith(SECRETS)
            }
    # The first hides its own, and the second is sealed.
    assert {one for one in shown if not one.endswith(NO_SECRETS)} == {"HeldToken.token"}
