"""Parts that die while phones hand things over: clear answers meanwhile, nothing lost, nothing twice, no restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.parts import Child, running
from deploy.postgres import postgres_part
from deploy.redis import redis_part
from runtime.server import serving
from tests.conftest import ALL, Edge, config_for, edge_of, envoy_for, service_part, until_healthy
from tests.factories import PASSWORD, Phone, device_session

PATIENCE = 20.0
# Those that need not be processes when the sessions service is to be killed.
OTHERS = {name: service for name, service in ALL.items() if name != "sessions"}


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    with TemporaryDirectory(prefix="satchel-") as made:
        yield Path(made)


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[Child]:
    """A PostgreSQL of this test's own, to be killed; what it acknowledges is on the disk."""
    part = postgres_part(directory / "postgres", log=directory / "postgres.log")
    async with running(part) as child:
        yield child


async def until(call: Callable[[], Awaitable[httpx.Response]], status: int) -> httpx.Response:
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = await call()
        if answer.status_code == status:
            return answer
        assert time.monotonic() < deadline, f"still {answer.status_code}: {answer.text}"
        await asyncio.sleep(0.05)


async def crash_and_recover(child: Child) -> None:
    child.kill()
    await child.wait()
    await child.start()
    await child.until_ready()


async def test_the_services_come_back_by_themselves_after_the_database_did(server: Child, directory: Path) -> None:
    config = config_for(directory / "home", database_url=server.part.url)
    async with edge_of(config, directory / "edge") as edge:
        phone = await edge.phone()
        session = device_session()
        await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session]})
        server.kill()
        await server.wait()

        async def upload() -> httpx.Response:
            return await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session, device_session()]})

        away = await until(upload, 503)
        assert away.headers["content-type"] == "application/json"
        assert away.headers["retry-after"] == "1"
        assert away.json()["error"]["code"] == "UNAVAILABLE"
        assert "connection" not in away.text
        assert (await until(lambda: edge.http.get("/healthz"), 503)).json()["status"] == "down"
        await server.start()
        await server.until_ready()
        answer = await until(upload, 200)
        assert [one["status"] for one in answer.json()["results"]] == ["duplicate", "created"]
        assert (await until(lambda: edge.http.get("/healthz"), 200)).json()["status"] == "ok"


async def test_a_crashing_database_loses_nothing_acknowledged_and_stores_nothing_twice(
    server: Child, directory: Path
) -> None:
    """Phones hand over and repeat what was not acknowledged, while PostgreSQL is killed again and again."""
    config = config_for(directory / "home", database_url=server.part.url)
    async with edge_of(config, directory / "edge") as edge:
        phone = await edge.phone()
        handed_over = 0

        async def hand_over(batches: int) -> None:
            nonlocal handed_over
            for _ in range(batches):
                sessions = [device_session(xp_earned=1) for _ in range(20)]
                headers = {"idempotency-key": str(uuid4())}
                answer = await until(
                    lambda: phone.call("POST", "/sessions/batch_upload", json={"sessions": sessions}, headers=headers),  # noqa: B023 - awaited in this round
                    200,
                )
                body = answer.json()
                assert body["created"] + body["duplicates"] == 20
                handed_over += 20

        pushing = [asyncio.create_task(hand_over(15)) for _ in range(4)]
        for _ in range(2):
            await asyncio.sleep(0.3)  # the crash belongs into the middle of the writes, wherever that is
            await crash_and_recover(server)
        await asyncio.gather(*pushing)
        stats = (await phone.call("GET", "/users/me/stats")).json()
        assert stats["total_sessions"] == stats["total_xp"] == handed_over == 1200


async def test_without_redis_everything_goes_on_and_health_says_degraded(database_url: str, directory: Path) -> None:
    part = redis_part(directory / "redis", log=directory / "redis.log")
    if part is None:
        pytest.skip("there is no Redis for this platform")
    async with running(part) as redis:
        config = config_for(directory / "home", database_url=database_url, redis_url=part.url, rate_limits="on")
        async with edge_of(config, directory / "edge") as edge:
            phone = await edge.phone()
            redis.kill()
            await redis.wait()
            answer = await phone.call("POST", "/sessions/batch_upload", json={"sessions": [device_session()]})
            assert (answer.status_code, answer.headers["ratelimit-limit"]) == (200, "20")
            health = await edge.http.get("/healthz")
            assert (health.status_code, health.json()["status"]) == (200, "degraded")
            await redis.start()
            await redis.until_ready()
            assert (await until(lambda: edge.http.get("/healthz"), 200)).json()["status"] == "ok"


