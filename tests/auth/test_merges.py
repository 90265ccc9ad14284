"""A guest whose things go to an account: all of them, once, whatever dies meanwhile, and then the guest is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import psycopg
import pytest

from runtime.call import Principal
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from runtime.keys import signing_keys
from services.auth.accounts import NO_SUBSCRIPTION, Account
from services.auth.accounts_domain import KnownAccounts
from services.auth.accounts_store import AccountStore
from services.auth.deletions_domain import Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.events_store import EventStore
from services.auth.merges_domain import Merges
from services.auth.merges_store import MergeStore
from services.auth.sign_ins_domain import Device, SignIns, Tokens
from services.auth.sign_ins_store import SignInStore
from services.auth.tokens import AccessTokens
from tests.auth.test_receipts import killed_and_back, let_claims_pass, mesh_with_processes, store_file, until_done
from tests.conftest import Edge
from tests.factories import Phone, change, device_session, exercise_session, puzzle_session
from tests.polling import until
from tests.streams import talking

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)


async def merge(phone: Phone, guest: Phone, *, by: str = "guest_refresh_token") -> httpx.Response:
    token = guest.refresh_token if by == "guest_refresh_token" else guest.access_token
    return await phone.call("POST", "/v1/auth/merge", json={by: token})


async def push(phone: Phone, *changes: dict[str, Any], key: str = "") -> list[dict[str, Any]]:
    headers = {"idempotency-key": key} if key else {}
    answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes}, headers=headers)
    assert answer.status_code == 200, answer.text
    receipts: list[dict[str, Any]] = answer.json()["receipts"]
    return receipts


async def feed(phone: Phone) -> dict[tuple[str, str], dict[str, Any]]:
    """All live records by their keys; each key once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    cursor: dict[str, str] = {}
    while True:
        page = (await phone.call("GET", "/api/v1/sync/pull", params={"limit": "1000", **cursor})).json()
        for one in page["changes"]:
            assert (one["domain"], one["id"]) not in found
            if not one["deleted"]:
                found[one["domain"], one["id"]] = one
        if not page["has_more"]:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def until_merged(phone: Phone, guest: Phone, *, seconds: float = 20) -> dict[str, Any]:
    async def merged() -> bool:
        answer = await merge(phone, guest)
        return answer.status_code == 200 and answer.json()["state"] == "done"

    await until(merged, seconds=seconds)
    body: dict[str, Any] = (await merge(phone, guest)).json()
    return body


