"""Two replicas of the sessions service: what a phone pushes on one reaches the phones on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import LiteralString
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
import redis.asyncio
from satchel.auth.v1 import auth_pb2, auth_pb2_grpc
from satchel.sessions.v1 import sync_pb2 as pb

from deploy.parts import running
from deploy.redis import redis_part
from runtime.config import Config
from runtime.hints import CHANNEL
from runtime.server import serving
from services.auth.app import service as auth
from services.sessions.app import service as sessions
from services.sessions.live import POLL_INTERVAL_ALONE
from tests.conftest import config_for
from tests.factories import PASSWORD
from tests.streams import PATIENCE, Talk, change, talking


@asynccontextmanager
async def two_replicas(config: Config) -> AsyncIterator[tuple[Talk, Talk]]:
    """A phone of one user on each of two replicas, which share a database and whatever Redis there is."""
    other = config.model_copy(update={"sessions_address": config.uploads_address})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(config, {"auth": auth, "sessions": sessions}))
        await stack.enter_async_context(serving(other, {"sessions": sessions}))
        metadata = await _sign_up(config)
        talks = []
        for one, device_id in ((config, "first"), (other, "second")):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(one.sessions_address))
            talks.append(await stack.enter_async_context(talking(channel, metadata, device_id=device_id)))
        yield talks[0], talks[1]


async def _sign_up(config: Config) -> tuple[tuple[str, str], ...]:
    async with grpc.aio.insecure_channel(config.auth_address) as channel:
        request = auth_pb2.SignUpRequest(email="phone@example.com", password=PASSWORD)
        answer = await auth_pb2_grpc.AuthServiceStub(channel).SignUp(request)
    return (("authorization", f"Bearer {answer.access_token}"),)


async def _arrives(sender: Talk, receiver: Talk) -> float:
    """Seconds until what one phone pushes has reached the other."""
    given, started = change(), time.monotonic()
    await sender.push(given)
    assert [entry.id for entry in await receiver.changes()] == [given.id]
    return time.monotonic() - started


async def test_a_push_on_one_replica_is_hinted_to_the_other(database_url: str, redis_url: str, tmp_path: Path) -> None:
    if not redis_url:
        pytest.skip("this machine has no Redis")
    config = config_for(tmp_path, database_url=database_url, redis_url=redis_url)
    async with two_replicas(config) as (first, second):
        await _arrives(first, second)  # both have reached Redis by then, or have looked by themselves
        times = [await _arrives(*pair) for pair in ((first, second), (second, first)) * 3]
        assert min(times) < POLL_INTERVAL_ALONE / 2  # nobody looks that often by himself


async def test_without_redis_replicas_look_by_themselves(database_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path, database_url=database_url, redis_url="")
    async with two_replicas(config) as (first, second):
        await _arrives(first, second)
        await _arrives(second, first)


async def test_pushes_arrive_while_redis_comes_and_goes(database_url: str, tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="satchel-") as directory:
        part = redis_part(Path(directory))
        if part is None:
            pytest.skip("this machine has no Redis")
        config = config_for(tmp_path, database_url=database_url, redis_url=part.url)
        async with running(part) as server, two_replicas(config) as (first, second):
            await _arrives(first, second)
            await server.stop()
            await _arrives(first, second)
            await _arrives(second, first)
            await server.start()
            await server.until_ready()
            await _arrives(first, second)
            await _arrives(second, first)


async def test_an_open_stream_hears_of_conflicts_on_the_other_replica(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    if not redis_url:
        pytest.skip("this machine has no Redis")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO sessions.policies VALUES (1, 'task', 'server_wins', true, true, now())")
    config = config_for(tmp_path, database_url=database_url, redis_url=redis_url)
    async with two_replicas(config) as (first, second):
        async with asyncio.timeout(30):
            while True:  # a hint may be lost while a replica has not yet reached Redis
                id = str(uuid4())
                await first.push(change("task", id, data={"title": "one"}))
                await second.changes()
                await first.push(change("task", id, data={"title": "two"}))
                await second.say("beat", heartbeat=pb.Heartbeat())
                heard = [(await second.hear()).WhichOneof("message")]
                if heard != ["conflict"]:
                    await asyncio.sleep(0.1)
                    await second.say("beat", heartbeat=pb.Heartbeat())
                    heard.append((await second.hear()).WhichOneof("message"))
                if "conflict" in heard:
                    return


async def test_a_phone_that_has_said_its_last_still_gets_its_receipts(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    if not redis_url:
        pytest.skip("this machine has no Redis")
    config = config_for(tmp_path, database_url=database_url, redis_url=redis_url)
    async with two_replicas(config) as (talk, other), redis.asyncio.Redis.from_url(redis_url) as words:
        await _arrives(other, talk)
        user_id = await _only_user(database_url)
        async with await psycopg.AsyncConnection.connect(database_url) as lock:
            # The stream is told to look up a conflict, and has to wait for that until the push is stored.
            await lock.execute("LOCK TABLE sessions.conflicts IN ACCESS EXCLUSIVE MODE")
            await words.publish(CHANNEL, f"somebody {user_id.hex}:{uuid4().hex}")
            await _until(database_url, "SELECT 1 FROM pg_locks WHERE NOT granted")
            await talk.say("last", push=pb.PushChangesRequest(changes=[change(id="last")]))
            await talk.call.done_writing()
            await _until(database_url, "SELECT 1 FROM sessions.records WHERE id = 'last'")
        assert [one.status for one in (await talk.hear("receipts")).receipts] == ["APPLIED"]
        assert await talk.code() is grpc.StatusCode.OK


async def _only_user(database_url: str) -> UUID:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        (row,) = await (await connection.execute("SELECT user_id FROM sessions.feeds")).fetchall()
    user_id: UUID = row[0]
    return user_id


async def _until(database_url: str, query: LiteralString) -> None:
    """Waits until the query finds a row."""
    async with asyncio.timeout(PATIENCE), await psycopg.AsyncConnection.connect(database_url, autocommit=True) as asked:
        while not await (await asked.execute(query)).fetchall():
            await asyncio.sleep(0.02)
