"""The page for everybody: hostile names, a narrow screen, the dark, the keyboard alone, and how much it weighs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from tests.page.conftest import Tab, Tenant

NewTab = Callable[..., Awaitable[Tab]]
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
MAX_PAGE_BYTES = 200_000


async def test_what_a_device_calls_itself_is_shown_and_never_run(desk: Tab, tenant: Tenant) -> None:
    page, phone = desk.page, await tenant.phone()
    version, system = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
    await tenant.report(phone, syncs=1, app_version=version, os_version=system, network_type="&amp;", platform="<b>")
    await expect(page.locator("#devices tbody")).to_contain_text(f"<b> {version}")
    await expect(page.locator("#devices .versions")).to_contain_text(version)
    await page.get_by_role("button", name="phone-1 of").click()
    await expect(page.locator("#devices .history")).to_contain_text(system)
    await expect(page.locator("#devices .history")).to_contain_text("&amp;")
    assert await page.locator("#devices script, #devices img, #devices b").count() == 0


async def test_names_that_no_service_would_let_in_are_harmless_too(new_tab: NewTab, tenant: Tenant) -> None:
    """As if a service had let them in."""
    tab = await new_tab()
    device = {"device_id": HOSTILE, "user_id": HOSTILE, "health_score": 50, "total_syncs": 1, "platform": HOSTILE}
    conflict = {"id": HOSTILE, "mobile_id": HOSTILE, "domain": HOSTILE, "user_id": HOSTILE, "created_at": "2026-01-01"}
    upload = {"filename": HOSTILE, "user_id": HOSTILE, "status": "active", "created_at": "2026-01-01"}
    answers: dict[str, Any] = {
        "**/api/v1/sync/devices?*": {"devices": [device], "total": 1, "app_versions": [{"app_version": HOSTILE}]},
        "**/api/v1/sync/conflicts?*": {"conflicts": [conflict], "total": 1},
        "**/api/v1/uploads/active?*": {"uploads": [{**upload, "expires_at": "2026-01-01"}], "total": 1},
        "**/healthz": {"parts": [{"name": HOSTILE, "state": HOSTILE, "latency_ms": 1, "needed": True}]},
    }

    def answering(body: Any) -> Callable[[Route], Awaitable[None]]:
        return lambda route: route.fulfill(json=body)

    for path, body in answers.items():
        await tab.page.route(path, answering(body))
    await tab.open()
    await tab.sign_in(tenant.boss.email)
    for section in ("devices", "conflicts", "uploads", "mesh"):
        await expect(tab.page.locator(f"#{section}")).to_contain_text(HOSTILE)
    assert await tab.page.locator("main img, main script").count() == 0
    assert "taken" not in await tab.page.title()
    assert tab.complaints == []


async def filled(tenant: Tenant) -> None:
    phone = await tenant.phone()
    for number in range(3):
        name = f"a-device-with-quite-a-long-name-{number}"
        await tenant.report(phone, device_id=name, syncs=5, failed_syncs=2, items=9, conflicts=3, app_version="1.2.3")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_wider_than_the_screen(new_tab: NewTab, tenant: Tenant, width: int, scheme: str) -> None:
    await filled(tenant)
    tab = await new_tab(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = tab.page
    await tab.open()
    await wide_enough(page, width)
    await tab.sign_in(tenant.boss.email)
    await expect(page.locator("#devices tbody tr")).to_have_count(3)
    await expect(page.locator("#plots svg rect").first).to_be_attached()
    await page.locator("#devices tbody button").first.click()
    await expect(page.locator(".history svg")).to_be_visible()
    await page.locator("#plots summary").first.click()
    for tile in await page.locator(".tile summary").all():
        await tile.click()
    await wide_enough(page, width)
    ground, text = await page.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (lightness(ground) > lightness(text)) == (scheme == "light")
    assert contrast(ground, text) > 7
    for faint in (".muted", ".badge[data-state=critical]", ".badge[data-state=warning]", ".problem, .badge"):
        assert await contrast_of(page, faint) >= 4.5, faint
    assert tab.complaints == []


async def wide_enough(page: Page, width: int) -> None:
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= width


async def contrast_of(page: Page, selector: str) -> float:
    found = page.locator(selector).locator("visible=true").first
    ground, text = await found.evaluate(
        """(one) => {
          const text = getComputedStyle(one).color;
          while (getComputedStyle(one).backgroundColor === "rgba(0, 0, 0, 0)") one = one.parentElement;
          return [getComputedStyle(one).backgroundColor, text];
        }"""
    )
    return contrast(ground, text)


def lightness(colour: str) -> float:
    """WCAG 2.2, relative luminance of rgb(r, g, b)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((lightness(one), lightness(other)))
    return (light + 0.05) / (dark + 0.05)


