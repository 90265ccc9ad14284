"""Sign-ins over their life: refresh with one successor, reuse caught, sign-out known everywhere within a second."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import jwt
import psycopg
import pytest
from argon2 import extract_parameters
from argon2.profiles import RFC_9106_LOW_MEMORY
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc

from runtime.keys import mesh_secret, signing_keys
from runtime.server import serving
from services.auth.app import service as auth
from services.auth.passwords import Passwords
from services.auth.tokens import new_secret, parse_refresh_token, refresh_token
from tests.auth.callers import as_service
from tests.auth.replicas import Refusal
from tests.conftest import Edge, config_for
from tests.factories import PASSWORD, Phone
from tests.mailbox import mail_server
from tests.polling import until


async def refresh(edge: Edge, token: str) -> tuple[int, dict[str, str]]:
    answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": token})
    body = answer.json()
    return answer.status_code, body.get("error", body)


async def test_a_refresh_gives_a_new_pair_that_works(edge: Edge, phone: Phone) -> None:
    status, body = await refresh(edge, phone.refresh_token)
    assert status == 200
    assert body.keys() == {"access_token", "refresh_token"}
    assert body["refresh_token"] != phone.refresh_token
    renewed = Phone(edge.http, phone.user_id, phone.email, body["access_token"], body["refresh_token"])
    assert (await renewed.call("GET", "/v1/auth/me")).json()["id"] == phone.user_id


async def test_a_lost_answer_signs_nobody_out(edge: Edge, phone: Phone) -> None:
    first = await refresh(edge, phone.refresh_token)
    again = await refresh(edge, phone.refresh_token)
    assert again[0] == 200
    assert again[1]["refresh_token"] == first[1]["refresh_token"]
    assert (await refresh(edge, again[1]["refresh_token"]))[0] == 200


async def test_an_older_token_is_reuse_and_ends_the_sign_in(edge: Edge, phone: Phone) -> None:
    _, second = await refresh(edge, phone.refresh_token)
    _, third = await refresh(edge, second["refresh_token"])
    assert (await refresh(edge, phone.refresh_token))[0] == 401
    status, error = await refresh(edge, third["refresh_token"])
    assert (status, error["code"]) == (401, "UNAUTHORIZED")
    assert error["message"] == "refresh_token: The token was revoked."
    assert error["details"] == [{"field": "refresh_token", "reason": "TOKEN_REVOKED"}]


async def test_many_refreshes_at_once_agree_on_one_successor(edge: Edge, phone: Phone) -> None:
    answers = await asyncio.gather(*(refresh(edge, phone.refresh_token) for _ in range(20)))
    assert {status for status, _ in answers} == {200}
    assert len({body["refresh_token"] for _, body in answers}) == 1


@asynccontextmanager
async def two_replicas(database_url: str, redis_url: str, directory: Path) -> AsyncIterator[list[Any]]:
    """The stubs of two auth services on one database."""
    configs = [config_for(directory, database_url=database_url, redis_url=redis_url) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for config in configs:
            await stack.enter_async_context(serving(config, {"auth": auth}))
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(config.auth_address)) for config in configs
        ]
        yield [auth_pb2_grpc.AuthServiceStub(channel) for channel in channels]


async def presented(stub: Any, token: str) -> str:
    """The successor of a refresh token; of one that is refused the reason, in capitals."""
    try:
        answer = await stub.Refresh(auth_pb2.RefreshRequest(refresh_token=token))
    except grpc.aio.AioRpcError as error:
        return Refusal(error).reason
    return str(answer.refresh_token)


async def test_two_replicas_agree_while_answers_are_lost_and_catch_every_reuse(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Fifty phones refresh through two replicas at once and lose every third answer; then half of them were copied."""
    chance = random.Random(4)
    async with two_replicas(database_url, redis_url, tmp_path) as stubs:
        hashing = asyncio.Semaphore(4)  # many passwords at once would take longer than a call may

        async def phone(number: int) -> None:
            request = auth_pb2.SignUpRequest(email=f"p{number}@example.com", password=PASSWORD)
            async with hashing:
                token = (await stubs[0].SignUp(request)).refresh_token
            used: list[str] = []
            for turn in range(8):
                answers = await asyncio.gather(*(presented(stub, token) for stub in stubs))
                assert len(set(answers)) == 1
                assert answers[0].startswith("rt_"), "somebody was signed out"
                # The last two arrive, so that there is a token that was used before the last one.
                if turn >= 6 or chance.random() > 1 / 3:
                    used.append(token)
                    token = answers[0]
            if number % 2:
                stolen = chance.choice(used[:-1])
                assert await presented(chance.choice(stubs), stolen) == "TOKEN_REVOKED"
                assert [await presented(stub, token) for stub in stubs] == ["TOKEN_REVOKED"] * 2
            else:
                assert (await presented(chance.choice(stubs), token)).startswith("rt_")

        await asyncio.gather(*(phone(number) for number in range(50)))