class TestAll:
    """What moves."""

    async def test_every_kind_of_session_and_record_becomes_the_accounts(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        await push(guest, change(id="a"), change(id="b", domain="task", data={"title": "x", "status": "open"}))
        await push(guest, change(id="a", base_version=1, data={"text": "again"}))
        await push(guest, change(id="gone"))
        await push(guest, change(id="gone", base_version=1, operation="DELETE"))
        await guest.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
        exercise = (await guest.call("POST", "/sessions", json=exercise_session())).json()["id"]
        await guest.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
        await guest.call("PATCH", "/users/me/stats", json={"total_xp": 77})
        before = await feed(guest)
        assert len(before) == 6
        answer = await merge(phone, guest)
        assert answer.status_code == 200, answer.text
        assert answer.json()["guest_id"] == guest.user_id
        await until_merged(phone, guest)
        after = await feed(phone)
        assert {key: (one["version"], one["data"]) for key, one in after.items()} == {
            key: (one["version"], one["data"]) for key, one in before.items()
        }
        assert (await phone.call("GET", "/users/me/stats")).json()["total_xp"] == 77
        assert (await phone.call("GET", "/v1/sessions")).json()["total"] == 1
        assert (await phone.call("GET", f"/sessions/{exercise}")).status_code == 200
        assert [one["status"] for one in await push(phone, change(id="a", base_version=2))] == ["APPLIED"]

    async def test_what_both_have_is_a_conflict_that_the_policy_decides(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        for one, text in ((phone, "account"), (guest, "guest")):
            await push(
                one,
                change(id="client", data={"text": text}),
                change(id="server", domain="attendance", data={"text": text}),
                change(id="same", data={"text": "same"}),
                change(id="task", domain="task", data={"title": text, "status": "open"}),
            )
        await merge(phone, guest)
        await until_merged(phone, guest)
        after = await feed(phone)
        assert after["journal", "client"]["data"] == {"text": "guest"}
        assert after["journal", "client"]["version"] == 2
        assert after["attendance", "server"]["data"] == {"text": "account"}
        assert after["journal", "same"]["version"] == 1
        log = (await phone.call("GET", "/api/v1/sync/conflicts")).json()["conflicts"]
        assert {one["mobile_id"]: one["winning_version"] for one in log} == {
            "client": "client",
            "server": "server",
            "task": "server",
        }
        lost = {one["mobile_id"]: one["losing_data"] for one in log}
        assert lost["client"] == {"text": "account"}
        assert lost["server"] == {"text": "guest"}

    async def test_files_and_their_room_and_uploads_in_progress_become_the_accounts(
        self, edge: Edge, phone: Phone
    ) -> None:
        guest = await Phone.as_guest(edge.http)
        file_id = await store_file(guest, b"a file")
        begun = await store_file(guest, b"one in progress", finalize=False)
        await merge(phone, guest)
        await until_merged(phone, guest)
        (listed,) = await files(phone)
        assert listed["id"] == file_id
        assert ("file", file_id) in await feed(phone)
        path = httpx.URL(listed["file_url"]).path
        assert (await phone.call("GET", path)).content == b"a file"
        assert (await phone.call("PUT", f"/api/v1/uploads/{begun}/content", content=b"one in progress")).is_success
        assert (await phone.call("POST", f"/api/v1/uploads/{begun}/finalize")).status_code == 200

        async def told() -> bool:
            return ("file", begun) in await feed(phone)

        await until(told)
        with psycopg.connect(edge.mesh.config.database_url) as connection:
            owners = connection.execute(
                "SELECT DISTINCT user_id::text FROM uploads.uploads WHERE id = ANY(%s::uuid[])", [[file_id, begun]]
            ).fetchall()
        assert owners == [(phone.user_id,)]

    async def test_an_open_stream_of_the_account_is_told_at_once(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        await push(guest, change(id="new"))
        async with (
            grpc.aio.insecure_channel(edge.target) as channel,
            talking(channel, phone.metadata, device_id="phone-1") as talk,
        ):
            await merge(phone, guest)
            assert [one.id for one in await talk.changes()] == ["new"]

    async def test_a_call_that_the_guest_made_is_known_when_the_account_repeats_it(
        self, edge: Edge, phone: Phone
    ) -> None:
        guest, headers = await Phone.as_guest(edge.http), {"idempotency-key": "once"}
        first = await guest.call("POST", "/sessions", json=exercise_session(), headers=headers)
        await merge(phone, guest)
        await until_merged(phone, guest)
        again = await phone.call("POST", "/sessions", json=exercise_session(), headers=headers)
        assert again.json()["id"] == first.json()["id"]
        assert len((await phone.call("GET", "/sessions")).json()["sessions"]) == 1


async def files(phone: Phone) -> list[dict[str, Any]]:
    answer = await phone.call("GET", "/api/v1/files")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["files"]
    return found


class TestTheGuest:
    """What becomes of it."""

    async def test_it_is_signed_out_at_once_and_erased_with_a_receipt(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        await push(guest, change())
        receipt_id = (await merge(phone, guest)).json()["receipt_id"]
        refused = await edge.http.post("/v1/auth/refresh", json={"refresh_token": guest.refresh_token})
        assert refused.status_code == 401

        async def signed_out() -> bool:
            paths = ("/v1/auth/me", "/sessions", "/api/v1/uploads/limits")
            return all([(await guest.call("GET", path)).status_code == 401 for path in paths])

        assert await until(signed_out, seconds=5) < 2
        told = await until_done(edge.http, receipt_id)
        assert told["merged"] is True
        assert told["removed"]["records"] == {}
        assert told["removed"]["account"]["sign_ins"] == 1
        assert len(await feed(phone)) == 1

    async def test_merging_twice_tells_how_far_it_is_and_moves_nothing_twice(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        await push(guest, *(change() for _ in range(250)))
        answers = await asyncio.gather(
            *(merge(phone, guest, by=by) for by in ("guest_refresh_token", "guest_access_token") * 2)
        )
        assert [answer.status_code for answer in answers] == [200] * 4
        assert len({answer.json()["receipt_id"] for answer in answers}) == 1
        await until_merged(phone, guest)
        assert len(await feed(phone)) == 250
        assert (await merge(phone, guest)).json()["state"] == "done"

    async def test_a_phone_that_still_believes_to_be_the_guest_stores_nothing_more(
        self, edge: Edge, phone: Phone
    ) -> None:
        guest = await Phone.as_guest(edge.http)
        await push(guest, change(id="before"))
        merging = asyncio.create_task(merge(phone, guest))
        acknowledged = ["before"]
        for number in range(200):
            answer = await guest.call("POST", "/api/v1/sync/push", json={"changes": [change(id=f"r{number}")]})
            if answer.status_code != 200:
                assert answer.status_code == 401
                break
            acknowledged.append(f"r{number}")
        await merging
        await until_merged(phone, guest)
        assert {id for _, id in await feed(phone)} == set(acknowledged)


class TestRefusals:
    """Who cannot be merged."""

    async def refusal(self, answer: httpx.Response) -> tuple[int, str, list[dict[str, str]]]:
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["details"]

    async def test_an_account_is_no_guest(self, edge: Edge, phone: Phone) -> None:
        other = await edge.phone()
        assert (await self.refusal(await merge(phone, other)))[:2] == (409, "CONFLICT")
        assert (await other.call("GET", "/v1/auth/me")).status_code == 200

    async def test_a_guest_that_has_signed_up_is_none_though_its_token_says_so(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        request = {"email": f"{uuid4().hex}@example.com", "password": "securepassword123"}
        assert (await guest.call("POST", "/v1/auth/signup", json=request)).status_code == 201
        for by in ("guest_access_token", "guest_refresh_token"):
            assert (await self.refusal(await merge(phone, guest, by=by)))[:2] == (409, "CONFLICT")

    @pytest.mark.parametrize("by", ["guest_refresh_token", "guest_access_token"])
    async def test_nobody_is_merged_with_oneself(self, phone: Phone, by: str) -> None:
        refused = await self.refusal(await merge(phone, phone, by=by))
        assert refused == (400, "INVALID_REQUEST", [{"field": by, "reason": "CONFLICT"}])

    async def test_a_guest_takes_nobody_in(self, edge: Edge) -> None:
        guests = [await Phone.as_guest(edge.http) for _ in range(2)]
        assert (await self.refusal(await merge(*guests)))[:2] == (403, "FORBIDDEN")

    async def test_a_guest_of_another_tenant_stays_there(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http, tenant_id=7)
        assert (await self.refusal(await merge(phone, guest)))[:2] == (403, "FORBIDDEN")
        assert (await guest.call("GET", "/v1/auth/me")).status_code == 200

    async def test_a_guest_goes_to_one_account_only(self, edge: Edge, phone: Phone) -> None:
        guest, other = await Phone.as_guest(edge.http), await edge.phone()
        answers = await asyncio.gather(merge(phone, guest), merge(other, guest))
        assert sorted(answer.status_code for answer in answers) == [200, 409]

    async def test_a_token_that_is_not_good_is_named(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        other = await Phone.as_guest(edge.http)
        assert (await other.call("POST", "/v1/auth/signout", json={})).status_code == 200
        cases = (
            ({}, "guest_refresh_token", "REQUIRED"),
            ({"guest_refresh_token": "rt_x"}, "guest_refresh_token", "INVALID_TOKEN"),
            ({"guest_refresh_token": guest.refresh_token[:-2] + "AA"}, "guest_refresh_token", "INVALID_TOKEN"),
            ({"guest_access_token": "x.y.z"}, "guest_access_token", "INVALID_TOKEN"),
            ({"guest_access_token": guest.access_token[:-4] + "AAAA"}, "guest_access_token", "INVALID_TOKEN"),
            ({"guest_refresh_token": other.refresh_token}, "guest_refresh_token", "TOKEN_REVOKED"),
            ({"guest_access_token": other.access_token}, "guest_access_token", "TOKEN_REVOKED"),
        )
        for request, field, reason in cases:
            answer = await phone.call("POST", "/v1/auth/merge", json=request)
            assert await self.refusal(answer) == (400, "INVALID_REQUEST", [{"field": field, "reason": reason}])
        assert (await guest.call("GET", "/v1/auth/me")).status_code == 200

    async def test_an_expired_token_is_named(self, edge: Edge, phone: Phone) -> None:
        guest = await Phone.as_guest(edge.http)
        long_ago = AccessTokens(signing_keys(edge.mesh.config.keys), clock=lambda: 1_700_000_000)
        principal = Principal(
            user_id=UUID(guest.user_id), sign_in_id=uuid4(), tenant_id=1, role="user", tier="free", guest=True
        )
        answer = await phone.call("POST", "/v1/auth/merge", json={"guest_access_token": long_ago.mint(principal)})
        details = [{"field": "guest_access_token", "reason": "TOKEN_EXPIRED"}]
        assert await self.refusal(answer) == (400, "INVALID_REQUEST", details)


@pytest.mark.parametrize("victim", ["auth", "sessions", "uploads"])
async def test_nothing_is_lost_or_doubled_though_a_service_is_killed_in_the_middle(
    database_url: str, tmp_path: Path, victim: str
) -> None:
    async with AsyncExitStack() as stack:
        edge, (service,) = await mesh_with_processes(stack, database_url, tmp_path, victim)
        phone, guest = await edge.phone(), await Phone.as_guest(edge.http)
        both = [change(id=f"both{number}", data={"text": "guest"}) for number in range(50)]
        for _ in range(3):
            await push(guest, *(change() for _ in range(1000)))
        await push(guest, *both)
        await push(phone, *({**one, "data": {"text": "account"}} for one in both))
        stored = [await store_file(guest, f"file {number}".encode()) for number in range(5)]

        async def in_the_feed() -> bool:
            page = (await guest.call("GET", "/api/v1/sync/pull", params={"domains": "file"})).json()
            return len(page["changes"]) == 5

        await until(in_the_feed)
        before = await feed(guest)
        assert (await merge(phone, guest)).status_code == 200

        async def begun() -> bool:
            with psycopg.connect(database_url) as connection:
                return bool(
                    connection.execute(
                        "SELECT 1 FROM sessions.records WHERE user_id = %s AND domain = 'journal' OFFSET 50 LIMIT 1",
                        [phone.user_id],
                    ).fetchone()
                )

        await until(begun)
        await killed_and_back(service)
        if victim == "auth":
            let_claims_pass(database_url)
        done = await until_merged(phone, guest, seconds=200)
        after = await feed(phone)
        assert {key: one["data"] for key, one in after.items()} == {key: one["data"] for key, one in before.items()}
        assert {one["id"] for one in await files(phone)} == set(stored)
        log = (await phone.call("GET", "/api/v1/sync/conflicts")).json()
        assert (log["total"], {one["winning_version"] for one in log["conflicts"]}) == (50, {"client"})
        told = await until_done(edge.http, done["receipt_id"], seconds=90)
        assert told["removed"]["records"] == {}
        assert told["removed"]["files"] == 0


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with database(database_url, connections=6, name="test") as opened:
        yield opened


class Services:
    """What is elsewhere: it notes in which order it is called, and can be away."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.away = ""

    def step(self, name: str) -> Callable[[UUID, UUID, int], Awaitable[None]]:
        async def adopt(guest_id: UUID, user_id: UUID, tenant_id: int) -> None:
            await asyncio.sleep(0)
            if self.away == name:
                raise ConnectionError("away")
            self.calls.append(name)

        return adopt


class World:
    """Merges on a database of their own, with a clock that stands."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.db = db
        self.time = NOW
        self.services = Services()
        self.access_tokens = AccessTokens(signing_keys(directory))
        self.sign_ins = SignIns(
            SignInStore(db),
            EventStore(db),
            self.access_tokens,
            None,  # type: ignore[arg-type]  # nobody has a second factor here
            account=self._account,
            role_of=lambda account: account.role,
            now=lambda: self.time,
        )

    async def _account(self, id: UUID) -> Account:
        return (await AccountStore(self.db).accounts([id]))[id]

    def merges(self) -> Merges:
        return Merges(
            MergeStore(self.db),
            KnownAccounts(AccountStore(self.db), now=lambda: self.time),
            self.access_tokens,
            Receipts(b"secret"),
            [self.services.step("files"), self.services.step("records")],
            deleted=lambda: None,
            now=lambda: self.time,
        )

    async def signed_in(self, *, is_guest: bool) -> tuple[Principal, Tokens]:
        one = Account(
            id=uuid4(),
            email="" if is_guest else f"{uuid4().hex}@example.com",
            tenant_id=1,
            role="user",
            create_time=NOW,
            subscription=NO_SUBSCRIPTION,
            is_guest=is_guest,
        )
        sign_in, tokens = self.sign_ins.prepare(one, Device(name="", ip="", user_agent=""), "test")
        await AccountStore(self.db).create(one, "", sign_in, SecurityEvent(kind=Kind.SIGNED_UP, account_id=one.id))
        caller = Principal(user_id=one.id, sign_in_id=sign_in.id, tenant_id=1, role="user", tier="free")
        return caller, tokens

    async def erasures(self) -> list[UUID]:
        async with self.db.statements() as statements:
            cursor = await statements.connection.execute("SELECT account_id FROM auth.erasures")
            return [row["account_id"] for row in await cursor.fetchall()]


@pytest.fixture
def world(db: Database, tmp_path: Path) -> World:
    return World(db, tmp_path / "keys")


async def test_the_guest_is_erased_strictly_after_every_service_is_done(world: World) -> None:
    account, _ = await world.signed_in(is_guest=False)
    guest, tokens = await world.signed_in(is_guest=True)
    merges = world.merges()
    await merges.begin(account, tokens.refresh, "")
    for away in ("files", "records"):
        world.services.away = away
        await merges.carry_out()
        assert await world.erasures() == []
        world.time += timedelta(seconds=10)
    world.services.away = ""
    await merges.carry_out()
    assert world.services.calls == ["files", "files", "records"]
    assert await world.erasures() == [guest.user_id]
    assert (await merges.begin(account, tokens.refresh, "")).done
    world.time += timedelta(days=1)
    await merges.carry_out()
    assert len(world.services.calls) == 3


async def test_a_merge_that_a_replica_took_down_with_it_is_taken_up_by_another(world: World) -> None:
    account, _ = await world.signed_in(is_guest=False)
    guest, tokens = await world.signed_in(is_guest=True)
    await world.merges().begin(account, tokens.refresh, "")
    assert await MergeStore(world.db).take(world.time, timedelta(seconds=60))
    await world.merges().carry_out()
    assert world.services.calls == []
    world.time += timedelta(seconds=60)
    await world.merges().carry_out()
    assert await world.erasures() == [guest.user_id]


async def test_two_replicas_carry_each_merge_out_once(world: World) -> None:
    account, _ = await world.signed_in(is_guest=False)
    guests = [await world.signed_in(is_guest=True) for _ in range(10)]
    await asyncio.gather(*(world.merges().begin(account, tokens.refresh, "") for _, tokens in guests))
    await asyncio.gather(*(world.merges().carry_out() for _ in range(2)))
    assert sorted(world.services.calls) == ["files"] * 10 + ["records"] * 10
    assert sorted(await world.erasures()) == sorted(guest.user_id for guest, _ in guests)


async def test_what_was_to_be_a_deleted_accounts_goes_with_the_guest(world: World) -> None:
    account, _ = await world.signed_in(is_guest=False)
    guest, tokens = await world.signed_in(is_guest=True)
    await world.merges().begin(account, tokens.refresh, "")
    event = SecurityEvent(kind=Kind.ACCOUNT_DELETED, account_id=account.user_id)
    await AccountStore(world.db).delete(account.user_id, NOW, b"digest", event)
    await world.merges().carry_out()
    assert world.services.calls == []
    assert set(await world.erasures()) == {account.user_id, guest.user_id}


async def test_a_guest_who_signs_up_while_it_is_merged_does_one_of_both(world: World) -> None:
    account, _ = await world.signed_in(is_guest=False)
    for _ in range(20):
        guest, tokens = await world.signed_in(is_guest=True)
        event = SecurityEvent(kind=Kind.GUEST_SIGNED_UP, account_id=guest.user_id)
        upgraded, merged = await asyncio.gather(
            AccountStore(world.db).upgrade(guest.user_id, f"{uuid4().hex}@example.com", "hash", NOW, event),
            world.merges().begin(account, tokens.refresh, ""),
            return_exceptions=True,
        )
        outcomes = [getattr(one, "reason", None) for one in (upgraded, merged)]
        assert outcomes in ([None, Reason.NOT_A_GUEST], [Reason.INVALID_TOKEN, None])
        assert isinstance(upgraded, Failure) is not isinstance(merged, Failure)
