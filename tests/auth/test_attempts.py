"""Wrong passwords: who guesses waits, longer each time, and whose account it is signs in meanwhile."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from argon2 import PasswordHasher, extract_parameters
from satchel.auth.v1 import auth_pb2

from runtime.addresses import network_of
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from runtime.limits import in_words
from services.auth.attempts_domain import OF_A_PLACE, OF_STRANGERS, Attempts
from services.auth.attempts_store import AttemptStore
from services.auth.events_store import EventStore
from services.auth.sign_ins_domain import Device
from tests.auth.replicas import Guest, Refusal, replica, replicas
from tests.conftest import config_for

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def at(ip: str, key: str = "") -> Device:
    return Device(name="", ip=ip, user_agent="", key=key)


def guarded(db: Database, clock: Clock) -> Attempts:
    return Attempts(AttemptStore(db), EventStore(db), now=clock)


async def waits(guard: Attempts, device: Device, name: str = "a@example.com") -> float:
    """Seconds that an attempt has to wait; 0: it was counted."""
    try:
        await guard.begin("password", name, None, device)
    except Failure as failure:
        assert failure.reason is Reason.RATE_LIMITED
        assert failure.retry_after is not None
        assert in_words(failure.retry_after) in failure.message
        return failure.retry_after
    return 0


class TestWaiting:
    async def test_each_failure_after_the_fifth_makes_a_place_wait_twice_as_long_up_to_a_quarter_of_an_hour(
        self, database_url: str
    ) -> None:
        clock = Clock()
        async with database(database_url, connections=2, name="test") as db:
            guard = guarded(db, clock)
            for _ in range(OF_A_PLACE.free):
                assert await waits(guard, at("10.0.0.1")) == 0
            told = []
            for _ in range(7):
                wait = await waits(guard, at("10.0.0.1"))
                told.append(wait)
                clock.now += timedelta(seconds=wait - 1)
                assert await waits(guard, at("10.0.0.1")) == 1
                clock.now += timedelta(seconds=1)
                assert await waits(guard, at("10.0.0.1")) == 0
            assert told == [30, 60, 120, 240, 480, 900, 900]

    async def test_one_place_does_not_wait_for_another_nor_one_account_for_another(self, database_url: str) -> None:
        async with database(database_url, connections=2, name="test") as db:
            guard = guarded(db, Clock())
            for _ in range(OF_A_PLACE.free):
                await waits(guard, at("10.0.0.1"))
            assert await waits(guard, at("10.0.0.1")) > 0
            assert await waits(guard, at("10.0.0.2")) == 0
            assert await waits(guard, at("10.0.0.1"), "b@example.com") == 0

    async def test_all_addresses_of_one_ipv6_network_are_one_place(self, database_url: str) -> None:
        async with database(database_url, connections=2, name="test") as db:
            guard = guarded(db, Clock())
            for number in range(OF_A_PLACE.free):
                await waits(guard, at(f"2001:db8:0:7::{number}"))
            assert await waits(guard, at("2001:db8:0:7:ffff::1")) > 0
            assert await waits(guard, at("2001:db8:0:8::1")) == 0

    async def test_who_succeeds_and_who_comes_back_after_an_hour_begins_anew(self, database_url: str) -> None:
        clock = Clock()
        async with database(database_url, connections=2, name="test") as db:
            guard = guarded(db, clock)
            for _ in range(OF_A_PLACE.free - 1):
                await waits(guard, at("10.0.0.1"))
            await guard.succeeded(await guard.begin("password", "a@example.com", None, at("10.0.0.1")))
            for _ in range(OF_A_PLACE.free):
                assert await waits(guard, at("10.0.0.1")) == 0
            assert await waits(guard, at("10.0.0.1")) > 0
            clock.now += timedelta(minutes=61)
            for _ in range(OF_A_PLACE.free):
                assert await waits(guard, at("10.0.0.1")) == 0

    async def test_of_many_attempts_at_once_no_more_are_let_through_than_in_a_row(self, database_url: str) -> None:
        async with database(database_url, connections=8, name="test") as db:
            guards = [guarded(db, Clock()), guarded(db, Clock())]
            told = await asyncio.gather(*(waits(guards[number % 2], at("10.0.0.1")) for number in range(40)))
            assert sum(wait == 0 for wait in told) == OF_A_PLACE.free

    async def test_strangers_everywhere_together_guess_twice_a_minute_at_most(self, database_url: str) -> None:
        clock = Clock()
        async with database(database_url, connections=2, name="test") as db:
            guard = guarded(db, clock)
            for number in range(OF_STRANGERS.free):
                assert await waits(guard, at(f"10.0.1.{number}")) == 0
            assert await waits(guard, at("10.0.2.1")) == 30
            clock.now += timedelta(seconds=30)
            assert await waits(guard, at("10.0.2.1")) == 0, "nobody is shut out for good"
            assert await waits(guard, at("10.0.2.2")) == 30
            async with db.statements() as statements:
                cursor = await statements.connection.execute("SELECT place FROM auth.attempts ORDER BY place")
                places = [row["place"] for row in await cursor.fetchall()]
            assert "10.0.2.2" not in places, "who has to wait is counted nowhere"


def assert_told_when(answer: Any) -> None:
    """Each part of a refusal says the same."""
    assert isinstance(answer, Refusal)
    assert answer.reason == "RATE_LIMITED"
    seconds = int(answer.headers["retry-after"])
    assert 1 <= seconds <= 61
    assert answer.headers["ratelimit-remaining"] == "0"
    assert int(answer.headers["ratelimit-reset"]) == seconds
    assert 0 <= seconds - answer.wait < 1
    assert "try again in" in answer.message


async def test_the_owner_signs_in_from_a_known_place_while_strangers_hammer_from_everywhere(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = {"database_url": database_url, "redis_url": redis_url, "rate_limits": "on"}
    async with replicas(*(config_for(tmp_path, **settings) for _ in range(2))) as both:
        email = f"{uuid4().hex}@example.com"
        home = Guest(both[0], "10.9.0.1", device_id="device-of-the-owner")
        await home.sign_up(email)
        over, refused = asyncio.Event(), 0

        async def stranger(number: int) -> None:
            nonlocal refused
            while not over.is_set():
                guest = Guest(both[number % 2], f"10.{number}.{uuid4().int % 250}.{uuid4().int % 250}")
                answer = await guest.sign_in(email, "wrong")
                assert isinstance(answer, Refusal)
                if answer.reason == "RATE_LIMITED":
                    assert_told_when(answer)
                    refused += 1
                    if refused > 20:
                        over.set()

        async def owner() -> list[Any]:
            await over.wait()
            return [
                await home.sign_in(email),
                await Guest(both[1], "10.9.0.1").sign_in(email),
                await Guest(both[1], "10.200.0.1", device_id="device-of-the-owner").sign_in(email),
                await Guest(both[1], "10.200.0.2", device_id="device-of-a-stranger").sign_in(email),
            ]

        async with asyncio.timeout(200):
            *_, (known, at_home, on_the_road, new_place) = await asyncio.gather(
                *(stranger(number) for number in range(4)), owner()
            )
        for answer in (known, at_home, on_the_road):
            assert isinstance(answer, auth_pb2.SignInResponse), answer.reason
        assert_told_when(new_place)


async def test_nothing_tells_whether_there_is_an_account(database_url: str, redis_url: str, tmp_path: Path) -> None:
    settings = {"database_url": database_url, "redis_url": redis_url, "rate_limits": "on"}
    async with replica(config_for(tmp_path, **settings)) as one:
        known, unknown = f"{uuid4().hex}@example.com", f"{uuid4().hex}@example.com"
        await Guest(one, "10.9.0.1").sign_up(known)
        told: dict[str, list[tuple[str, str]]] = {known: [], unknown: []}
        for number in range(OF_STRANGERS.free + 4):
            for email, answers in told.items():
                answer = await Guest(one, f"10.8.{number}.1").sign_in(email, "wrong")
                answers.append((answer.reason, answer.message.partition(" in ")[0]))
        assert told[known] == told[unknown]
        reasons = [reason for reason, _ in told[known]]
        assert reasons == ["INVALID_CREDENTIALS"] * OF_STRANGERS.free + ["RATE_LIMITED"] * 4
        with psycopg.connect(database_url) as connection:
            rows = connection.execute("SELECT encode(subject, 'hex') || place FROM auth.attempts").fetchall()
        assert not [row for (row,) in rows if known in row or unknown in row], "nobody's address is kept"


@pytest.mark.usefixtures("costly_hashes")
async def test_whatever_is_wrong_one_password_is_hashed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes time is the one argon2id; an answer without it, or with two, would tell."""
    hashed: list[Any] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str, password: bytes) -> Any:
        hashed.append(extract_parameters(hash))
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    async with replica(config_for(tmp_path, database_url=database_url)) as one:
        guest = Guest(one, "10.0.0.1")
        account = await guest.sign_up()
        gone = await guest.sign_up()
        request = auth_pb2.DeleteMeRequest()
        await one.accounts.DeleteMe(request, metadata=(("authorization", f"Bearer {gone.access_token}"),))
        for email in (account.user.email, gone.user.email, "nobody@example.com", "no address", "x" * 10_000):
            hashed.clear()
            answer = await guest.sign_in(email, "wrong")
            assert answer.reason == "INVALID_CREDENTIALS"
            assert len(hashed) == 1, email
            assert (hashed[0].type.name, hashed[0].memory_cost) == ("ID", 65536)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_a_network_is_what_one_party_has(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (1, "1 second"),
        (1.1, "2 seconds"),
        (90, "90 seconds"),
        (91, "2 minutes"),
        (900, "15 minutes"),
    ],
)
def test_a_wait_is_told_in_words_and_never_too_short(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
