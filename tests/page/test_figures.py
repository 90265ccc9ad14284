"""The page's figures: none yet, live ones, alarming ones, and what it shows while nothing reaches it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from playwright.async_api import Route, expect

from tests.page.conftest import Tab, Tenant

NewTab = Callable[..., Awaitable[Tab]]


async def test_a_tenant_without_a_sync_is_told_that_there_is_no_data_yet(desk: Tab) -> None:
    page = desk.page
    await expect(page.locator("#counts")).to_contain_text("No syncs in the last hour yet.")
    await expect(desk.tile("success_rate").locator(".value")).to_have_text("–")
    await expect(desk.tile("success_rate").locator(".badge")).to_have_text("No data yet")
    for section, text in {
        "plots": "Nothing happened in this window yet.",
        "alerts": "No alerts: every figure is within its threshold.",
        "conflicts": "Nothing waits for a decision.",
        "devices": "No device has synced yet.",
        "uploads": "No upload is on its way.",
    }.items():
        await expect(page.locator(f"#{section}").get_by_text(text)).to_be_visible()
    await expect(page.locator("#mesh li")).to_have_count(9)
    await expect(page.locator("#mesh .badge[data-state=critical]")).to_have_count(0)


async def test_a_number_changes_by_itself_when_a_phone_has_synced(desk: Tab, tenant: Tenant) -> None:
    page, phone = desk.page, await tenant.phone()
    await expect(page.locator("#counts")).to_contain_text("No syncs")
    await tenant.report(phone, syncs=40, items=200, conflicts=1, duration_ms=1234, platform="ios", app_version="4.2.1")
    await expect(page.locator("#counts")).to_contain_text("40 syncs by 1 device in the last hour.")
    await expect(desk.tile("success_rate").locator(".value")).to_have_text("100")
    await expect(desk.tile("conflict_rate").locator(".value")).to_have_text("0.5")
    await expect(desk.tile("avg_sync_duration_ms").locator(".figure")).to_have_text("30.9 ms")
    await expect(page.locator("#health")).to_have_text("Healthy")
    await expect(page.locator("#plots .reading").first).to_contain_text("40 syncs, 0 failed")
    await expect(page.locator("#devices")).to_contain_text("ios 4.2.1")
    await tenant.report(phone, syncs=10, failed_syncs=10)
    await expect(page.locator("#counts")).to_contain_text("50 syncs")
    await expect(desk.tile("success_rate").locator(".value")).to_have_text("80")
    await expect(desk.tile("success_rate").locator(".badge")).to_have_text("Critical")
    await expect(page.locator("#health")).to_have_text("Degraded")
    await expect(page.locator("#alerts li")).to_contain_text("threshold 95 %")
    assert await page.title() == "(1) Satchel"


async def test_every_figure_has_a_unit_and_says_where_it_is_from(desk: Tab, tenant: Tenant) -> None:
    await tenant.report(await tenant.phone(), syncs=4, items=9, duration_ms=80)
    await expect(desk.page.locator("#counts")).to_contain_text("4 syncs")
    tiles = desk.page.locator(".tile")
    await expect(tiles).to_have_count(6)
    for tile in await tiles.all():
        metric = await tile.get_attribute("data-metric")
        assert (await tile.locator(".unit").inner_text()).strip()
        source = tile.locator("details p")
        await expect(source).to_be_hidden()
        await tile.locator("summary").click()
        await expect(source).to_contain_text(f"metrics.{metric} of GET /api/v1/sync/health?hours=1")
    await desk.page.get_by_label("7 d").check()
    await expect(desk.tile("success_rate").locator("details p")).to_contain_text("Of the last 7 days")


async def test_the_window_is_changed_and_the_plots_with_it(desk: Tab, tenant: Tenant) -> None:
    page = desk.page
    await tenant.report(await tenant.phone(), syncs=4, items=9, duration_ms=80)
    title = page.locator("#plots h3").first
    await expect(title).to_have_text("Syncs per minute")
    for label, words in (("24 h", "24 hours"), ("7 d", "7 days")):
        await page.get_by_label(label).check()
        await expect(title).to_have_text("Syncs per hour")
        await expect(page.locator("#counts")).to_contain_text(f"4 syncs by 1 device in the last {words}")
        await expect(page.locator("#plots .reading").first).to_contain_text("4 syncs")
    await page.locator("#plots summary").click()
    row = page.locator("#plots tbody tr")
    await expect(row).to_have_count(1)
    assert (await row.locator("td").all_inner_texts())[:4] == ["4", "0", "100", "9"]


async def test_a_cursor_on_a_plot_outlives_a_change_of_the_window(desk: Tab, tenant: Tenant) -> None:
    page = desk.page
    await tenant.report(await tenant.phone(), syncs=4)
    title = page.locator("#plots h3").first
    await page.get_by_label("7 d").check()
    await expect(title).to_have_text("Syncs per hour")
    await page.locator("#plots .plot").first.hover()
    await expect(page.locator("#plots .cursor")).to_have_count(3)
    # By no pointer, which would leave the plot.
    await page.get_by_label("1 h").evaluate("choice => choice.click()")
    await expect(title).to_have_text("Syncs per minute")
    await expect(page.locator("#plots .reading").first).to_contain_text("4 syncs")
    await expect(page.locator("#plots .state")).to_be_empty()


async def test_while_nothing_reaches_it_the_page_says_so_and_comes_back(new_tab: NewTab, tenant: Tenant) -> None:
    tab, phone = await new_tab(), await tenant.phone()
    page = tab.page
    await tenant.report(phone, syncs=7)
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(page.locator("#counts")).to_contain_text("7 syncs")

    async def cut(route: Route) -> None:
        await route.abort()

    await page.route("**/api/v1/**", cut)
    await page.get_by_label("24 h").check()
    await expect(page.locator("#live-text")).to_have_text("Not live")
    await expect(page.locator("#stale")).to_contain_text("Not live: these figures are from")
    await expect(page.locator("#plots .state")).to_contain_text("The server cannot be reached.")
    await expect(page.locator("#counts")).to_contain_text("7 syncs")
    await tenant.report(phone, syncs=1)
    await page.unroute_all()
    await page.get_by_role("button", name="Try now").click()
    await expect(page.locator("#counts")).to_contain_text("8 syncs by 1 device in the last 24 hours.")
    await expect(page.locator("#stale")).to_be_hidden()
    await expect(page.locator("#plots .state")).to_be_empty()
    assert all("net::ERR_FAILED" in one for one in tab.complaints), tab.complaints


async def test_a_part_that_is_down_is_shown_as_down(new_tab: NewTab, tenant: Tenant) -> None:
    tab = await new_tab()

    async def half(route: Route) -> None:
        part = {"name": "uploads", "state": "down", "latency_ms": 0, "needed": True}
        await route.fulfill(status=503, json={"status": "down", "parts": [part]})

    await tab.page.route("**/healthz", half)
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    await expect(tab.page.locator("#mesh li")).to_have_text(re.compile("uploads.*down"))
    await expect(tab.page.locator("#mesh .badge")).to_have_attribute("data-state", "critical")


async def test_devices_are_listed_by_score_and_one_opens_its_history(desk: Tab, tenant: Tenant) -> None:
    page, phone = desk.page, await tenant.phone()
    await tenant.report(phone, device_id="good", syncs=9, app_version="2.0.0", platform="ios", clock_skew_ms=-250.0)
    await tenant.report(phone, device_id="bad", syncs=9, failed_syncs=9, app_version="1.0.0", platform="ios")
    rows = page.locator("#devices tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("bad")
    await page.get_by_role("button", name="good of").click()
    history = page.locator("#devices .history")
    await expect(history.locator(".reading")).to_contain_text("9 syncs, 0 failed")
    await expect(history).to_contain_text("250 ms behind")
    await expect(history).to_contain_text(phone.user_id)
    await expect(page.get_by_role("button", name="good of")).to_have_attribute("aria-expanded", "true")
    await page.get_by_role("button", name="ios 1.0.0").click()
    await expect(rows).to_have_count(1)
    await expect(rows.first).to_contain_text("bad")
    await page.get_by_role("button", name="Version 1.0.0: show all").click()
    await expect(page.get_by_role("button", name="bad of")).to_be_visible()
    await expect(page.get_by_role("button", name="good of")).to_be_visible()


async def test_devices_are_turned_page_by_page(desk: Tab, tenant: Tenant) -> None:
    page, phone = desk.page, await tenant.phone()
    for number in range(23):
        await tenant.report(phone, device_id=f"phone-{number:02}", syncs=1)
    await desk.page.reload()
    pages = page.get_by_role("navigation", name="Pages of devices")
    rows = page.locator("#devices tbody tr")
    await expect(rows).to_have_count(20)
    await expect(pages).to_contain_text("1–20 of 23")
    await pages.get_by_role("button", name="Next").click()
    await expect(rows).to_have_count(3)
    await expect(pages).to_contain_text("21–23 of 23")
    await pages.get_by_role("button", name="Previous").click()
    await expect(rows).to_have_count(20)