async def test_a_killed_service_is_unavailable_at_once_and_back_when_it_is(database_url: str, directory: Path) -> None:
    config = config_for(directory / "home", database_url=database_url)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
        await stack.enter_async_context(serving(config, OTHERS))
        records = await stack.enter_async_context(running(service_part("sessions", config, directory)))
        await until_healthy(edge)
        phone = await edge.phone()
        sessions = [device_session() for _ in range(50)]

        async def upload() -> httpx.Response:
            return await phone.call("POST", "/v1/sessions/batch_upload", json={"sessions": sessions})

        async def hand_over() -> int:
            """How many answers told the phone to come again."""
            again = 0
            while (answer := await upload()).status_code != 200:
                assert answer.status_code in (503, 504), answer.text
                assert answer.json()["error"]["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
                again += 1
                await asyncio.sleep(0.05)
            return again

        records.kill()
        await records.wait()
        pushing = asyncio.create_task(hand_over())
        assert (await until(lambda: edge.http.get("/healthz"), 503)).json()["status"] == "down"
        assert (await phone.call("GET", "/v1/auth/me")).status_code == 200, "the others go on"
        await records.start()
        assert await pushing > 0
        assert (await phone.call("GET", "/users/me/stats")).json()["total_sessions"] == 50


async def test_a_service_told_to_stop_finishes_what_it_is_at(database_url: str, directory: Path) -> None:
    config = config_for(directory / "home", database_url=database_url)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
        child = await stack.enter_async_context(running(service_part("all", config, directory)))
        await until_healthy(edge)
        # argon2id takes long enough for the signal to arrive in the middle.
        request = {"email": "last@example.com", "password": PASSWORD}
        signing_up = asyncio.create_task(edge.http.post("/v1/auth/signup", json=request))
        await until_logged(directory / "all.log", child, signing_up)
        assert (await signing_up).status_code == 201
        assert await child.wait() == 0


async def until_logged(log: Path, child: Child, task: asyncio.Task[Any]) -> None:
    """Tells the service to stop as soon as it works on the call."""
    await asyncio.sleep(0.02)  # the call is on its way; either side of the signal it must be answered
    stopping = asyncio.create_task(child.stop())
    await asyncio.wait({task, stopping}, return_when=asyncio.ALL_COMPLETED)
    assert "draining" in log.read_text()


async def test_two_replicas_share_one_address_and_cover_for_each_other(database_url: str, directory: Path) -> None:
    """Two processes on one port by SO_REUSEPORT: one is killed, and the phone notices at most a repeat."""
    config = config_for(directory / "home", database_url=database_url, share_address=True)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
        await stack.enter_async_context(serving(config, OTHERS))
        replicas = [
            await stack.enter_async_context(running(service_part("sessions", config, directory))) for _ in range(2)
        ]
        await until_healthy(edge)
        phone = await edge.phone()
        session = device_session()

        async def upload() -> httpx.Response:
            return await phone.call("POST", "/sessions/batch_upload", json={"sessions": [session]})

        await until(upload, 200)
        for replica in replicas:
            replica.kill()
            await replica.wait()
            assert (await until(upload, 200)).json()["duplicates"] == 1
            await replica.start()


async def test_half_a_body_is_stored_not_at_all(edge: Edge, phone: Phone) -> None:
    head = (
        f"POST /sessions/batch_upload HTTP/1.1\r\nhost: satchel\r\nauthorization: {phone.headers['authorization']}\r\n"
        "content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(head.encode() + b'{"sessions":[')
    await writer.drain()
    writer.transport.abort()
    assert (await phone.call("GET", "/users/me/stats")).json()["total_sessions"] == 0