async def test_fifty_callers_of_one_phone_go_on_together_whatever_answers_are_lost(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    chance = random.Random(5)
    async with two_replicas(database_url, redis_url, tmp_path) as stubs:
        answer = await stubs[0].SignUp(auth_pb2.SignUpRequest(email="p@example.com", password=PASSWORD))
        used = [answer.refresh_token]

        async def caller(number: int, token: str) -> str:
            successor = await presented(stubs[number % 2], token)
            while chance.random() < 1 / 3:  # the answer was lost
                successor = await presented(chance.choice(stubs), token)
            return successor

        for _ in range(8):
            told = set(await asyncio.gather(*(caller(number, used[-1]) for number in range(50))))
            assert len(told) == 1
            assert next(iter(told)).startswith("rt_"), "somebody was signed out"
            used += told
        assert len(set(used)) == len(used)

        # Copies of an old token, many at once among callers who hold the last one: whoever comes first, it ends here.
        old = chance.choice(used[:-2])
        tokens = [used[-1]] * 25 + [old] * 25
        chance.shuffle(tokens)
        told_each = await asyncio.gather(*(presented(stubs[n % 2], token) for n, token in enumerate(tokens)))
        assert {told for told, token in zip(told_each, tokens, strict=True) if token == old} == {"TOKEN_REVOKED"}
        for token in used:
            assert await presented(chance.choice(stubs), token) == "TOKEN_REVOKED"


async def test_a_made_up_token_ends_nobodys_sign_in(edge: Edge, phone: Phone) -> None:
    real = parse_refresh_token(phone.refresh_token)
    guessed = refresh_token(real.sign_in_id, new_secret(), b"not the key of the sign-in")
    status, error = await refresh(edge, str(guessed))
    assert (status, error["details"]) == (401, [{"field": "refresh_token", "reason": "INVALID_TOKEN"}])
    assert (await refresh(edge, phone.refresh_token))[0] == 200


@pytest.mark.parametrize(
    "token", ["nonsense", "rt_", "rt_AAAA", "rt_" + "A" * 200, "rt_ÄÖÜ", "eyJhbGciOiJub25lIn0.e30."]
)
async def test_what_is_no_refresh_token_is_refused(edge: Edge, token: str) -> None:
    status, error = await refresh(edge, token)
    assert (status, error["code"]) == (401, "UNAUTHORIZED")


async def test_an_empty_refresh_token_is_a_missing_field(edge: Edge) -> None:
    status, error = await refresh(edge, "")
    assert (status, error["details"]) == (400, [{"field": "refresh_token", "reason": "REQUIRED"}])


async def test_a_refresh_token_ends_after_thirty_days(edge: Edge, phone: Phone) -> None:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute(
            "UPDATE auth.sign_ins SET expire_time = now() WHERE account_id = %s RETURNING expire_time - create_time",
            [phone.user_id],
        )
    status, error = await refresh(edge, phone.refresh_token)
    assert (status, error["details"]) == (401, [{"field": "refresh_token", "reason": "TOKEN_EXPIRED"}])


async def test_nothing_that_is_stored_would_refresh_a_sign_in(edge: Edge, phone: Phone) -> None:
    await refresh(edge, phone.refresh_token)
    secret = parse_refresh_token(phone.refresh_token).secret
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        row = connection.execute("SELECT * FROM auth.sign_ins WHERE account_id = %s", [phone.user_id]).fetchone()
    assert row is not None
    assert not [value for value in row if isinstance(value, bytes) and secret in value]
    created, expires = row[8], row[10]
    assert timedelta(days=30) <= expires - created < timedelta(days=30, minutes=1)


async def test_a_sign_out_reaches_every_service_within_a_second(edge: Edge, phone: Phone) -> None:
    assert (await phone.call("GET", "/sessions")).status_code == 200
    answer = await phone.call("POST", "/v1/auth/signout", json={})
    assert answer.json() == {"signed_out": 1}

    async def refused() -> bool:
        answers = [await phone.call("GET", path) for path in ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits")]
        return all(answer.status_code == 401 for answer in answers)

    assert await until(refused, seconds=5) < 1
    error = (await phone.call("GET", "/sessions")).json()["error"]
    assert error["details"] == [{"field": "Authorization", "reason": "TOKEN_REVOKED"}]
    assert (await refresh(edge, phone.refresh_token))[0] == 401


async def test_the_scope_of_a_sign_out_decides_who_goes(edge: Edge, phone: Phone) -> None:
    async def another() -> Phone:
        body = (await edge.http.post("/v1/auth/signin", json={"email": phone.email, "password": PASSWORD})).json()
        return Phone(edge.http, phone.user_id, phone.email, body["access_token"], body["refresh_token"])

    second, third = await another(), await another()
    assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "others"})).json() == {"signed_out": 2}
    assert (await refresh(edge, second.refresh_token))[0] == 401
    assert (await refresh(edge, phone.refresh_token))[0] == 200
    fourth = await another()
    assert (await phone.call("POST", "/v1/auth/signout", json={"scope": "all"})).json() == {"signed_out": 2}
    for one in (phone, third, fourth):
        assert (await refresh(edge, one.refresh_token))[0] == 401


