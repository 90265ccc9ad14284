"""A mesh whose Garmin is a stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import garminconnect.client
import pytest

from deploy.parts import running
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.garmin.standin import StandIn, standing_in


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the library does not wait as a reader would before it sends a form."""
    for module in (garminconnect.client, getattr(garminconnect.client, "sso", None)):
        for name in ("WIDGET_DELAY_MIN_S", "WIDGET_DELAY_MAX_S", "MOBILE_DELAY_MIN_S", "MOBILE_DELAY_MAX_S"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 0.0)


@pytest.fixture(scope="session")
def standin() -> Iterator[StandIn]:
    """Shared: a test brings accounts of its own, and has no trouble with all of Garmin."""
    with standing_in() as started:
        yield started


@pytest.fixture(scope="session")
async def edge(
    new_database: Callable[[], str],
    redis_url: str,
    standin: StandIn,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Edge]:
    """One mesh, in a process of its own, for all tests that leave Garmin well. Its log is beside Envoy's."""
    directory = tmp_path_factory.mktemp("garmin")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url, garmin_url=standin.url)
    part = service_part("all", config, directory, log_level="debug")
    async with running(part), envoy_for(config, directory) as started:
        await until_healthy(started)
        yield started


@pytest.fixture
def own_standin() -> Iterator[StandIn]:
    """For a test that makes trouble."""
    with standing_in() as started:
        yield started


@pytest.fixture
async def own_garmin_edge(
    own_edge: Callable[..., Awaitable[Edge]], own_standin: StandIn
) -> Callable[..., Awaitable[Edge]]:
    """Starts a mesh of this test's own in front of a stand-in of its own."""

    async def start(**given: Any) -> Edge:
        return await own_edge(garmin_url=own_standin.url, **given)

    return start