async def test_the_keyboard_alone_is_enough(tab: Tab, tenant: Tenant) -> None:
    await filled(tenant)
    page, press = tab.page, tab.page.keyboard.press
    await tab.open()
    await expect(page.get_by_label("E-mail")).to_be_focused()
    await page.keyboard.type(tenant.boss.email)
    await press("Tab")
    await page.keyboard.type("securepassword123")
    await press("Enter")
    await expect(page.locator("#devices tbody tr")).to_have_count(3)
    await expect(page.locator("#main")).to_be_focused()
    await page.reload()
    await expect(page.locator("#devices tbody tr")).to_have_count(3)
    await press("Tab")
    await expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    seen: list[str] = []
    for _ in range(60):
        focused = await page.evaluate(
            """() => {
              const one = document.activeElement;
              const style = getComputedStyle(one.matches(".window input") ? one.nextElementSibling : one);
              const name = one.textContent.trim().slice(0, 40) || one.value || one.id;
              return [name, style.outlineStyle, one.getAttribute("role")];
            }"""
        )
        assert focused[1] != "none", f"nobody sees that {focused[0]} has the focus"
        seen.append(focused[2] or focused[0])
        if focused[2] == "slider" and seen.count("slider") == 1:
            reading = page.locator("#plots .reading").first
            before = await reading.inner_text()
            await press("Home")
            await expect(reading).not_to_have_text(before)
            oldest = await reading.inner_text()
            await press("End")
            await expect(reading).not_to_have_text(oldest)
            # Not as before: a minute may have begun meanwhile.
            assert await page.evaluate(
                """() => {
                  const one = document.activeElement;
                  const reading = document.querySelector("#plots .reading");
                  return one.ariaValueNow === one.ariaValueMax && one.ariaValueText === reading.textContent;
                }"""
            )
        if focused[0].startswith("a-device"):
            break
        await press("Tab")
    assert seen.count("slider") == 3
    assert {"Devices", "Sign out", "1"} <= set(seen)
    await press("Enter")
    await expect(page.locator(".history svg")).to_be_visible()
    focused_name = await page.evaluate("() => document.activeElement.textContent")
    assert focused_name.startswith("a-device"), "the focus stays where it was"


async def test_the_window_is_chosen_by_the_arrow_keys(desk: Tab) -> None:
    await desk.page.get_by_label("1 h").focus()
    await desk.page.keyboard.press("ArrowRight")
    await expect(desk.page.get_by_label("24 h")).to_be_checked()
    await expect(desk.page.locator("#counts")).to_contain_text("24 hours")


async def test_who_wants_no_motion_gets_none(new_tab: NewTab, tenant: Tenant) -> None:
    for motion, name in (("no-preference", "breathe"), ("reduce", "none")):
        tab = await new_tab(reduced_motion=motion)
        await tab.open()
        await tab.sign_in(tenant.boss.email)
        await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
        await expect(tab.page.locator("#live .dot")).to_have_css("animation-name", name)


async def test_the_whole_page_is_light_and_soon_there(tab: Tab, tenant: Tenant) -> None:
    await tab.open()
    await expect(tab.page.get_by_label("E-mail")).to_be_visible()
    sizes = await tab.page.evaluate(
        """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
          .map((one) => [one.name, one.transferSize])"""
    )
    assert len(sizes) >= 15
    assert all(size > 0 for _, size in sizes)
    assert sum(size for _, size in sizes) <= MAX_PAGE_BYTES
    assert len({name for name, _ in sizes}) == len(sizes), "nothing is loaded twice"
    # Loaded again from what the browser has kept, asked for by tags.
    await tab.page.reload()
    await expect(tab.page.get_by_label("E-mail")).to_be_visible()
    paints = await tab.page.evaluate("() => performance.getEntriesByType('paint').map((one) => one.startTime)")
    assert paints
    assert min(paints) < 5_000, "a second on a machine that does nothing else"


async def test_its_policy_stops_what_is_not_of_the_page(new_tab: NewTab) -> None:
    tab = await new_tab()
    await tab.open()
    await tab.page.evaluate(
        """() => {
          const frame = document.createElement("iframe");
          frame.src = "https://example.com/";
          document.body.append(frame);
        }"""
    )
    with pytest.raises(Exception, match="TrustedHTML"):
        await tab.page.evaluate("() => { document.body.innerHTML = '<b>x</b>' }")
    assert any("Content Security Policy" in one for one in tab.complaints), tab.complaints
