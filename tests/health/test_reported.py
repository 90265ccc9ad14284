"""Syncs on their way from the phone to the figures: through the real health service, and while that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.parts import running
from runtime import reporting
from runtime.config import Config
from runtime.server import serving
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part
from tests.factories import Phone, change
from tests.polling import until

DEVICE = {"x-device-id": "phone-7", "x-platform": "ios", "x-app-version": "2.1.0", "x-client-time": "1970-01-01T00:00Z"}


async def push(phone: Phone, *changes: dict[str, Any]) -> None:
    answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes}, headers=DEVICE)
    assert answer.is_success, answer.text


@pytest.mark.usefixtures("eager")
async def test_what_a_phone_does_shows_in_its_figures(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge()
    phone = await edge.phone()
    page = change()
    await push(phone, page)
    await push(phone, {**page, "data": {"text": "another"}}, change())
    await push(phone, change(domain="nothing"))
    await phone.call("GET", "/api/v1/sync/pull", headers=DEVICE)

    async def shown() -> bool:
        answer = await phone.call("GET", "/api/v1/sync/devices/phone-7/health")
        return answer.is_success and answer.json()["total_syncs"] == 4

    await until(shown)
    device = (await phone.call("GET", "/api/v1/sync/devices/phone-7/health")).json()
    assert (device["failed_syncs_count"], device["conflicts_encountered"]) == (1, 1)
    assert (device["platform"], device["app_version"]) == ("ios", "2.1.0")
    assert device["clock_skew_ms"] < -30 * 365 * 86_400_000
    metrics = (await phone.call("GET", "/api/v1/sync/health")).json()["metrics"]
    assert (metrics["success_rate"], metrics["total_syncs"]) == (75, 4)
    assert metrics["conflict_rate"] == 25
    assert metrics["dropped_outcomes"] == 0


@pytest.mark.usefixtures("eager")
async def test_while_health_is_killed_again_and_again_nothing_is_lost_or_counted_twice(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "home", database_url=database_url, redis_url=redis_url)
    async with mesh(config, tmp_path) as edge:
        phone, pushed, done = await edge.phone(), 0, False

        async def pushes() -> None:
            nonlocal pushed
            while not done:
                await push(phone, change(), change())
                pushed += 1
                await asyncio.sleep(0.02)  # or the process that is to rise gets no time to

        pushing = asyncio.create_task(pushes())
        for _ in range(3):
            async with running(service_part("health", config, tmp_path)) as health:
                before = await counted(config)

                async def more(before: int = before) -> bool:
                    return await counted(config) > before

                await until(more, 60)
                health.kill()
                await health.wait()
        done = True
        await pushing
        async with running(service_part("health", config, tmp_path)):

            async def all_counted() -> bool:
                return await counted(config) == pushed

            await until(all_counted, 60)
        assert await counted(config, "items") == 2 * pushed


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(reporting, "INTERVAL", 0.05)
    monkeypatch.setattr(reporting, "LONGEST_PAUSE", 0.2)


@asynccontextmanager
async def mesh(config: Config, directory: Path) -> AsyncIterator[Edge]:
    """Auth and sessions in this process, and the edge."""
    async with (
        serving(config, {name: ALL[name] for name in ("auth", "sessions")}),
        envoy_for(config, directory) as edge,
    ):
        yield edge


async def counted(config: Config, name: str = "syncs") -> int:
    """What health has counted, whether it runs or not."""
    async with await psycopg.AsyncConnection.connect(config.database_url) as connection:
        found = await connection.execute(f"SELECT coalesce(sum({name}), 0)::int8 FROM health.minutes")
        return int((await found.fetchone() or [0])[0])
