"""/healthz while parts of the mesh are away, each in its turn, and after they are back: it tells the truth."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from satchel.auth.v1 import auth_pb2
from satchel.health.v1 import health_pb2 as mesh_pb2
from satchel.health.v1 import health_pb2_grpc as mesh_pb2_grpc

from deploy.parts import Child, running
from deploy.postgres import postgres_part
from deploy.redis import redis_part
from deploy.sockets import free_port
from runtime.config import SERVICES, Config
from runtime.readiness import ALIVE
from runtime.server import serving
from services.health.domain import Mesh as Parts
from services.health.domain import Part
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.health.reports import new_tenant
from tests.polling import until

PATIENCE = 40.0
# Seconds; longer than the edge takes to find a process ill.
ILL_AFTER = 6.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
AUTH = auth_pb2.DESCRIPTOR.services_by_name["AuthService"].full_name


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Every part as a process of its own."""

    edge: Edge
    config: Config
    parts: dict[str, Child]
    metrics: str
    """Where the auth service has /readyz."""

    async def state(self) -> tuple[int, str, dict[str, str]]:
        """The status of /healthz, what it says in all, and of which parts it says that they are not up."""
        answer = await self.edge.http.get("/healthz")
        body = answer.json()
        missing = {part["name"]: part["state"] for part in body.get("parts", ()) if part["state"] != "up"}
        return answer.status_code, body.get("status", ""), missing

    async def until_state(self, wanted: Callable[[tuple[int, str, dict[str, str]]], bool]) -> None:
        seen: list[Any] = []

        async def is_so() -> bool:
            seen.append(await self.state())
            return wanted(seen[-1])

        try:
            await until(is_so, PATIENCE)
        except AssertionError:
            raise AssertionError(f"it says {seen[-1]}") from None

    async def until_well(self) -> None:
        await self.until_state(lambda state: state == (200, "ok", {}))


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    with TemporaryDirectory(prefix="satchel-") as made:
        directory = Path(made)
        parts = [postgres_part(directory / "postgres", log=directory / "postgres.log")]
        redis = redis_part(directory / "redis", log=directory / "redis.log")
        if redis is not None:
            parts.append(redis)
        async with AsyncExitStack() as stack:
            children = {part.name: await stack.enter_async_context(running(part)) for part in parts}
            config = config_for(
                directory / "home", database_url=parts[0].url, redis_url=redis.url if redis is not None else ""
            )
            edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
            metrics = f"127.0.0.1:{free_port()}"
            for name in SERVICES:
                own = {"metrics_address": metrics} if name == "auth" else {}
                part = service_part(name, config, directory, **own)
                children[name] = await stack.enter_async_context(running(part))
            await until_healthy(edge)
            yield Mesh(edge=edge, config=config, parts=children, metrics=metrics)


async def stopped(child: Child) -> None:
    child.kill()
    await child.wait()


@pytest.mark.parametrize("name", [one for one in SERVICES if one not in ("garmin", "health")])
async def test_without_a_service_that_is_needed_the_mesh_is_down(mesh: Mesh, name: str) -> None:
    await mesh.until_well()
    await stopped(mesh.parts[name])
    gone = {name: "down", "blobs": "down"} if name == "uploads" else {name: "down"}
    await mesh.until_state(lambda state: state == (503, "down", gone))
    await mesh.parts[name].start()
    await mesh.until_well()


async def test_without_the_garmin_connector_the_mesh_is_degraded(mesh: Mesh) -> None:
    await mesh.until_well()
    await stopped(mesh.parts["garmin"])
    await mesh.until_state(lambda state: state == (200, "degraded", {"garmin": "down"}))
    await mesh.parts["garmin"].start()
    await mesh.until_well()


async def test_without_the_health_service_the_edge_says_so_in_its_place(mesh: Mesh) -> None:
    await mesh.until_well()
    await stopped(mesh.parts["health"])

    async def refused() -> bool:
        return (await mesh.edge.http.get("/healthz")).status_code == 503

    await until(refused, PATIENCE)
    answer = await mesh.edge.http.get("/healthz")
    assert answer.json()["error"]["code"] == "UNAVAILABLE"
    assert answer.headers["retry-after"] == "1"
    await mesh.parts["health"].start()
    await mesh.until_well()


