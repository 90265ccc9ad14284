"""The page of the reference in a browser: it shows the API, calls it with a token, and asks nobody else."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest

from tests.conftest import Edge
from tests.factories import Phone

playwright_api = pytest.importorskip("playwright.async_api", reason="there is nothing to drive a browser with")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
# Milliseconds; the page takes two seconds of a machine that may be busy with much else.
PATIENCE = 120_000


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
async def test_somebody_finds_an_rpc_on_the_page_and_calls_it_with_a_token(edge: Edge, phone: Phone) -> None:
    complaints: list[str] = []
    asked: list[str] = []
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        page = await browser.new_page(base_url=edge.url)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        await page.goto("/docs#/AuthService/GetMe")
        await page.get_by_role("button", name="Authorize").first.click()
        await page.locator(".auth-container input").fill(phone.access_token)
        await page.locator(".auth-btn-wrapper .authorize").click()
        await page.locator(".auth-btn-wrapper .btn-done").click()
        rpc = page.locator("#operations-AuthService-GetMe")
        await rpc.get_by_role("button", name="Execute").click()
        answer = rpc.locator(".live-responses-table .highlight-code").first
        await playwright_api.expect(answer).to_contain_text(phone.email, timeout=PATIENCE)
        await browser.close()
    assert complaints == []
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        f"127.0.0.1:{edge.port}"
    }