async def test_an_unknown_scope_ends_nothing(edge: Edge, phone: Phone) -> None:
    answer = await phone.call("POST", "/v1/auth/signout", json={"scope": "everybody"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert (await refresh(edge, phone.refresh_token))[0] == 200


async def test_the_published_keys_verify_an_access_token(edge: Edge, phone: Phone) -> None:
    keys = (await edge.http.get("/.well-known/jwks.json")).json()["keys"]
    assert {key["alg"] for key in keys} == {"ES256"}
    assert "d" not in keys[0]
    claims = jwt.decode(phone.access_token, jwt.PyJWK(keys[0]), algorithms=["ES256"], issuer="satchel")
    assert claims["sub"] == phone.user_id
    assert UUID(claims["sid"])
    assert (claims["tenant_id"], claims["role"], claims["tier"]) == (1, "user", "free")
    assert claims["exp"] - claims["iat"] == 3600


async def test_the_keys_survive_a_restart_and_are_the_same_for_every_replica(tmp_path: Path) -> None:
    first, again = signing_keys(tmp_path / "keys"), signing_keys(tmp_path / "keys")
    assert [key.kid for key in first] == [key.kid for key in again]
    assert (tmp_path / "keys" / "signing-0001.pem").stat().st_mode & 0o777 == 0o600
    many = await asyncio.gather(*(asyncio.to_thread(mesh_secret, tmp_path / "mesh") for _ in range(8)))
    assert len(set(many)) == 1


async def test_the_admin_of_the_settings_signs_in_as_admin(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(admin_email="Boss@Example.com")
    boss = await edge.phone(email="boss@example.com", tenant_id=7)
    claims = jwt.decode(boss.access_token, options={"verify_signature": False})
    assert (claims["role"], claims["tenant_id"]) == ("admin", 7)
    worker = await edge.phone(email="worker@example.com")
    assert jwt.decode(worker.access_token, options={"verify_signature": False})["role"] == "user"


async def test_where_mail_is_sent_the_admin_of_the_settings_has_to_prove_the_address(
    own_edge: Callable[..., Awaitable[Edge]],
) -> None:
    async with mail_server() as mail:
        settings = {"smtp_url": mail.url, "mail_from": "Satchel <no-reply@satchel.test>"}
        edge = await own_edge(admin_email="boss@example.com", **settings)
        boss = await edge.phone(email="boss@example.com")

        async def roles(token: str) -> tuple[str, str]:
            shown = (await as_service(edge, "GET", f"/users/{boss.user_id}")).json()["role"]
            return jwt.decode(token, options={"verify_signature": False})["role"], shown

        assert await roles(boss.access_token) == ("user", "user")
        assert (await boss.call("POST", "/v1/auth/email/request-verification", json={})).status_code == 200
        code = await mail.code(boss.email)
        assert (await boss.call("POST", "/v1/auth/email/verify", json={"code": code})).status_code == 200
        refreshed = await edge.http.post("/v1/auth/refresh", json={"refresh_token": boss.refresh_token})
        assert await roles(refreshed.json()["access_token"]) == ("admin", "admin")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("email", "", "REQUIRED"),
        ("email", "no address", "INVALID_FORMAT"),
        ("email", "a@b", "INVALID_FORMAT"),
        ("email", f"{'x' * 250}@example.com", "INVALID_FORMAT"),
        ("password", "", "REQUIRED"),
        ("password", "short", "TOO_SHORT"),
        ("password", "x" * 129, "TOO_LONG"),
        ("password", "aaaaaaaaaaaa", "TOO_COMMON"),
        ("password", "Password1", "TOO_COMMON"),
        ("device_name", "x" * 101, "TOO_LONG"),
        ("device_name", "bell\u0007", "INVALID_FORMAT"),
        ("tenant_id", -1, "OUT_OF_RANGE"),
    ],
)
async def test_a_sign_up_names_what_is_wrong(edge: Edge, field: str, value: object, reason: str) -> None:
    request = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD, field: value}
    answer = await edge.http.post("/v1/auth/signup", json=request)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"] == [{"field": field, "reason": reason}]