async def test_without_redis_the_mesh_is_degraded(mesh: Mesh) -> None:
    if "redis" not in mesh.parts:
        pytest.skip("there is no Redis for this platform")
    await mesh.until_well()
    await stopped(mesh.parts["redis"])
    await mesh.until_state(lambda state: state == (200, "degraded", {"redis": "down"}))
    await mesh.parts["redis"].start()
    await mesh.until_well()


async def test_without_the_store_of_files_the_mesh_is_down(mesh: Mesh) -> None:
    await mesh.until_well()
    blobs = mesh.config.home / "blobs"
    away = blobs.with_name("away")
    shutil.move(blobs, away)
    try:
        await mesh.until_state(lambda state: state == (503, "down", {"blobs": "down"}))
    finally:
        shutil.move(away, blobs)
    await mesh.until_well()


async def test_a_service_that_hangs_is_down_too_and_told_of_in_time(mesh: Mesh) -> None:
    await mesh.until_well()
    pid = mesh.parts["websocket"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await mesh.until_state(lambda state: state == (503, "down", {"websocket": "down"}))
    finally:
        os.kill(pid, signal.SIGCONT)
    await mesh.until_well()


async def test_a_database_that_hangs_is_down_too_and_told_of_in_time(mesh: Mesh) -> None:
    await mesh.until_well()
    postmaster = psutil.Process(mesh.parts["postgres"].pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    async with httpx.AsyncClient() as http:

        async def readyz() -> int:
            return (await http.get(f"http://{mesh.metrics}/readyz")).status_code

        for one in processes:
            one.suspend()
        try:
            # Far sooner than psycopg gives up on its connections.
            async with asyncio.timeout(6):
                assert await mesh.state() == (503, "down", {"postgres": "down"})
                while await readyz() == 200:
                    await asyncio.sleep(0.1)
        finally:
            for one in processes:
                one.resume()
    await mesh.until_well()


async def test_many_who_ask_at_once_share_the_answers() -> None:
    asked, go = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal asked
        asked += 1
        await go.wait()

    parts = Parts([Part(name="a", needed=True, probe=probe)])
    asking = [asyncio.create_task(parts.check()) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # whoever came first may go again
    go.set()
    found = await asyncio.gather(*asking[1:])
    assert {one.state for findings in found for one in findings} == {"up"}
    assert asked == 1
    await parts.check()
    assert asked == 2


async def test_every_part_that_answers_says_how_long_it_took(mesh: Mesh) -> None:
    await mesh.until_well()
    parts = (await mesh.edge.http.get("/healthz")).json()["parts"]
    assert {part["name"] for part in parts} >= {*SERVICES, "postgres", "redis", "blobs"}
    assert all(part["latency_ms"] > 0 for part in parts if part["state"] == "up")
    assert {part["name"] for part in parts if not part["needed"]} == {"garmin", "redis"}


async def test_without_the_database_services_say_so_to_who_asks_and_phones_are_told_in_their_dialect(
    mesh: Mesh,
) -> None:
    await mesh.until_well()
    postgres = mesh.parts["postgres"]
    async with grpc.aio.insecure_channel(mesh.config.address("auth")) as channel, httpx.AsyncClient() as http:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status)

        async def readyz() -> int:
            return (await http.get(f"http://{mesh.metrics}/readyz")).status_code

        async def is_ready() -> bool:
            return (await status(AUTH), await readyz()) == (SERVING, 200)

        await until(is_ready, PATIENCE)  # which comes a moment behind being well, where the database has just been away
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=AUTH), timeout=PATIENCE * 3)
        assert (await watch.read()).status == SERVING
        assert (await status(""), await status(ALIVE), await readyz()) == (SERVING, SERVING, 200)
        await stopped(postgres)
        assert (await watch.read()).status == NOT_SERVING
        assert (await status(""), await status(AUTH), await status(ALIVE)) == (NOT_SERVING, NOT_SERVING, SERVING)
        assert await readyz() == 503
        await mesh.until_state(lambda state: state == (503, "down", {"postgres": "down"}))

        async def refusal() -> httpx.Response:
            account = {"email": "ada@example.com", "password": "correct horse battery"}
            return await mesh.edge.http.post("/v1/auth/signin", json=account)

        started = time.monotonic()
        while time.monotonic() < started + ILL_AFTER:
            answer = await refusal()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
            assert answer.headers["retry-after"] == "1"
        assert (await refusal()).headers.get("x-request-id")
        await postgres.start()
        await postgres.until_ready()
        assert (await watch.read()).status == SERVING
        await until(is_ready, PATIENCE)
        assert await status("") == SERVING
        watch.cancel()
    await mesh.until_well()


