"""Signing in at the page, and what becomes of a sign-in while the page is open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import jwt
import pyotp
from playwright.async_api import Route, expect

from runtime.call import Principal
from runtime.keys import signing_keys
from services.auth.tokens import AccessTokens
from tests.conftest import Edge
from tests.factories import PASSWORD
from tests.page.conftest import Tab, Tenant
from tests.polling import until

NewTab = Callable[..., Awaitable[Tab]]
# What Chromium says by itself of an answer that is a refusal.
REFUSED = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"


async def kept(tab: Tab) -> dict[str, str]:
    """The tokens of the tab."""
    tokens: dict[str, str] = json.loads(await tab.page.evaluate("() => sessionStorage.getItem('satchel.tokens')"))
    return tokens


async def test_an_administrator_signs_in_and_stays_so_until_signing_out(desk: Tab, tenant: Tenant) -> None:
    page = desk.page
    await expect(page.locator("#who")).to_have_text(tenant.boss.email)
    await expect(page.locator("#tenant")).to_have_text(f"Tenant {tenant.id}")
    assert await page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
    await page.reload()
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    token = (await kept(desk))["access_token"]
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("E-mail")).to_be_visible()
    assert await page.evaluate("() => sessionStorage.length") == 0

    async def dead() -> bool:
        me = await tenant.edge.http.get("/v1/auth/me", headers={"authorization": f"Bearer {token}"})
        return me.status_code == 401

    await until(dead)


async def test_a_wrong_password_is_said_and_the_right_one_still_works(new_tab: NewTab, tenant: Tenant) -> None:
    tab = await new_tab()
    await tab.open()
    await tab.sign_in(tenant.boss.email, "not the password")
    await expect(tab.page.get_by_role("alert")).to_have_text("The e-mail address or the password is not right.")
    await expect(tab.page.get_by_label("Password")).to_be_focused()
    await tab.sign_in(tenant.boss.email)
    await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
    assert tab.complaints == [REFUSED]


async def test_who_is_no_administrator_is_told_so_and_signed_out(tab: Tab, tenant: Tenant) -> None:
    phone = await tenant.phone()
    await tab.open()
    await tab.sign_in(phone.email)
    await expect(tab.page.get_by_role("alert")).to_contain_text(f"{phone.email} is no administrator.")
    await expect(tab.page.locator("#desk")).to_be_hidden()
    assert await tab.page.evaluate("() => sessionStorage.length") == 0


async def test_a_second_factor_is_asked_for_where_there_is_one(new_tab: NewTab, tenant: Tenant) -> None:
    signed_in = await tenant.edge.http.post("/v1/auth/signin", json={"email": tenant.boss.email, "password": PASSWORD})
    bearer = {"authorization": f"Bearer {signed_in.json()['access_token']}"}
    begun = await tenant.edge.http.post("/v1/auth/second-factor", json={"password": PASSWORD}, headers=bearer)
    secret = pyotp.TOTP(begun.json()["secret"])
    confirmed = await tenant.edge.http.post(
        "/v1/auth/second-factor/confirm", json={"code": secret.now()}, headers=bearer
    )
    recovery = confirmed.json()["recovery_codes"][0]
    tab = await new_tab()
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    code = tab.page.get_by_label("Code of the second factor")
    await expect(code).to_be_focused()
    await expect(tab.page.get_by_role("alert")).to_have_text("This account has a second factor: enter its code, too.")
    await code.fill("000000")
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.get_by_role("alert")).to_contain_text("This code is not right")
    await code.fill(recovery)
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
    assert set(tab.complaints) == {REFUSED}


def expired(edge: Edge, token: str) -> str:
    """The same token, of two hours ago."""
    claims = jwt.decode(token, options={"verify_signature": False})
    principal = Principal(
        user_id=UUID(claims["sub"]),
        sign_in_id=UUID(claims["sid"]),
        tenant_id=claims["tenant_id"],
        role=claims["role"],
        tier=claims["tier"],
    )
    return AccessTokens(signing_keys(edge.mesh.config.keys), clock=lambda: time.time() - 7200).mint(principal)


async def keep(tab: Tab, **tokens: str) -> None:
    """Puts other tokens in the place of the tab's."""
    text = json.dumps({**await kept(tab), **tokens})
    await tab.page.evaluate("(text) => sessionStorage.setItem('satchel.tokens', text)", text)


async def test_an_expired_token_is_refreshed_without_a_word(new_tab: NewTab, tenant: Tenant) -> None:
    tab = await new_tab()
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
    before = await kept(tab)
    await keep(tab, access_token=expired(tenant.edge, before["access_token"]))
    refreshes: list[str] = []
    tab.page.on("request", lambda one: refreshes.append(one.url) if one.url.endswith("/v1/auth/refresh") else None)
    await tab.page.reload()
    await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
    await expect(tab.page.locator("#conflicts")).to_contain_text("Nothing waits for a decision.")
    assert len(refreshes) == 1, "all calls wait for one"
    assert (await kept(tab))["refresh_token"] != before["refresh_token"]
    assert set(tab.complaints) == {REFUSED}


async def test_who_signs_out_while_a_token_is_refreshed_stays_signed_out(new_tab: NewTab, tenant: Tenant) -> None:
    tab = await new_tab()
    page = tab.page
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await keep(tab, access_token=expired(tenant.edge, (await kept(tab))["access_token"]))
    leaving, refreshed, used = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def refresh(route: Route) -> None:
        await leaving.wait()
        await route.continue_()
        refreshed.set()

    async def sign_out(route: Route) -> None:
        leaving.set()
        await used.wait()
        await route.continue_()

    await page.route("**/v1/auth/refresh", refresh)
    await page.route("**/v1/auth/signout", sign_out)
    page.on("request", lambda one: used.set() if refreshed.is_set() and "/api/v1/" in one.url else None)
    async with page.expect_request("**/v1/auth/refresh"):
        await page.reload()
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("E-mail")).to_be_visible()
    assert await page.evaluate("() => sessionStorage.length") == 0


async def test_a_sign_in_that_has_ended_is_renewed_over_the_view(new_tab: NewTab, tenant: Tenant) -> None:
    tab = await new_tab()
    page = tab.page
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await page.get_by_label("24 h").check()
    await expect(page.locator("#counts")).to_contain_text("24 hours")

    async def refuse(route: Route) -> None:
        await route.fulfill(status=401, json={"error": {"code": "AUTH_001", "message": "x", "details": []}})

    for path in ("**/api/v1/**", "**/v1/auth/refresh"):
        await page.route(path, refuse)
    await page.get_by_label("7 d").check()
    dialog = page.get_by_role("dialog", name="Sign in again")
    await expect(dialog).to_be_visible()
    await expect(dialog.get_by_label("Password")).to_be_focused()
    await expect(dialog.get_by_label("E-mail")).to_have_value(tenant.boss.email)
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_visible()
    await expect(page.locator("#devices-title")).to_be_attached()
    await page.unroute_all()
    await dialog.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    await expect(dialog).to_be_hidden()
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await expect(page.locator("#counts")).to_contain_text("7 days")
    assert set(tab.complaints) == {REFUSED}
