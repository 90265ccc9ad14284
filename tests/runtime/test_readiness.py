"""What a process says of itself while what it stands on comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from runtime import readiness
from runtime.readiness import ALIVE, FAILURES, Readiness
from tests.polling import until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAME = "satchel.some.v1.SomeService"


class Moody:
    """A dependency that answers as it was told to, and counts."""

    def __init__(self) -> None:
        self.answers: Callable[[], Awaitable[Any]] = self._well
        self.asked = 0
        self.failed = 0

    async def __call__(self) -> None:
        self.asked += 1
        await self.answers()

    async def _well(self) -> None:
        """Answers."""

    async def ill(self) -> None:
        self.failed += 1
        raise ConnectionError("away")

    async def ill_once(self) -> None:
        self.answers = self._well
        await self.ill()

    async def hangs(self) -> None:
        self.failed += 1
        await asyncio.Event().wait()

    async def holds_on(self) -> None:
        """As psycopg, which takes its question back before it lets go."""
        self.failed += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3600)

    def well(self) -> None:
        self.answers = self._well


class Refused(Exception):
    pass


class Context:
    async def abort(self, code: grpc.StatusCode) -> None:
        raise Refused(code)


async def status(told: Readiness, name: str) -> int:
    return int((await told.servicer.Check(health_pb2.HealthCheckRequest(service=name), Context())).status)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "INTERVAL", 0.01)
    monkeypatch.setattr(readiness, "PATIENCE", 0.05)


async def asked_again(moody: Moody, times: int = 3) -> None:
    before = moody.asked

    async def enough() -> bool:
        return moody.asked >= before + times

    await until(enough)


@pytest.mark.parametrize("how", ["ill", "hangs", "holds_on"])
async def test_a_service_follows_its_database_and_the_process_stays_alive(how: str) -> None:
    told, moody = Readiness(), Moody()
    await told.begin([NAME])
    async with told.following_database(moody, [NAME]):
        await asked_again(moody)
        assert [await status(told, name) for name in ("", NAME, ALIVE)] == [SERVING] * 3
        moody.answers = getattr(moody, how)

        async def away() -> bool:
            return await status(told, NAME) == NOT_SERVING

        await until(away)
        assert [await status(told, name) for name in ("", NAME, ALIVE)] == [NOT_SERVING, NOT_SERVING, SERVING]
        assert not told.ready.is_set()
        assert moody.failed >= FAILURES
        moody.well()

        async def back() -> bool:
            return await status(told, NAME) == SERVING and told.ready.is_set()

        await until(back)


async def test_one_slow_answer_is_not_the_end_of_a_service() -> None:
    told, moody = Readiness(), Moody()
    await told.begin([NAME])
    async with told.following_database(moody, [NAME]):
        for _ in range(3):
            moody.answers = moody.ill_once
            await asked_again(moody)
            assert await status(told, NAME) == SERVING
        assert moody.failed == 3


async def test_a_process_that_drains_is_ready_no_more_whatever_comes_back() -> None:
    told, moody = Readiness(), Moody()
    await told.begin([NAME])
    moody.answers = moody.ill
    async with told.following_database(moody, [NAME]):
        await asked_again(moody)
        await told.end()
        moody.well()
        await asked_again(moody)
        assert [await status(told, name) for name in ("", NAME, ALIVE)] == [NOT_SERVING] * 3
        assert not told.ready.is_set()


async def test_nothing_is_said_of_what_was_never_reached() -> None:
    told, moody = Readiness(), Moody()
    await told.begin([NAME])
    moody.answers = moody.ill
    async with told.telling("store", moody, interval=0.01):
        await asked_again(moody)

        async def known() -> bool:
            try:
                return await status(told, "store") == NOT_SERVING
            except Refused:
                return False

        await until(known)
        assert await status(told, NAME) == SERVING