async def test_the_door_does_not_need_the_database(mesh: Mesh) -> None:
    await mesh.until_well()
    async with grpc.aio.insecure_channel(mesh.config.address("websocket")) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stopped(mesh.parts["postgres"])
        # The others know by then.
        await mesh.until_state(lambda state: state == (503, "down", {"postgres": "down"}))
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
        await mesh.parts["postgres"].start()
    await mesh.until_well()


async def pushed(phone: Phone) -> int:
    """The status that the push of a new page is answered with."""
    change = {"domain": "journal", "id": uuid4().hex, "operation": "UPSERT", "data": {}}
    return (await phone.call("POST", "/api/v1/sync/push", json={"changes": [change]})).status_code


async def health_after(phone: Phone, syncs: int) -> dict[str, Any]:
    """The health of the phone's tenant, once so many syncs have been reported."""
    found: dict[str, Any] = {}

    async def reported() -> bool:
        answer = await phone.call("GET", "/api/v1/sync/health")
        found.update(answer.json())
        return answer.status_code == 200 and found["metrics"]["total_syncs"] == syncs

    await until(reported, PATIENCE)
    return found


async def test_syncs_that_failed_without_the_database_alarm_once_it_is_back(mesh: Mesh) -> None:
    await mesh.until_well()
    phone = await mesh.edge.phone(tenant_id=new_tenant())
    assert [await pushed(phone) for _ in range(4)] == [200] * 4
    health = await health_after(phone, 4)
    assert (health["health_status"], health["alerts"]) == ("healthy", [])
    await stopped(mesh.parts["postgres"])
    asked = asyncio.create_task(phone.call("GET", "/api/v1/sync/health"))
    assert await asyncio.gather(*(pushed(phone) for _ in range(4))) == [503] * 4
    assert (await asked).status_code == 503
    await mesh.parts["postgres"].start()
    await mesh.parts["postgres"].until_ready()
    await mesh.until_well()
    health = await health_after(phone, 8)
    assert (health["health_status"], health["metrics"]["success_rate"]) == ("degraded", 50)
    alarming = {one["metric"]: (one["severity"], one["current_value"]) for one in health["alerts"]}
    assert alarming.pop("success_rate") == ("critical", 50)
    assert set(alarming) <= {"avg_sync_duration_ms"}  # a push may have waited for the database before it was refused


async def test_what_phones_can_do_without_does_not_alarm(mesh: Mesh) -> None:
    await mesh.until_well()
    phone = await mesh.edge.phone(tenant_id=new_tenant())
    missing = [name for name in ("redis", "garmin", "uploads", "health") if name in mesh.parts]
    for name in missing:
        await stopped(mesh.parts[name])
    assert [await pushed(phone) for _ in range(4)] == [200] * 4
    for name in missing:
        await mesh.parts[name].start()
    await mesh.until_well()
    health = await health_after(phone, 4)
    assert (health["health_status"], health["alerts"]) == ("healthy", [])


async def test_a_connector_that_is_not_run_at_all_is_off_and_not_missed(database_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, garmin_address="")
    others = {name: service for name, service in ALL.items() if name != "garmin"}
    async with serving(config, others), grpc.aio.insecure_channel(config.address("health")) as channel:
        answer = await mesh_pb2_grpc.HealthServiceStub(channel).CheckMesh(mesh_pb2.CheckMeshRequest(), timeout=10)
    assert answer.status == "ok"
    assert {part.name: part.state for part in answer.parts}["garmin"] == "off"
