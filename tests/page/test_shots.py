import asyncio, json, random, sys, time
from datetime import timedelta
from google.protobuf.timestamp_pb2 import Timestamp
from playwright.async_api import expect
from satchel.health.v1 import health_pb2 as pb
from tests.factories import change
from tests.sending import Sending, some_file


async def test_shots(new_tab, tenant, edge):
    random.seed(4)
    phones = [await tenant.phone() for _ in range(4)]
    names = [
        "pixel-9-ada",
        "iphone-17-grace",
        "tab-s11-front-desk",
        "bike-console-03",
        "rower-console-11",
        "iphone-15-karel",
    ]
    for minute in range(57, -1, -3):
        for i, name in enumerate(names):
            if random.random() < 0.3:
                continue
            t = Timestamp()
            t.FromDatetime(__import__("datetime").datetime.now(__import__("datetime").UTC) - timedelta(minutes=minute))
            n = random.randint(2, 12)
            await tenant.report(
                phones[i % 4],
                device_id=name,
                time=t,
                syncs=n,
                failed_syncs=int(random.random() < (0.5 if i == 3 else 0.05)),
                items=n * 4,
                conflicts=int(random.random() < 0.25),
                duration_ms=n * random.uniform(18, 60),
                platform=["android", "ios", "android", "linux", "linux", "ios"][i],
                app_version=["4.2.0", "4.2.1", "4.1.9", "2.0.3", "2.0.3", "4.2.1"][i],
                os_version="17.2",
                network_type="wifi",
                clock_skew_ms=float(i * 30 - 40),
                domain="journal",
                uploads_completed=1 if i == 1 else 0,
            )
    from tests.journeys.test_sync import set_policy, push

    boss = await edge.http.post("/v1/auth/signin", json={"email": tenant.boss.email, "password": "securepassword123"})
    from tests.factories import Phone

    b = boss.json()
    admin = Phone(edge.http, b["user"]["id"], tenant.boss.email, b["access_token"], b["refresh_token"])
    await set_policy(admin, tenant.id, "journal", "manual")
    for k in range(3):
        page = change(
            data={"text": "Six intervals, the last two in the rain.", "mood": "calm", "tags": ["ride", "rain"]}
        )
        await push(phones[k], page)
        receipts = await push(
            phones[k],
            {
                **page,
                "data": {
                    "text": "Six intervals; the last two in rain and wind.",
                    "mood": "proud",
                    "tags": ["ride", "rain"],
                },
            },
        )
        print(receipts, (await admin.call("GET", "/api/v1/sync/conflicts?resolution_result=manual_required")).text)
    up = await Sending.started(phones[0], some_file(6.2))
    for c in range(4):
        await phones[0].call("POST", **up.chunk_request(c))
    for kind, given in {
        "light": {"viewport": {"width": 1280, "height": 900}},
        "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
        "phone": {"viewport": {"width": 360, "height": 780}},
        "phone-dark": {"viewport": {"width": 360, "height": 780}, "color_scheme": "dark"},
    }.items():
        tab = await new_tab(**given)
        await tab.open()
        if kind in ("light", "phone"):
            await tab.page.screenshot(path=f"/tmp/wt/h4-shots/door-{kind}.png")
        await tab.sign_in(tenant.boss.email)
        try:
            await expect(tab.page.locator("#live")).to_have_attribute("data-state", "live")
            await expect(tab.page.locator("#devices tbody tr").first).to_be_visible()
            await expect(tab.page.locator("#conflicts tbody tr").first).to_be_visible()
            await asyncio.sleep(1)
        finally:
            await tab.page.screenshot(path=f"/tmp/wt/h4-shots/{kind}.png", full_page=True)
            print(kind, tab.complaints, await tab.page.evaluate("document.documentElement.scrollWidth"))
        if kind in ("light", "phone"):
            await tab.page.locator("#devices tbody button").first.click()
            await expect(tab.page.locator(".history svg")).to_be_visible()
            await asyncio.sleep(0.5)
            await tab.page.screenshot(path=f"/tmp/wt/h4-shots/{kind}-history.png", full_page=True)
            await tab.page.locator("#conflicts tbody button").first.click()
            await expect(tab.page.locator("#decision table")).to_be_visible()
            await tab.page.locator("#decision summary").click()
            await tab.page.screenshot(path=f"/tmp/wt/h4-shots/{kind}-decision.png")
            print(tab.complaints)
