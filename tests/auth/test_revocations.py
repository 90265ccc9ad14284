"""The tokens of an ended sign-in on every replica of every service, also while a part of the mesh is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from satchel.auth.v1 import auth_pb2
from satchel.sessions.v1 import stats_pb2, stats_pb2_grpc
from satchel.uploads.v1 import uploads_pb2, uploads_pb2_grpc

from runtime.call import Principal
from runtime.config import Config
from runtime.errors import Failure, Reason
from runtime.identity import Revocations
from runtime.server import serving
from services.sessions.app import service as sessions
from services.uploads.app import service as uploads
from tests.auth.replicas import Guest, Refusal, Replica, bearer, replica
from tests.conftest import config_for
from tests.polling import until
from tests.streams import talking

BOTH = {"sessions": sessions, "uploads": uploads}
Ask = Callable[[str], Awaitable[str]]
"""Calls with an access token and gives the reason of the refusal; empty: there was none."""


async def reason(call: Awaitable[Any]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return Refusal(error).reason
    return ""


@asynccontextmanager
async def doors(config: Config) -> AsyncIterator[list[Ask]]:
    """A replica of sessions and of uploads under `config`, as ways to ask whether a token is good there."""
    async with (
        serving(config, BOTH),
        grpc.aio.insecure_channel(config.sessions_address) as first,
        grpc.aio.insecure_channel(config.uploads_address) as second,
    ):

        async def stats(token: str) -> str:
            stub = stats_pb2_grpc.StatsServiceStub(first)
            return await reason(stub.GetStats(stats_pb2.GetStatsRequest(), metadata=bearer(token)))

        async def limits(token: str) -> str:
            stub = uploads_pb2_grpc.UploadServiceStub(second)
            return await reason(stub.GetUploadLimits(uploads_pb2.GetUploadLimitsRequest(), metadata=bearer(token)))

        yield [stats, limits]


async def answers(asks: list[Ask], token: str) -> set[str]:
    return set(await asyncio.gather(*(ask(token) for ask in asks)))


def me(one: Replica) -> Ask:
    async def ask(token: str) -> str:
        return await reason(one.accounts.GetMe(auth_pb2.GetMeRequest(), metadata=bearer(token)))

    return ask


async def sign_out(one: Replica, token: str) -> None:
    await one.accounts.SignOut(auth_pb2.SignOutRequest(), metadata=bearer(token))


@pytest.mark.parametrize("redis", ["there", "away"])
async def test_a_sign_out_is_known_on_two_replicas_of_each_service_within_a_second(
    database_url: str, redis_url: str, tmp_path: Path, redis: str
) -> None:
    settings = {
        "database_url": database_url,
        "redis_url": redis_url if redis == "there" else f"unix://{tmp_path}/nothing.sock",
        "rate_limits": "on",
    }
    async with AsyncExitStack() as stack:
        configs = [config_for(tmp_path, **settings) for _ in range(2)]
        auths = [await stack.enter_async_context(replica(config)) for config in configs]
        asks = [me(one) for one in auths]
        for config in configs:
            asks += await stack.enter_async_context(doors(config))
        leaver, stays = [await Guest(auths[0], f"10.{uuid4().int % 250}.0.1").sign_up() for _ in range(2)]
        assert await answers(asks, leaver.access_token) == {""}
        await sign_out(auths[0], leaver.access_token)

        async def refused() -> bool:
            return await answers(asks, leaver.access_token) == {"TOKEN_REVOKED"}

        assert await until(refused) < 1.5
        assert await answers(asks, stays.access_token) == {""}


async def test_a_service_that_cannot_reach_auth_refuses_what_it_cannot_judge_and_recovers(
    database_url: str, tmp_path: Path
) -> None:
    """The sessions and uploads services lose their way to auth, while phones can still sign out somewhere else."""
    patience = 3.0
    settings = {"database_url": database_url, "revocation_patience": patience}
    lost, reached = config_for(tmp_path, **settings), config_for(tmp_path, **settings)
    async with AsyncExitStack() as stack:
        elsewhere = await stack.enter_async_context(replica(reached))
        config = config_for(tmp_path, auth_address=lost.auth_address, **settings)
        async with replica(lost):
            asks = await stack.enter_async_context(doors(config))
            leaver, stays = [await Guest(elsewhere, "10.0.0.1").sign_up() for _ in range(2)]
            tokens = leaver.access_token, stays.access_token
            for token in tokens:
                assert await answers(asks, token) == {""}
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(config.sessions_address))
            talk = await stack.enter_async_context(talking(channel, bearer(leaver.access_token), device_id="a"))
        cut = time.monotonic()
        await sign_out(elsewhere, leaver.access_token)
        seen: set[str] = set()

        async def refused() -> bool:
            told = [await answers(asks, token) for token in tokens]
            seen.update(*told)
            return told == [{"UNAVAILABLE"}, {"UNAVAILABLE"}]

        await until(refused)
        assert seen <= {"", "UNAVAILABLE"}
        assert time.monotonic() - cut < patience + 5, "an ended token lives no longer than the patience"
        assert await talk.code() is grpc.StatusCode.UNAVAILABLE, "and so does its stream"

        async with replica(lost):

            async def judged() -> bool:
                return [await answers(asks, token) for token in tokens] == [{"TOKEN_REVOKED"}, {""}]

            await until(judged)


async def test_a_service_that_has_just_started_knows_what_was_ended_before_its_first_answer(
    database_url: str, tmp_path: Path
) -> None:
    config = config_for(tmp_path, database_url=database_url)
    async with replica(config) as one:
        leaver = await Guest(one, "10.0.0.1").sign_up()
        await sign_out(one, leaver.access_token)
        for _ in range(3):
            async with doors(config) as asks:
                assert await answers(asks, leaver.access_token) == {"TOKEN_REVOKED"}


def of(sign_in_id: UUID) -> Principal:
    return Principal(user_id=uuid4(), sign_in_id=sign_in_id, tenant_id=1, role="user", tier="free")


async def test_without_news_for_too_long_nobody_is_let_in_and_with_news_everybody_again() -> None:
    now = 0.0
    revocations = Revocations(patience=60, monotonic=lambda: now)
    ended, live = uuid4(), uuid4()
    revocations.add([ended])
    now = 60.0
    await revocations.check(of(live))
    now = 60.1
    for sign_in, told in ((ended, Reason.TOKEN_REVOKED), (live, Reason.UNAVAILABLE)):
        with pytest.raises(Failure) as raised:
            await revocations.check(of(sign_in))
        assert raised.value.reason is told
    revocations.add([])
    await revocations.check(of(live))


async def test_the_first_calls_wait_for_the_first_news() -> None:
    revocations = Revocations(patience=60)
    ended, live = uuid4(), uuid4()
    calls = [asyncio.create_task(revocations.check(of(one))) for one in (ended, live)]
    await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    revocations.add([ended])
    with pytest.raises(Failure, match="TOKEN_REVOKED"):
        await calls[0]
    await calls[1]
