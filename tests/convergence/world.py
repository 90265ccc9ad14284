"""Owns the mesh under test, every part of it a process, and the ways in which its parts are made to fail."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from deploy.parts import Child, Part, running
from deploy.postgres import postgres_part
from deploy.redis import redis_part
from tests.conftest import Edge, config_for, envoy_for, service_part
from tests.convergence.schedule import POLICIES
from tests.factories import Phone

ADMIN = "administrator@example.com"
PATIENCE = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class World:
    """Two replicas of the sessions service on one address, what they stand on, and Envoy in front."""

    edge: Edge
    sessions_port: int
    """Of the replicas, past Envoy."""
    database: Child
    redis: Child | None
    replicas: list[Child]

    async def user(self) -> Phone:
        """A phone whose user has just signed up."""
        return await self.edge.phone()

    def complaints(self) -> str:
        """The errors that the replicas have logged."""
        lines = [line for child in self.replicas for line in child.part.log.read_text().splitlines()]
        return "\n".join(line for line in lines if '"level":"error"' in line.replace(" ", ""))

    async def fail(self, kind: str) -> None:
        """Breaks something, and returns when it is mended or mends itself."""
        match kind:
            case "a replica is killed" | "the other replica is killed":
                first, second = self.replicas if kind.startswith("a") else reversed(self.replicas)
                await _until_serving(second)
                await _crash(first)
            case "a replica is told to stop":
                first, second = self.replicas
                await _until_serving(second)
                await first.stop()
                await first.start()
            case "Redis is gone for a while" if self.redis is not None:
                await _crash(self.redis)
                await self.redis.until_ready()
            case "the database crashes":
                await _crash(self.database)
                await self.database.until_ready()

    async def stored(self, user_id: str) -> tuple[int, list[int], int]:
        """What lies in the tables of a user: the feed's position, every record's position, the sum of all versions."""
        async with await psycopg.AsyncConnection.connect(self.database.part.url, row_factory=dict_row) as connection:
            rows = await connection.execute("SELECT * FROM sessions.records WHERE user_id = %s", [user_id])
            records = await rows.fetchall()
            rows = await connection.execute("SELECT position FROM sessions.feeds WHERE user_id = %s", [user_id])
            feed = await rows.fetchone()
        positions = [row["position"] for row in records]
        return feed["position"] if feed else 0, positions, sum(row["version"] for row in records)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """The mesh, up and with its policies set, for as long as the block runs."""
    async with AsyncExitStack() as stack:

        async def start(part: Part) -> Child:
            return await stack.enter_async_context(running(part))

        # As in production: what was acknowledged is on the disk.
        database = await start(postgres_part(directory / "postgres", log=directory / "postgres.log"))
        cache = redis_part(directory / "redis", log=directory / "redis.log")
        redis = await start(cache) if cache else None
        redis_url = cache.url if cache else ""
        config = config_for(directory / "home", database_url=database.part.url, redis_url=redis_url, share_address=True)
        edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
        auth = service_part("auth", config, directory)
        await start(replace(auth, env={**auth.env, "SATCHEL_ADMIN_EMAIL": ADMIN}))
        replicas = []
        for name in ("one", "other"):
            part = service_part("sessions", config, directory)
            replicas.append(await start(replace(part, log=directory / f"{name}.log")))
        port = int(config.sessions_address.rpartition(":")[2])
        started = World(edge=edge, sessions_port=port, database=database, redis=redis, replicas=replicas)
        await _set_policies(edge)
        yield started


async def _set_policies(edge: Edge) -> None:
    """Has the administrator decide how each domain is to be; the first call waits until everything answers."""
    async with asyncio.timeout(PATIENCE):
        while (
            await edge.http.post("/v1/auth/signin", json={"email": "x@example.com", "password": "x"})
        ).is_server_error:
            await asyncio.sleep(0.05)
        administrator = await edge.phone(email=ADMIN)
        for domain, policy in POLICIES.items():
            path, wish = f"/api/v1/sync/policies/1/{domain}", {"resolution_policy": policy}
            while (answer := await administrator.call("PUT", path, json=wish)).status_code == 503:
                await asyncio.sleep(0.05)
            assert answer.status_code == 200, answer.text


async def _until_serving(child: Child) -> None:
    async with asyncio.timeout(PATIENCE):
        while not any('"serving"' in line for line in child.last_lines(sys.maxsize)):
            await asyncio.sleep(0.02)


async def _crash(child: Child) -> None:
    child.kill()
    await child.wait()
    await child.start()
