"""Second factors: turned on with a code and off with one, asked for at every sign-in, each code good once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
import httpx
import psycopg
import pyotp
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc, second_factors_pb2, second_factors_pb2_grpc

from runtime.keys import add_vault_key
from runtime.server import serving
from services.auth.app import service as auth
from services.auth.second_factors_codes import STEP_SECONDS, new_recovery_codes, parse_code, step_of
from services.auth.second_factors_domain import RECOVERY_TRIES, TRIES
from tests.auth.test_admin import admin
from tests.conftest import Edge, config_for
from tests.factories import PASSWORD, Phone

PATH = "/v1/auth/second-factor"
RFC_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


def code_of(secret: str, around: int = 0) -> str:
    """The code that an app shows, so many steps from now."""
    return pyotp.TOTP(secret).generate_otp(int(time.time()) // STEP_SECONDS + around)


def wrong_code(secret: str) -> str:
    """Six digits that are no code of the secret about now."""
    near = {code_of(secret, around) for around in range(-3, 4)}
    return next(one for one in (f"{number:06}" for number in range(10)) if one not in near)


def database(edge: Edge, statement: str, phone: Phone) -> list[Any]:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        cursor = connection.execute(statement, [phone.user_id])
        return cursor.fetchall() if cursor.description else []


def forget_steps(edge: Edge, phone: Phone) -> None:
    """Lets the current code be used again, as it may be thirty seconds later."""
    database(edge, "UPDATE auth.second_factors SET last_step = NULL, tries = 0 WHERE account_id = %s", phone)


def kinds(edge: Edge, phone: Phone) -> list[str]:
    rows = database(edge, "SELECT kind FROM auth.security_events WHERE account_id = %s ORDER BY id", phone)
    return [row[0] for row in rows]


async def turned_on(edge: Edge, phone: Phone, password: str = PASSWORD) -> tuple[str, list[str]]:
    """The secret and the recovery codes of a phone that has turned it on, whose current code was not used yet."""
    begun = await phone.call("POST", PATH, json={"password": password})
    assert begun.status_code == 200, begun.text
    secret = begun.json()["secret"]
    answer = await phone.call("POST", f"{PATH}/confirm", json={"code": code_of(secret)})
    assert answer.status_code == 200, answer.text
    forget_steps(edge, phone)
    return secret, answer.json()["recovery_codes"]


async def sign_in(edge: Edge, phone: Phone, **given: str) -> httpx.Response:
    return await edge.http.post("/v1/auth/signin", json={"email": phone.email, "password": PASSWORD, **given})


def refusal(answer: httpx.Response) -> tuple[int, str, list[tuple[str, str]]]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], [(one["field"], one["reason"]) for one in error["details"]]


REQUIRED = (401, "INVALID_CREDENTIALS", [("code", "SECOND_FACTOR_REQUIRED")])
WRONG = (401, "INVALID_CREDENTIALS", [("code", "SECOND_FACTOR_INVALID")])
NONE = (404, "NOT_FOUND", [])


class TestTurningItOn:
    async def test_nothing_is_asked_for_before_a_code_was_confirmed(self, edge: Edge, phone: Phone) -> None:
        off = {"enabled": False, "enabled_at": None, "recovery_codes_left": 0}
        assert (await phone.call("GET", PATH)).json() == off
        begun = (await phone.call("POST", PATH, json={"password": PASSWORD})).json()
        uri = urlsplit(begun["otpauth_uri"])
        assert (uri.scheme, uri.netloc, unquote(uri.path)) == ("otpauth", "totp", f"/Satchel:{phone.email}")
        assert parse_qs(uri.query) == {"secret": [begun["secret"]], "issuer": ["Satchel"]}
        assert re.fullmatch(r"[A-Z2-7]{32}", begun["secret"])
        assert (await phone.call("GET", PATH)).json() == off
        assert (await sign_in(edge, phone)).status_code == 200
        wrong = await phone.call("POST", f"{PATH}/confirm", json={"code": wrong_code(begun["secret"])})
        assert refusal(wrong) == WRONG
        answer = await phone.call("POST", f"{PATH}/confirm", json={"code": code_of(begun["secret"])})
        assert len(set(answer.json()["recovery_codes"])) == 10
        stood = (await phone.call("GET", PATH)).json()
        assert (stood["enabled"], stood["recovery_codes_left"]) == (True, 10)
        assert datetime.fromisoformat(stood["enabled_at"]).tzinfo
        assert refusal(await sign_in(edge, phone)) == REQUIRED
        # The code that has turned it on signs nobody in.
        assert refusal(await sign_in(edge, phone, code=code_of(begun["secret"]))) == WRONG

    async def test_beginning_again_forgets_what_was_begun_and_never_what_is_on(self, edge: Edge, phone: Phone) -> None:
        first = (await phone.call("POST", PATH, json={})).json()["secret"]
        second = (await phone.call("POST", PATH, json={})).json()["secret"]
        assert refusal(await phone.call("POST", f"{PATH}/confirm", json={"code": code_of(first)})) == WRONG
        assert (await phone.call("POST", f"{PATH}/confirm", json={"code": code_of(second)})).status_code == 200
        enabled = (409, "CONFLICT", [])
        assert refusal(await phone.call("POST", PATH, json={"password": PASSWORD})) == enabled
        assert refusal(await phone.call("POST", f"{PATH}/confirm", json={"code": code_of(second)})) == enabled
        forget_steps(edge, phone)
        assert (await sign_in(edge, phone, code=code_of(second))).status_code == 200

    async def test_a_token_that_was_left_lying_about_needs_the_password(self, edge: Edge, phone: Phone) -> None:
        wrong = await phone.call("POST", PATH, json={"password": "not the password"})
        assert refusal(wrong) == (401, "INVALID_CREDENTIALS", [])
        aged = "UPDATE auth.sign_ins SET create_time = create_time - interval '11 minutes' WHERE account_id = %s"
        database(edge, aged, phone)
        assert refusal(await phone.call("POST", PATH, json={})) == (
            400,
            "INVALID_REQUEST",
            [("password", "REQUIRED")],
        )
        assert (await phone.call("POST", PATH, json={"password": PASSWORD})).status_code == 200

    async def test_two_phones_that_confirm_at_once_get_one_set_of_recovery_codes(
        self, edge: Edge, phone: Phone
    ) -> None:
        secret = (await phone.call("POST", PATH, json={})).json()["secret"]
        confirm = {"code": code_of(secret)}
        answers = await asyncio.gather(*(phone.call("POST", f"{PATH}/confirm", json=confirm) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        assert (await phone.call("GET", PATH)).json()["recovery_codes_left"] == 10

    async def test_without_one_there_is_nothing_to_confirm_to_end_or_to_renew(self, edge: Edge, phone: Phone) -> None:
        for verb, path in (
            ("POST", f"{PATH}/confirm"),
            ("DELETE", PATH),
            ("POST", f"{PATH}/disable"),
            ("POST", f"{PATH}/recovery-codes"),
        ):
            assert refusal(await phone.call(verb, path, json={"code": "123456"})) == NONE, path
        assert (await sign_in(edge, phone, code="anything at all")).status_code == 200

    async def test_what_can_be_no_code_is_an_invalid_field(self, edge: Edge, phone: Phone) -> None:
        invalid = (400, "INVALID_REQUEST", [("code", "INVALID_FORMAT")])
        codes = ("12345", "1234567", "abcdef", "\u0661" * 6, "x" * 10_000, "1" * 17)
        for code in codes:
            assert refusal(await phone.call("POST", f"{PATH}/confirm", json={"code": code})) == invalid, code
        await turned_on(edge, phone)
        for code in codes:
            assert refusal(await sign_in(edge, phone, code=code)) == invalid, code


class TestSigningIn:
    async def test_it_takes_the_password_and_a_code(self, edge: Edge, phone: Phone) -> None:
        secret, _ = await turned_on(edge, phone)
        for code in ("", "  "):
            assert refusal(await sign_in(edge, phone, code=code)) == REQUIRED
        answer = await sign_in(edge, phone, password="not the password", code=code_of(secret))
        assert refusal(answer) == (401, "INVALID_CREDENTIALS", [])
        spaced = f" {code_of(secret)[:3]} {code_of(secret)[3:]} "
        answer = await edge.http.post("/auth/login", json={"email": phone.email, "password": PASSWORD, "code": spaced})
        assert answer.status_code == 200
        signed_in = Phone(edge.http, phone.user_id, phone.email, answer.json()["access_token"], "")
        assert (await signed_in.call("GET", "/v1/auth/me")).json()["id"] == phone.user_id

    async def test_refreshing_takes_none(self, edge: Edge, phone: Phone) -> None:
        await turned_on(edge, phone)
        answer = await edge.http.post("/v1/auth/refresh", json={"refresh_token": phone.refresh_token})
        assert answer.status_code == 200

    async def test_a_code_is_good_once_and_none_before_it_afterwards(self, edge: Edge, phone: Phone) -> None:
        secret, _ = await turned_on(edge, phone)
        earlier, current, later = (code_of(secret, around) for around in (-1, 0, 1))
        assert (await sign_in(edge, phone, code=current)).status_code == 200
        assert refusal(await sign_in(edge, phone, code=current)) == WRONG
        assert refusal(await sign_in(edge, phone, code=earlier)) == WRONG
        assert (await sign_in(edge, phone, code=later)).status_code == 200

    async def test_the_code_of_another_account_is_wrong(self, edge: Edge, phone: Phone) -> None:
        await turned_on(edge, phone)
        other = await edge.phone()
        secret, codes = await turned_on(edge, other)
        assert refusal(await sign_in(edge, phone, code=code_of(secret))) == WRONG
        assert refusal(await sign_in(edge, phone, code=codes[0])) == WRONG

    async def test_over_grpc_the_reason_says_what_is_wanted(self, edge: Edge, phone: Phone) -> None:
        await turned_on(edge, phone)
        async with grpc.aio.insecure_channel(edge.target) as channel:
            request = auth_pb2.SignInRequest(email=phone.email, password=PASSWORD)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await auth_pb2_grpc.AuthServiceStub(channel).SignIn(request)
        status, info = rpc_status.from_call(cast(Any, refused.value)), error_details_pb2.ErrorInfo()
        assert status is not None
        assert status.details[0].Unpack(info)
        assert info.reason == "SECOND_FACTOR_REQUIRED"

    async def test_two_replicas_take_one_code_once(self, database_url: str, redis_url: str, tmp_path: Path) -> None:
        configs = [config_for(tmp_path, database_url=database_url, redis_url=redis_url) for _ in range(2)]
        async with AsyncExitStack() as stack:
            channels = []
            for config in configs:
                await stack.enter_async_context(serving(config, {"auth": auth}))
                channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(config.auth_address)))
            stubs = [auth_pb2_grpc.AuthServiceStub(channel) for channel in channels]
            factors = second_factors_pb2_grpc.SecondFactorServiceStub(channels[0])
            account = await stubs[0].SignUp(auth_pb2.SignUpRequest(email="two@example.com", password=PASSWORD))
            metadata = (("authorization", f"Bearer {account.access_token}"),)
            begun = await factors.BeginSecondFactor(second_factors_pb2.BeginSecondFactorRequest(), metadata=metadata)
            confirm = second_factors_pb2.ConfirmSecondFactorRequest(code=code_of(begun.secret, -1))
            if step_of(begun.secret, confirm.code, datetime.now(UTC)) is None:
                confirm.code = code_of(begun.secret, -1)  # the thirty seconds have just ended
            recovery = (await factors.ConfirmSecondFactor(confirm, metadata=metadata)).recovery_codes

            async def taken(stub: Any, code: str) -> bool:
                try:
                    await stub.SignIn(auth_pb2.SignInRequest(email="two@example.com", password=PASSWORD, code=code))
                except grpc.aio.AioRpcError as refused:
                    assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
                    return False
                return True

            for code in (code_of(begun.secret), recovery[0], code_of(begun.secret, 1)):
                assert sum(await asyncio.gather(*(taken(stub, code) for stub in stubs * 2))) == 1, code


class TestGuessing:
    async def test_guesses_are_limited_and_a_recovery_code_still_signs_the_owner_in(
        self, edge: Edge, phone: Phone
    ) -> None:
        secret, codes = await turned_on(edge, phone)
        for _ in range(TRIES):
            assert refusal(await sign_in(edge, phone, code=wrong_code(secret))) == WRONG
        answer = await sign_in(edge, phone, code=code_of(secret))
        assert refusal(answer) == (429, "RATE_LIMIT", [])
        assert 1 <= int(answer.headers["retry-after"]) <= 300
        assert (await sign_in(edge, phone, code=codes[0])).status_code == 200
        later = "UPDATE auth.second_factors SET tries_since = tries_since - interval '5 minutes' WHERE account_id = %s"
        database(edge, later, phone)
        assert (await sign_in(edge, phone, code=code_of(secret))).status_code == 200

    async def test_guesses_at_once_are_all_counted(self, edge: Edge, phone: Phone) -> None:
        secret, _ = await turned_on(edge, phone)
        guess = {"code": wrong_code(secret)}
        answers = await asyncio.gather(
            *(phone.call("POST", f"{PATH}/recovery-codes", json=guess) for _ in range(TRIES + 7))
        )
        assert sorted(answer.status_code for answer in answers) == [401] * TRIES + [429] * 7

    async def test_guesses_of_recovery_codes_have_a_limit_of_their_own(self, edge: Edge, phone: Phone) -> None:
        secret, _ = await turned_on(edge, phone)
        guess = {"code": new_recovery_codes()[0]}
        statuses = [
            (await phone.call("POST", f"{PATH}/recovery-codes", json=guess)).status_code
            for _ in range(RECOVERY_TRIES + 2)
        ]
        assert statuses == [401] * RECOVERY_TRIES + [429] * 2
        assert (await sign_in(edge, phone, code=code_of(secret))).status_code == 200

    async def test_failures_are_in_the_log_of_events(self, edge: Edge, phone: Phone) -> None:
        secret, codes = await turned_on(edge, phone)
        await sign_in(edge, phone, code=wrong_code(secret))
        await sign_in(edge, phone, code=codes[0])
        assert kinds(edge, phone) == [
            "signed_up",
            "second_factor_enabled",
            "second_factor_failed",
            "recovery_code_used",
            "signed_in",
        ]


class TestRecoveryCodes:
    async def test_each_is_good_once_in_any_spelling(self, edge: Edge, phone: Phone) -> None:
        _, codes = await turned_on(edge, phone)
        assert all(re.fullmatch(r"([A-Z2-7]{4}-){3}[A-Z2-7]{4}", one) for one in codes)
        for spelled in (codes[0], codes[1].lower().replace("-", ""), f" {codes[2].replace('-', ' ')} "):
            assert (await sign_in(edge, phone, code=spelled)).status_code == 200
            assert refusal(await sign_in(edge, phone, code=spelled)) == WRONG
        assert (await phone.call("GET", PATH)).json()["recovery_codes_left"] == 7

    async def test_a_new_set_ends_the_old_one(self, edge: Edge, phone: Phone) -> None:
        secret, codes = await turned_on(edge, phone)
        answer = await phone.call("POST", f"{PATH}/recovery-codes", json={"code": code_of(secret)})
        fresh = answer.json()["recovery_codes"]
        assert len(set(fresh) - set(codes)) == 10
        assert refusal(await sign_in(edge, phone, code=codes[0])) == WRONG
        answer = await phone.call("POST", f"{PATH}/recovery-codes", json={"code": fresh[0]})
        assert len(set(answer.json()["recovery_codes"]) - set(fresh)) == 10
        assert kinds(edge, phone).count("recovery_codes_renewed") == 2


class TestTurningItOff:
    @pytest.mark.parametrize(("verb", "path"), [("DELETE", PATH), ("POST", f"{PATH}/disable")])
    async def test_it_takes_the_password_and_a_code(self, edge: Edge, phone: Phone, verb: str, path: str) -> None:
        secret, _ = await turned_on(edge, phone)
        aged = "UPDATE auth.sign_ins SET create_time = create_time - interval '11 minutes' WHERE account_id = %s"
        database(edge, aged, phone)

        async def asked(**given: str) -> tuple[int, str, list[tuple[str, str]]]:
            return refusal(await phone.call(verb, path, json=given))

        assert await asked(password=PASSWORD) == (400, "INVALID_REQUEST", [("code", "REQUIRED")])
        assert await asked(code=code_of(secret)) == (400, "INVALID_REQUEST", [("password", "REQUIRED")])
        assert await asked(code=code_of(secret), password="nonsense") == (401, "INVALID_CREDENTIALS", [])
        assert await asked(code=wrong_code(secret), password=PASSWORD) == WRONG
        assert (await phone.call("GET", PATH)).json()["enabled"] is True
        answer = await phone.call(verb, path, json={"code": code_of(secret), "password": PASSWORD})
        assert (answer.status_code, answer.json()) == (200, {"enabled": False})
        assert (await sign_in(edge, phone)).status_code == 200
        assert "second_factor_disabled" in kinds(edge, phone)

    async def test_a_recovery_code_does_it_too_and_it_can_be_turned_on_again(self, edge: Edge, phone: Phone) -> None:
        secret, codes = await turned_on(edge, phone)
        answer = await phone.call("DELETE", PATH, json={"code": codes[0], "password": PASSWORD})
        assert answer.status_code == 200
        again, _ = await turned_on(edge, phone)
        assert refusal(await sign_in(edge, phone, code=codes[1])) == WRONG
        assert refusal(await sign_in(edge, phone, code=code_of(secret))) == WRONG
        assert (await sign_in(edge, phone, code=code_of(again))).status_code == 200


class TestWhatIsStored:
    async def test_neither_the_secret_nor_a_code_can_be_read(self, edge: Edge, phone: Phone) -> None:
        secret, codes = await turned_on(edge, phone)
        shown = [secret, *codes, *(code.replace("-", "") for code in codes)]
        for table in ("second_factors", "recovery_codes", "security_events"):
            for row in database(edge, f"SELECT t::text FROM auth.{table} t WHERE account_id = %s", phone):
                raw = [bytes.fromhex(one) for one in re.findall(r"\\x([0-9a-f]*)", row[0])]
                assert len(raw) == {"second_factors": 2, "recovery_codes": 1}.get(table, 0)
                stored = b"".join([row[0].encode(), *raw])
                assert not [one for one in shown if one.encode() in stored]

    async def test_nothing_of_it_stays_of_a_deleted_account(self, edge: Edge, phone: Phone) -> None:
        await turned_on(edge, phone)
        await phone.call("DELETE", "/v1/auth/me")
        for table in ("second_factors", "recovery_codes"):
            assert database(edge, f"SELECT 1 FROM auth.{table} WHERE account_id = %s", phone) == []

    async def test_it_is_sealed_by_the_vault_and_comes_under_its_newest_key(
        self, own_edge: Callable[..., Awaitable[Edge]]
    ) -> None:
        edge = await own_edge()
        keys, phone = edge.mesh.config.keys, await edge.phone()
        secret, _ = await turned_on(edge, phone)
        first, away = keys / "vault-0001.key", keys / "away"
        first.rename(away)
        add_vault_key(keys, 2)
        # As in a process that was not given the key: it says that it cannot, and when to come again.
        without = await sign_in(edge, phone, code=code_of(secret))
        assert (without.status_code, int(without.headers["retry-after"]) > 0) == (503, True)
        away.rename(first)
        assert await admin(edge, "rotate-vault") == (0, "1 rows came under key 0002, 0 could not be opened\n", "")
        first.unlink()
        assert (await sign_in(edge, phone, code=code_of(secret))).status_code == 200


class TestCodes:
    @pytest.mark.parametrize(
        ("seconds", "code"),
        [
            (59, "94287082"),
            (1111111109, "07081804"),
            (1111111111, "14050471"),
            (1234567890, "89005924"),
            (2000000000, "69279037"),
            (20000000000, "65353130"),
        ],
    )
    def test_the_codes_are_those_of_the_standard(self, seconds: int, code: str) -> None:
        """RFC 6238, appendix B; six digits are the last six of the eight."""
        assert step_of(RFC_SECRET, code[2:], datetime.fromtimestamp(seconds, UTC)) == seconds // 30

    def test_a_step_to_either_side_is_good_and_no_more(self) -> None:
        now = datetime.fromtimestamp(1_800_000_015, UTC)
        current = 1_800_000_015 // 30
        totp = pyotp.TOTP(RFC_SECRET)
        found = {around: step_of(RFC_SECRET, totp.generate_otp(current + around), now) for around in range(-3, 4)}
        assert found == {
            **dict.fromkeys((-3, -2, 2, 3)),
            **{around: current + around for around in (-1, 0, 1)},
        }

    def test_recovery_codes_are_read_as_they_are_shown(self) -> None:
        for code in new_recovery_codes():
            assert parse_code(code) == ("recovery", code.replace("-", ""))
