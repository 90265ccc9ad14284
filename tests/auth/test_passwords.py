"""A password that was forgotten or is to be another one: codes by mail, tried five times, and what they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import psycopg
import pytest
from satchel.auth.v1 import passwords_pb2, passwords_pb2_grpc

from runtime.keys import mesh_secret
from runtime.server import serving
from services.auth.app import service as auth
from services.auth.codes_domain import MAX_CODES, MAX_TRIES, CodeBook, Purpose, parse_code
from tests.auth.test_second_factors import turned_on
from tests.conftest import Edge, config_for, edge_of
from tests.factories import PASSWORD, Phone
from tests.mailbox import MailServer, mail_server
from tests.polling import until

NEW = "another password 77"
REQUEST = "/auth/password/request-reset"
RESET = "/auth/password/reset"


@dataclass(frozen=True)
class Post:
    """A mesh whose mail goes to a mailbox."""

    edge: Edge
    mail: MailServer

    async def phone(self, **account: Any) -> Phone:
        return await self.edge.phone(**account)

    async def request(self, email: str, path: str = REQUEST) -> httpx.Response:
        return await self.edge.http.post(path, json={"email": email})

    async def requested(self, email: str, number: int = 1) -> str:
        """A code for a new password, from the mail; `number` counts the letters with one."""
        assert (await self.request(email)).status_code == 200
        return await self.mail.code(email, number)

    async def reset(self, email: str, code: str, password: str = NEW, path: str = RESET) -> httpx.Response:
        return await self.edge.http.post(path, json={"email": email, "code": code, "new_password": password})

    async def sign_in(self, email: str, password: str) -> httpx.Response:
        return await self.edge.http.post("/v1/auth/signin", json={"email": email, "password": password})

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.edge.mesh.config.database_url) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def change(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.edge.mesh.config.database_url) as connection:
            connection.execute(statement.encode(), values)

    def events(self, phone: Phone) -> list[str]:
        found = self.rows("SELECT kind FROM auth.security_events WHERE account_id = %s ORDER BY id", phone.user_id)
        return [kind for (kind,) in found]

    async def sent_all(self) -> None:
        """Returns when nothing waits in the outbox."""

        async def sent() -> bool:
            return not self.rows("SELECT 1 FROM auth.mails")

        await until(sent)


@pytest.fixture(scope="module")
async def post(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Post]:
    directory = tmp_path_factory.mktemp("post")
    async with mail_server() as mail:
        config = config_for(
            directory / "home",
            database_url=new_database(),
            redis_url=redis_url,
            smtp_url=mail.url,
            mail_from="Satchel <no-reply@satchel.test>",
        )
        async with edge_of(config, directory) as edge:
            yield Post(edge, mail)


def wrong(code: str) -> str:
    """A code with the same number that is another one."""
    return code[:-1] + ("0" if code[-1] != "0" else "1")


def refused(answer: httpx.Response) -> dict[str, Any]:
    """What is said of every code that is not good, whatever is the matter with it."""
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert (error["code"], error["details"]) == ("INVALID_CODE", [])
    return {key: value for key, value in error.items() if key not in ("requestId", "timestamp")}


class TestReset:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    async def test_a_code_by_mail_sets_a_password_and_ends_every_sign_in(self, post: Post, prefix: str) -> None:
        phone = await post.phone()
        second = (await post.sign_in(phone.email, PASSWORD)).json()
        asked = await post.request(phone.email, prefix + REQUEST)
        assert (asked.status_code, asked.json().keys()) == (200, {"message"})
        code = await post.mail.code(phone.email)
        answer = await post.reset(phone.email, code, path=prefix + RESET)
        assert (answer.status_code, answer.json()["signed_out"]) == (200, 2), answer.text
        assert post.events(phone)[-1] == "password_changed"
        assert (await post.sign_in(phone.email, PASSWORD)).status_code == 401
        assert (await post.sign_in(phone.email, NEW)).status_code == 200
        for token in (phone.refresh_token, second["refresh_token"]):
            assert (await post.edge.http.post("/v1/auth/refresh", json={"refresh_token": token})).status_code == 401

        async def told() -> bool:
            return len(post.mail.to(phone.email, "Your password was changed")) == 1

        await until(told)

    async def test_it_ends_what_somebody_else_may_have_left_and_not_the_second_factor(self, post: Post) -> None:
        phone = await post.phone()
        made = await phone.call("POST", "/tokens/", json={"name": "mine", "scopes": ["read"]})
        program = replace(phone, access_token=made.json()["token"])
        assert (await program.call("GET", "/sessions")).status_code == 200
        linked = "INSERT INTO auth.identities VALUES ('google', %s, %s, '', false, '', now())"
        post.change(linked, phone.user_id, phone.user_id)
        await turned_on(post.edge, phone)
        assert (await post.reset(phone.email, await post.requested(phone.email))).status_code == 200

        async def out() -> bool:
            return (await program.call("GET", "/sessions")).status_code == 401

        await until(out, seconds=5)
        # Nobody had proved before whose the address is; now somebody has.
        assert post.rows("SELECT 1 FROM auth.identities WHERE account_id = %s", phone.user_id) == []
        refused = (await post.sign_in(phone.email, NEW)).json()["error"]["details"]
        assert refused == [{"field": "code", "reason": "SECOND_FACTOR_REQUIRED"}]
        post.change(linked, phone.user_id, phone.user_id)
        assert (await post.reset(phone.email, await post.requested(phone.email, 2))).status_code == 200
        assert post.rows("SELECT 1 FROM auth.identities WHERE account_id = %s", phone.user_id) != []

    async def test_a_code_is_good_once(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        answers = await asyncio.gather(*(post.reset(phone.email, code, f"{NEW} {number}") for number in range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 400, 400]
        refused(await post.reset(phone.email, code))

    async def test_case_hyphens_and_letters_that_look_like_digits_do_not_matter(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        typed = f" {code.replace('-', ' ').lower().replace('0', 'o').replace('1', 'l')} "
        assert (await post.reset(f" {phone.email.upper()} ", typed)).status_code == 200

    async def test_wrong_used_expired_and_nobodys_are_one_and_the_same(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        answers = [await post.reset(phone.email, wrong(code))]
        answers.append(await post.reset(phone.email, "not a code at all"))
        answers.append(await post.reset(f"{uuid4().hex}@example.com", code))
        answers.append(await post.reset((await post.phone()).email, code))
        past = datetime.now(UTC) - timedelta(seconds=1)
        post.change("UPDATE auth.codes SET expire_time = %s WHERE account_id = %s", past, phone.user_id)
        answers.append(await post.reset(phone.email, code))
        assert len({str(refused(answer)) for answer in answers}) == 1
        assert (await post.sign_in(phone.email, PASSWORD)).status_code == 200
        refusals = "SELECT sum(count) FROM auth.security_events WHERE account_id = %s AND kind = 'proof_refused'"
        assert post.rows(refusals, phone.user_id) == [(3,)]

    async def test_the_answer_is_the_same_for_an_address_that_nobody_has_and_no_mail_goes_there(
        self, post: Post
    ) -> None:
        phone, nobody = await post.phone(), f"{uuid4().hex}@example.com"
        known, unknown = await post.request(phone.email), await post.request(nobody)
        assert known.json() == unknown.json()
        assert known.headers.keys() == unknown.headers.keys()
        await post.mail.code(phone.email)
        await post.sent_all()
        assert not post.mail.to(nobody)

    async def test_a_request_does_the_same_work_whoever_has_the_address(self, post: Post) -> None:
        """All that a request does is to add one row; who has the address is asked when nobody waits."""
        phone = await post.phone()
        await post.sent_all()
        with psycopg.connect(post.edge.mesh.config.database_url) as connection:
            # While the accounts are held nothing that looks into them can go on; the answers come all the same.
            connection.execute("LOCK TABLE auth.accounts IN ACCESS EXCLUSIVE MODE")
            for email in (phone.email, f"{uuid4().hex}@example.com"):
                assert (await post.request(email)).status_code == 200
        await post.mail.code(phone.email)

    async def test_five_tries_and_never_a_sixth(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        for _ in range(MAX_TRIES):
            refused(await post.reset(phone.email, wrong(code)))
        refused(await post.reset(phone.email, code))
        # A new one brings new tries.
        assert (await post.reset(phone.email, await post.requested(phone.email, 2))).status_code == 200

    async def test_the_fifth_try_may_be_the_right_one(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        for _ in range(MAX_TRIES - 1):
            refused(await post.reset(phone.email, wrong(code)))
        assert (await post.reset(phone.email, code)).status_code == 200

    async def test_a_stranger_who_asks_again_and_again_takes_no_code_from_the_owner(self, post: Post) -> None:
        phone = await post.phone()
        first = await post.requested(phone.email)
        for _ in range(MAX_CODES + 3):
            assert (await post.request(phone.email)).status_code == 200
        await post.sent_all()
        assert len(post.mail.codes(phone.email)) == MAX_CODES, "nor is the mailbox filled"
        assert (await post.reset(phone.email, first)).status_code == 200
        refused(await post.reset(phone.email, post.mail.codes(phone.email)[-1]))

    async def test_a_stranger_who_guesses_uses_up_no_try_of_the_owners_code(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        book = CodeBook(mesh_secret(post.edge.mesh.config.keys))
        number = parse_code(code)[:3]
        guesses = (book.code(uuid4(), Purpose.RESET) for _ in range(100))
        for guess in [one for one in guesses if one[:3] != number][:20]:
            refused(await post.reset(phone.email, guess))
        # The stranger's address has no more tries; the owner's has all of them.
        refused(await post.reset(phone.email, code))
        post.change("DELETE FROM auth.code_tries WHERE holder_id = %s", phone.user_id)
        assert (await post.reset(phone.email, code)).status_code == 200

    async def test_a_sign_in_with_the_old_password_that_was_under_way_comes_to_nothing(self, post: Post) -> None:
        phone = await post.phone()
        with psycopg.connect(post.edge.mesh.config.database_url) as connection:
            connection.execute("UPDATE auth.accounts SET password_hash = 'another' WHERE id = %s", [phone.user_id])
            signing_in = asyncio.create_task(post.sign_in(phone.email, PASSWORD))

            async def held_up() -> bool:
                found = connection.execute("SELECT pid FROM pg_locks WHERE NOT granted").fetchone()
                return found is not None

            await until(held_up)  # the old password was found good
        assert (await signing_in).status_code == 401

    @pytest.mark.parametrize("password", ["short", "password1", "email", "local part"])
    async def test_a_bad_password_costs_no_try_and_changes_nothing(self, post: Post, password: str) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        bad = {"email": phone.email.upper(), "local part": phone.email.partition("@")[0]}.get(password, password)
        for _ in range(MAX_TRIES + 1):
            answer = await post.reset(phone.email, code, bad)
            assert answer.status_code == 400
            assert answer.json()["error"]["details"][0]["field"] == "new_password"
        assert (await post.sign_in(phone.email, PASSWORD)).status_code == 200
        assert (await post.reset(phone.email, code)).status_code == 200

    async def test_neither_the_database_nor_the_log_of_events_holds_a_code(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        whole = parse_code(code)
        tables = post.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'auth'")
        for (table,) in tables:
            for secret in (code, whole, whole[3:]):
                assert not post.rows(f"SELECT 1 FROM auth.{table} AS one WHERE one::text ILIKE %s", f"%{secret}%")

    async def test_a_deleted_account_leaves_no_code_and_no_mail(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        assert (await phone.call("DELETE", "/v1/auth/me")).status_code == 200
        for table in ("codes", "mails"):
            assert not post.rows(f"SELECT 1 FROM auth.{table} AS one WHERE email = %s", phone.email)
        refused(await post.reset(phone.email, code))
        anew = await post.phone(email=phone.email)
        refused(await post.reset(anew.email, code))


async def test_parallel_tries_over_two_replicas_are_never_more_than_five(post: Post) -> None:
    phone = await post.phone()
    code = await post.requested(phone.email)
    config = post.edge.mesh.config
    other = config_for(config.home, database_url=config.database_url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(other, {"auth": auth}))
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(one.auth_address)) for one in (config, other)
        ]
        stubs = [passwords_pb2_grpc.PasswordServiceStub(channel) for channel in channels]

        async def attempt(number: int) -> bool:
            # Each from an address of its own, so that only what is counted for the code can hold them.
            request = passwords_pb2.ResetPasswordRequest(email=phone.email, code=wrong(code), new_password=NEW)
            metadata = (("x-envoy-external-address", f"192.0.2.{number}"),)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stubs[number % 2].ResetPassword(request, metadata=metadata)
            return raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT

        assert all(await asyncio.gather(*(attempt(number) for number in range(40))))
    ((tries,),) = post.rows("SELECT tries FROM auth.codes WHERE account_id = %s", phone.user_id)
    assert tries == MAX_TRIES
    refused(await post.reset(phone.email, code))


class TestChange:
    async def change(self, phone: Phone, **body: str) -> httpx.Response:
        return await phone.call("POST", "/v1/auth/password", json=body)

    async def test_the_present_password_sets_another_and_ends_the_other_sign_ins(self, post: Post) -> None:
        phone = await post.phone()
        other = (await post.sign_in(phone.email, PASSWORD)).json()
        answer = await self.change(phone, current_password=PASSWORD, new_password=NEW)
        assert (answer.status_code, answer.json()["signed_out"]) == (200, 1), answer.text
        assert (await phone.call("GET", "/v1/auth/me")).status_code == 200
        for token, status in ((other["refresh_token"], 401), (phone.refresh_token, 200)):
            answer = await post.edge.http.post("/v1/auth/refresh", json={"refresh_token": token})
            assert answer.status_code == status
        assert (await post.sign_in(phone.email, NEW)).status_code == 200
        assert post.events(phone)[-2:] == ["password_changed", "signed_in"]

    async def test_application_tokens_outlive_a_change_by_their_owner(self, post: Post) -> None:
        phone = await post.phone()
        await phone.call("POST", "/tokens/", json={"name": "mine", "scopes": ["read"]})
        given = {"current_password": PASSWORD, "new_password": NEW}
        assert (await phone.call("POST", "/v1/auth/password", json=given)).status_code == 200
        assert len((await phone.call("GET", f"/tokens/{phone.user_id}")).json()["tokens"]) == 1

    async def test_a_wrong_one_is_refused_and_noted(self, post: Post) -> None:
        phone = await post.phone()
        answer = await self.change(phone, current_password="wrong", new_password=NEW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "INVALID_CREDENTIALS")
        assert (await post.sign_in(phone.email, PASSWORD)).status_code == 200
        assert "proof_refused" in post.events(phone)

    async def test_codes_of_before_are_good_no_more(self, post: Post) -> None:
        phone = await post.phone()
        code = await post.requested(phone.email)
        assert (await self.change(phone, current_password=PASSWORD, new_password=NEW)).status_code == 200
        refused(await post.reset(phone.email, code, "yet another 88"))

    async def test_an_account_without_a_password_sets_one_for_a_code_only(self, post: Post) -> None:
        phone = await post.phone()
        post.change("UPDATE auth.accounts SET password_hash = '' WHERE id = %s", phone.user_id)
        for guess in (PASSWORD, "nobody's password"):
            answer = await self.change(phone, current_password=guess, new_password=NEW)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "INVALID_CREDENTIALS")
            assert (await post.sign_in(phone.email, guess)).status_code == 401
        answer = await self.change(phone, new_password=NEW)
        assert answer.json()["error"]["details"] == [{"field": "current_password", "reason": "REQUIRED"}]
        code = await post.requested(phone.email)
        assert (await self.change(phone, code=wrong(code), new_password=NEW)).json()["error"]["code"] == "INVALID_CODE"
        assert (await self.change(phone, code=code, new_password=NEW)).status_code == 200
        assert (await phone.call("GET", "/v1/auth/me")).json()["email_verified"] is True
        assert (await post.sign_in(phone.email, NEW)).status_code == 200

    async def test_of_changes_at_the_same_time_one_wins(self, post: Post) -> None:
        phone = await post.phone()
        changes = (self.change(phone, current_password=PASSWORD, new_password=f"{NEW} {n}") for n in range(4))
        answers = await asyncio.gather(*changes)
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]

    async def test_five_a_minute(self, post: Post, own_edge: Any) -> None:
        edge = await own_edge(rate_limits="on")
        phone = await edge.phone()
        for _ in range(5):
            assert (await self.change(phone, current_password="wrong", new_password=NEW)).status_code == 401
        assert (await self.change(phone, current_password=PASSWORD, new_password=NEW)).status_code == 429
        for path, body in ((REQUEST, {}), (RESET, {"code": "0000-0000", "new_password": NEW})):
            email = {"email": f"{uuid4().hex}@example.com"}
            answers = [await edge.http.post(path, json={**email, **body}) for _ in range(6)]
            assert [answer.status_code == 429 for answer in answers] == [False] * 5 + [True]


class TestEmail:
    async def verify(self, phone: Phone, code: str) -> httpx.Response:
        return await phone.call("POST", "/v1/auth/email/verify", json={"code": code})

    async def ask(self, phone: Phone) -> httpx.Response:
        return await phone.call("POST", "/v1/auth/email/request-verification", json={})

    async def change(self, phone: Phone, new_email: str, password: str = PASSWORD) -> httpx.Response:
        body = {"new_email": new_email, "password": password}
        return await phone.call("POST", "/v1/auth/email/change", json=body)

    async def test_an_address_is_verified_by_the_code_that_was_sent_there(self, post: Post) -> None:
        phone = await post.phone()
        assert (await phone.call("GET", "/v1/auth/me")).json()["email_verified"] is False
        assert (await self.ask(phone)).json()["email_verified"] is False
        code = await post.mail.code(phone.email)
        assert (await self.verify(phone, wrong(code))).json()["error"]["code"] == "INVALID_CODE"
        stranger = await post.phone()
        assert (await self.verify(stranger, code)).status_code == 400
        refused(await post.reset(phone.email, code))  # good for nothing else
        answer = await self.verify(phone, code)
        assert (answer.status_code, answer.json()) == (200, {"email": phone.email, "email_verified": True})
        assert (await phone.call("GET", "/v1/auth/me")).json()["email_verified"] is True
        assert (await self.ask(phone)).json()["email_verified"] is True
        await post.sent_all()
        assert len(post.mail.codes(phone.email)) == 1
        assert post.events(phone)[-1] == "email_verified"

    async def test_another_address_is_the_accounts_once_its_code_has_come_back(self, post: Post) -> None:
        phone, new = await post.phone(), f"{uuid4().hex}@example.com"
        reset = await post.requested(phone.email)
        assert (await self.change(phone, f" {new.upper()} ")).status_code == 200
        code = await post.mail.code(new)
        assert (await phone.call("GET", "/v1/auth/me")).json()["email"] == phone.email
        answer = await self.verify(phone, code)
        assert (answer.status_code, answer.json()) == (200, {"email": new, "email_verified": True})
        assert (await post.sign_in(new, PASSWORD)).status_code == 200
        assert (await post.sign_in(phone.email, PASSWORD)).status_code == 401

        async def told() -> bool:
            return len(post.mail.to(phone.email, "Your address was changed")) == 1

        await until(told)
        for email in (phone.email, new):
            refused(await post.reset(email, reset))  # what went to the old address opens nothing
        assert "email_changed" in post.events(phone)

    async def test_a_change_wants_the_password_and_another_address(self, post: Post) -> None:
        phone = await post.phone()
        answer = await self.change(phone, f"{uuid4().hex}@example.com", "wrong")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "INVALID_CREDENTIALS")
        answer = await self.change(phone, phone.email)
        assert answer.json()["error"]["details"] == [{"field": "new_email", "reason": "UNCHANGED"}]

    async def test_a_taken_address_is_answered_like_a_free_one_and_its_owner_is_told(self, post: Post) -> None:
        phone, owner = await post.phone(), await post.phone()
        free = await self.change(phone, f"{uuid4().hex}@example.com")
        taken = await self.change(phone, owner.email)
        assert (taken.status_code, taken.json()) == (free.status_code, free.json())

        async def told() -> bool:
            return len(post.mail.to(owner.email, "You have an account")) == 1

        await until(told)
        assert not post.mail.codes(owner.email)

    async def test_who_signs_up_with_it_first_has_it(self, post: Post) -> None:
        phone, new = await post.phone(), f"{uuid4().hex}@example.com"
        await self.change(phone, new)
        code = await post.mail.code(new)
        await post.phone(email=new)
        answer = await self.verify(phone, code)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")
        assert (await phone.call("GET", "/v1/auth/me")).json()["email"] == phone.email

    async def test_of_two_accounts_that_verify_one_address_at_once_one_gets_it(self, post: Post) -> None:
        phones, new = [await post.phone(), await post.phone()], f"{uuid4().hex}@example.com"
        codes = []
        for number, phone in enumerate(phones, 1):
            await self.change(phone, new)
            codes.append(await post.mail.code(new, number))
        answers = await asyncio.gather(*(self.verify(*pair) for pair in zip(phones, codes, strict=True)))
        assert sorted(answer.status_code for answer in answers) == [200, 409]

    async def test_a_reset_ends_a_change_that_somebody_else_began(self, post: Post) -> None:
        thief, new = await post.phone(), f"{uuid4().hex}@example.com"
        await self.change(thief, new)
        code = await post.mail.code(new)
        assert (await post.reset(thief.email, await post.requested(thief.email))).status_code == 200
        body = (await post.sign_in(thief.email, NEW)).json()
        owner = Phone(post.edge.http, thief.user_id, thief.email, body["access_token"], body["refresh_token"])
        assert (await self.verify(owner, code)).json()["error"]["code"] == "INVALID_CODE"

    async def test_an_account_without_an_address_is_told_so(self, post: Post) -> None:
        phone = await post.phone()
        post.change("UPDATE auth.accounts SET email = NULL WHERE id = %s", phone.user_id)
        answer = await self.ask(phone)
        assert answer.json()["error"]["details"] == [{"field": "email", "reason": "REQUIRED"}]


class TestCodes:
    def test_a_code_is_eight_characters_that_cannot_be_confused(self) -> None:
        book = CodeBook(b"secret")
        codes = {book.code(uuid4(), Purpose.RESET) for _ in range(1000)}
        assert len(codes) == 1000
        assert all(len(code) == 8 and not set(code) & set("ILOU") for code in codes)

    def test_the_same_id_is_another_code_for_another_purpose_and_under_another_key(self) -> None:
        id = UUID(int=7)
        made = {CodeBook(key).code(id, purpose) for key in (b"a", b"b") for purpose in Purpose}
        assert len(made) == 2 * len(Purpose)
