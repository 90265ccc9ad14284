"""The operator's page in a real browser: when it first shows something, and how much of it crosses the wire."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any, Final

from playwright.async_api import Browser, async_playwright

from bench.report import Line
from bench.servers import LOOPBACK, PORT, server
from bench.stack import Stack

LOADS: Final = 9
FLOOR: Final = "a page of one word"
MOST_SECONDS: Final = 1.0
MOST_KB: Final = 200.0

# Of a machine without a display; none of it makes a page faster.
_ARGUMENTS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_FIRST_PAINT: Final = """() => new Promise(resolve => new PerformanceObserver(list => {
    for (const entry of list.getEntriesByName('first-contentful-paint')) resolve(entry.startTime)
}).observe({type: 'paint', buffered: true}))"""


async def lines(running: Stack, directory: Path) -> list[Line]:
    """None without a chromium on PATH."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return []
    paints: dict[str, list[float]] = {"page": [], "floor": []}
    sizes: list[int] = []
    files = directory / "page"
    files.mkdir()
    (files / "index.html").write_text("<!doctype html><title>Page</title><p>Page")
    command = "http.server", PORT, "--bind", LOOPBACK, "--directory", str(files)
    async with server(directory, *command) as bare, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*_ARGUMENTS])
        for _ in range(LOADS):
            paints["floor"].append((await _load(browser, f"http://{bare}/"))[0])
            paint, size = await _load(browser, f"http://{running.addresses['envoy']}/")
            paints["page"].append(paint)
            sizes.append(size)
        await browser.close()
    paint, kilobytes = median(paints["page"]), median(sizes) / 1000
    return [
        Line(
            name="First paint of the operator's page, nothing cached",
            figure=f"{paint:.0f} ms",
            floor=f"{median(paints['floor']):.0f} ms ({FLOOR})",
            spread=f"{min(paints['page']):.0f} to {max(paints['page']):.0f} ms",
            target=f"at most {MOST_SECONDS * 1000:.0f} ms",
            met=paint <= MOST_SECONDS * 1000,
        ),
        Line(
            name="What of it crosses the wire until it is at rest",
            figure=f"{kilobytes:.1f} KB",
            target=f"at most {MOST_KB:g} KB",
            met=kilobytes <= MOST_KB,
        ),
    ]


async def _load(browser: Browser, url: str) -> tuple[float, int]:
    """Milliseconds until something was to be seen, and the bytes of all answers, heads included."""
    context = await browser.new_context()  # with an empty cache
    try:
        page = await context.new_page()
        protocol = await context.new_cdp_session(page)
        await protocol.send("Network.enable")
        size = 0

        def count(event: dict[str, Any]) -> None:
            nonlocal size
            size += int(event["encodedDataLength"])

        protocol.on("Network.loadingFinished", count)
        await page.goto(url, wait_until="networkidle")
        return await page.evaluate(_FIRST_PAINT), size
    finally:
        await context.close()
