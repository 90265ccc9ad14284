"""The mesh as production starts it: real PostgreSQL, Redis, Envoy and services, on free ports."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import psycopg
import pytest
from argon2.profiles import CHEAPEST
from hypothesis import HealthCheck, settings
from psycopg import sql

from deploy import sockets
from deploy.edge import envoy_part
from deploy.envoy.edge import bootstrap
from deploy.parts import ROOT, Child, Part, running
from deploy.postgres import postgres
from deploy.redis import redis
from deploy.sockets import free_ports
from runtime.call import Principal
from runtime.config import SERVICES, Config
from runtime.keys import signing_keys
from runtime.migrations import migrate
from runtime.server import serving
from runtime.telemetry import log_to_stderr
from services.auth import passwords
from services.auth.app import service as auth
from services.auth.tokens import AccessTokens
from services.garmin.app import service as garmin
from services.health.app import service as health
from services.sessions.app import service as sessions
from services.uploads.app import service as uploads
from services.websocket.app import service as websocket
from tests.factories import Phone

ALL = {
    "auth": auth,
    "sessions": sessions,
    "uploads": uploads,
    "health": health,
    "garmin": garmin,
    "websocket": websocket,
}
# A service answers 401 to somebody without a token, and the edge 503 while it does not know that the service is up.
REACHES = {
    "auth": "/v1/auth/me",
    "sessions": "/api/v1/sync/pull",
    "uploads": "/api/v1/uploads/limits",
    "health": "/api/v1/sync/health",
}
TEMPLATE = "satchel_template"
# Of a hash of a password in production, before the tests make them cheap.
COST = passwords.COST
# Nobody is there: what has no stand-in for Garmin must not find the real one.
NO_GARMIN = "http://127.0.0.1:9"
# Runs beside this one take other ports: nobody borrows that of a part which is being restarted.
_run, _runs = (
    int(os.environ.get(f"PYTEST_XDIST_WORKER{name}", default).removeprefix("gw"))
    for name, default in (("", "0"), ("_COUNT", "1"))
)
sockets.PORTS = sockets.PORTS[_run::_runs]

settings.register_profile(
    "wire", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("wire")


@dataclass(frozen=True)
class Mesh:
    """Every service in this process, and the settings they run under."""

    config: Config

    def address(self, service: str) -> str:
        return self.config.address(service)


@dataclass(frozen=True)
class Edge:
    """A mesh behind Envoy."""

    mesh: Mesh
    url: str
    port: int
    http: httpx.AsyncClient
    log: Path
    envoy: Child
    """Its process, to be killed."""

    @property
    def target(self) -> str:
        """Where gRPC callers connect."""
        return f"127.0.0.1:{self.port}"

    async def phone(self, **account: Any) -> Phone:
        """A phone whose user has just signed up."""
        return await Phone.signed_up(self.http, **account)

    async def administrator(self, **account: Any) -> Phone:
        """A phone whose user administers the tenant of its account."""
        phone = await self.phone(**account)
        claims = jwt.decode(phone.access_token, options={"verify_signature": False})
        principal = Principal(
            user_id=UUID(claims["sub"]),
            sign_in_id=UUID(claims["sid"]),
            tenant_id=claims["tenant_id"],
            role="admin",
            tier=claims["tier"],
        )
        token = AccessTokens(signing_keys(self.mesh.config.keys)).mint(principal)
        return replace(phone, access_token=token)


@pytest.fixture(scope="session", autouse=True)
def logs() -> None:
    log_to_stderr("tests", "warning")


@pytest.fixture(scope="session", autouse=True)
def hashes() -> Iterator[None]:
    """Cheap ones, but for `costly_hashes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "COST", CHEAPEST)
        yield


@pytest.fixture
def costly_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of production, for a test of what they cost."""
    monkeypatch.setattr(passwords, "COST", COST)


@pytest.fixture(scope="session")
async def server_url() -> AsyncIterator[str]:
    """A PostgreSQL with the migrated template database on it."""
    # Not in pytest's own directory: each run of pytest closes that to other accounts, and PostgreSQL has its own.
    # What a test stores need not survive a power cut.
    with TemporaryDirectory(prefix="satchel-") as directory:
        async with postgres(Path(directory), settings={"fsync": "off"}) as url:
            _make_template(url)
            yield url


def _make_template(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    for service in SERVICES:
        migrate(url_of(url, TEMPLATE), service)


@pytest.fixture(scope="session")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with redis(tmp_path_factory.mktemp("redis")) as url:
        yield url or ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what a first try failed of, though the second one may have passed."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


def url_of(server_url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return server_url.replace("/satchel?", f"/{database}?", 1)


@pytest.fixture(scope="session")
def new_database(server_url: str) -> Callable[[], str]:
    """Makes databases with every schema in place and nothing in them."""

    def make() -> str:
        name = f"test_{uuid4().hex}"
        with psycopg.connect(server_url, autocommit=True) as connection:
            identifiers = sql.Identifier(name), sql.Identifier(TEMPLATE)
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(*identifiers))
        return url_of(server_url, name)

    return make


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """A fresh database of this test's own."""
    return new_database()


def config_for(home: Path, **given: Any) -> Config:
    """Settings on free ports, rate limits off unless asked for."""
    fields = [*(f"{name}_address" for name in SERVICES), "websocket_listen"]
    addresses = {field: f"127.0.0.1:{port}" for field, port in zip(fields, free_ports(len(fields)), strict=True)}
    return Config(
        **{
            "home": home,
            "rate_limits": "off",
            "share_address": False,
            "garmin_url": NO_GARMIN,
            **addresses,
            **given,
        }
    )


@asynccontextmanager
async def edge_of(config: Config, directory: Path) -> AsyncIterator[Edge]:
    """Every service under `config`, with an Envoy in front, for as long as the block runs."""
    async with serving(config, ALL), envoy_for(config, directory) as edge:
        await until_healthy(edge)
        yield edge


@asynccontextmanager
async def envoy_for(
    config: Config, directory: Path, *, trusted_hops: int = 0, otlp: tuple[str, int] | None = None
) -> AsyncIterator[Edge]:
    """An Envoy in front of services that run, or will run, elsewhere."""
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    addresses = {name: config.address(name).rpartition(":") for name in SERVICES}
    addresses["websocket"] = config.websocket_listen.rpartition(":")
    admin, url, log = directory / "admin.sock", f"http://127.0.0.1:{port}", directory / "envoy.log"
    content = bootstrap(
        listen=("127.0.0.1", port),
        admin_path=str(admin),
        services={name: (host, int(number)) for name, (host, _, number) in addresses.items()},
        descriptor_set=ROOT / "gen" / "satchel.pb",
        trusted_hops=trusted_hops,
        otlp=otlp,
    )
    part = envoy_part(content, config=directory / "envoy.json", admin=admin, url=url, log=log)
    async with AsyncExitStack() as stack:
        envoy = await stack.enter_async_context(running(part))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
        yield Edge(Mesh(config), url, port, http, log, envoy)


def service_part(name: str, config: Config, directory: Path, **settings: str) -> Part:
    """A service as a process of its own, as production runs it but for cheap hashes of passwords.

    `settings` are further ones by their names.
    """
    addresses = {f"SATCHEL_{one.upper()}_ADDRESS": config.address(one) for one in SERVICES}
    addresses["SATCHEL_WEBSOCKET_LISTEN"] = config.websocket_listen
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SATCHEL_HOME": str(config.home),
        "SATCHEL_DATABASE_URL": config.database_url,
        "SATCHEL_REDIS_URL": config.redis_url,
        "SATCHEL_RATE_LIMITS": config.rate_limits,
        "SATCHEL_GARMIN_URL": config.garmin_url,
        "SATCHEL_SHARE_ADDRESS": str(config.share_address),
        **addresses,
        **{f"SATCHEL_{field.upper()}": text for field, text in settings.items()},
    }
    module = "services" if name == "all" else f"services.{name}"
    hashing = ["tests.cheap_hashes"] if name in ("all", "auth") else []
    command = [sys.executable, "-m", *hashing, module]
    return Part(name=name, command=command, log=directory / f"{name}.log", env=environment)


async def until_healthy(edge: Edge) -> None:
    """Returns when the services are up, and the edge knows it too."""
    async with asyncio.timeout(30):
        for path in ("/healthz", *REACHES.values()):
            while (await edge.http.get(path)).status_code not in (200, 401):
                await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
async def edge(
    new_database: Callable[[], str], redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    """One mesh for all tests that bring users of their own; rate limits are off.

    In a process of its own: this one's loop stands still while a test without `async` runs, and Envoy would notice.
    """
    directory = tmp_path_factory.mktemp("edge")
    config = config_for(directory / "home", database_url=new_database(), redis_url=redis_url)
    async with running(service_part("all", config, directory)), envoy_for(config, directory) as started:
        await until_healthy(started)
        yield started


@pytest.fixture
async def phone(edge: Edge) -> Phone:
    """A phone whose user has just signed up."""
    return await edge.phone()


@pytest.fixture
async def own_edge(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Edge]]]:
    """Starts a mesh of this test's own, with the settings it is given."""
    async with AsyncExitStack() as stack:

        async def start(**given: Any) -> Edge:
            config = config_for(tmp_path / "home", **{"database_url": database_url, "redis_url": redis_url, **given})
            return await stack.enter_async_context(edge_of(config, tmp_path))

        yield start
