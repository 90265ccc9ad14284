"""A browser in front of the operator's page, and a tenant whose phones it shows."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import randrange
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from playwright.async_api import Browser, Page, async_playwright, expect
from satchel.health.v1 import health_pb2 as pb
from satchel.health.v1 import health_pb2_grpc

from runtime.clock import utc_now
from runtime.database import database
from services.auth.accounts_store import AccountStore
from services.auth.roles_domain import Roles
from tests.auth.callers import service_headers
from tests.conftest import Edge
from tests.factories import PASSWORD, Phone

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Two cores may be busy with much else.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)


@dataclass
class Tab:
    """The page in a browser, and what it complains about."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors on the console, uncaught ones, and what the Content-Security-Policy has stopped."""

    def open(self, path: str = "/") -> Awaitable[Any]:
        return self.page.goto(path)

    async def sign_in(self, email: str, password: str = PASSWORD) -> None:
        await self.page.get_by_label("E-mail").fill(email)
        await self.page.get_by_label("Password").fill(password)
        await self.page.get_by_role("button", name="Sign in").click()

    def tile(self, metric: str) -> Any:
        return self.page.locator(f"[data-metric={metric}]")


@dataclass(frozen=True)
class Tenant:
    """A tenant of a test's own."""

    edge: Edge
    id: int
    boss: Phone
    """Its administrator, by an account and a password."""

    async def phone(self) -> Phone:
        return await self.edge.phone(tenant_id=self.id)

    async def report(self, phone: Phone, *, device_id: str = "phone-1", **counts: Any) -> None:
        """What another service tells of a device of the phone's user."""
        time = Timestamp()
        time.GetCurrentTime()
        outcome = {"tenant_id": self.id, "user_id": phone.user_id, "device_id": device_id, "time": time, **counts}
        request = pb.ReportOutcomesRequest(reporter=str(uuid4()), number=1, outcomes=[pb.Outcome(**outcome)])
        async with grpc.aio.insecure_channel(self.edge.mesh.address("health")) as channel:
            await health_pb2_grpc.HealthServiceStub(channel).ReportOutcomes(
                request, metadata=tuple(service_headers(self.edge, "sessions").items())
            )


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        yield browser
        await browser.close()


@pytest.fixture
async def tenant(edge: Edge) -> Tenant:
    id = randrange(1000, 2**31)
    boss = await edge.phone(tenant_id=id)
    async with database(edge.mesh.config.database_url, connections=1, name="test") as db:
        await Roles(AccountStore(db), now=utc_now).give(boss.email, "admin")
    return Tenant(edge, id, boss)


@pytest.fixture
async def new_tab(browser: Browser, edge: Edge) -> AsyncIterator[Callable[..., Awaitable[Tab]]]:
    """Opens tabs that share nothing; `given` is of the window, such as its size."""
    async with AsyncExitStack() as stack:

        async def make(**given: Any) -> Tab:
            context = await browser.new_context(**{"base_url": edge.url, **given})
            stack.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE)
            tab = Tab(await context.new_page())
            tab.page.on("console", lambda said: tab.complaints.append(said.text) if said.type == "error" else None)
            tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
            return tab

        yield make


@pytest.fixture
async def tab(new_tab: Callable[..., Awaitable[Tab]]) -> AsyncIterator[Tab]:
    """A tab that must not have complained of anything in the end."""
    tab = await new_tab()
    yield tab
    assert tab.complaints == []


@pytest.fixture
async def desk(tab: Tab, tenant: Tenant) -> Tab:
    """A tab whose page is the administrator's."""
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
    return tab