async def test_sign_ups_of_one_email_at_once_make_one_account(edge: Edge) -> None:
    request = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
    answers = await asyncio.gather(*(edge.http.post("/auth/register", json=request) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_a_lapsed_subscription_is_judged_when_it_is_read(edge: Edge, phone: Phone) -> None:
    def subscribe(until: datetime) -> None:
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            connection.execute(
                "UPDATE auth.accounts SET tier = 'studio', subscription_status = 'active', subscription_end_time = %s"
                " WHERE id = %s",
                [until, phone.user_id],
            )

    subscribe(datetime(2099, 11, 16, 21, tzinfo=UTC))
    me = (await phone.call("GET", "/v1/auth/me")).json()
    assert (me["tier"], me["subscription_status"], me["subscription_expires_at"]) == (
        "studio",
        "active",
        "2099-11-16T21:00:00Z",
    )
    subscribe(datetime(2025, 11, 16, 21, tzinfo=UTC))
    status = (await phone.call("GET", "/v1/subscription/status")).json()
    assert status == {
        "tier": "free",
        "status": "expired",
        "current_period_end": "2025-11-16T21:00:00Z",
        "cancel_at_period_end": False,
    }


@pytest.mark.usefixtures("costly_hashes")
async def test_an_unknown_account_takes_as_long_as_a_wrong_password() -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    assert extract_parameters(stored) == RFC_9106_LOW_MEMORY
    await passwords.verify(None, PASSWORD)
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for known in (True, False):
            started = time.perf_counter()
            assert not await passwords.verify(stored if known else None, "not the password")
            took[known].append(time.perf_counter() - started)
    passwords.close()
    # The shortest of several is what the work itself takes; both do one argon2id of the same size.
    assert 0.5 < min(took[False]) / min(took[True]) < 2
