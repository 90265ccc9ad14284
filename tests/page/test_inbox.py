"""Conflicts and uploads on the page: decided there, and seen by the phones that they concern."""

from __future__ import annotations

import json

import grpc
import pytest
from playwright.async_api import expect

from tests.factories import Phone, change
from tests.journeys.test_sync import held, push, resolve, set_policy
from tests.page.conftest import Tab, Tenant
from tests.sending import Sending, some_file
from tests.streams import talking


class Undecided:
    """A page of a journal whose two versions wait."""

    def __init__(self, phone: Phone, page: dict[str, object], conflict_id: str) -> None:
        self.phone = phone
        self.page = page
        self.id = conflict_id


@pytest.fixture
async def undecided(tenant: Tenant) -> Undecided:
    decider = await tenant.edge.administrator(tenant_id=tenant.id)
    await set_policy(decider, tenant.id, "journal", "manual")
    phone = await tenant.phone()
    page = change(data={"text": "It rained.", "mood": "calm"})
    _, receipt = await push(phone, page, {**page, "data": {"text": "It snowed.", "title": "<b>New</b>"}})
    return Undecided(phone, page, receipt["conflict"]["conflict_id"])


@pytest.mark.parametrize(
    ("button", "said", "stored"),
    [
        ("Accept server", "the server's version stands, at version 1.", {"text": "It rained.", "mood": "calm"}),
        ("Accept client", "the phone's version stands, at version 2.", {"text": "It snowed.", "title": "<b>New</b>"}),
        ("Store the merge", "the merge stands, at version 2.", {"text": "Both.", "mood": "calm"}),
    ],
)
async def test_a_conflict_is_decided_and_the_phone_hears_of_it(
    undecided: Undecided, desk: Tab, tenant: Tenant, button: str, said: str, stored: dict[str, str]
) -> None:
    page, phone = desk.page, undecided.phone
    async with (
        grpc.aio.insecure_channel(tenant.edge.target) as channel,
        talking(channel, phone.metadata, device_id="a") as talk,
    ):
        assert (await talk.hear("conflict")).conflict_id == undecided.id
        await page.get_by_role("button", name=f"Decide on {undecided.page['id']}").click()
        dialog = page.get_by_role("dialog", name=str(undecided.page["id"]))
        rows = dialog.locator("tbody tr")
        await expect(rows).to_have_count(3)
        texts = [await row.locator("th, td").all_text_contents() for row in await rows.all()]
        assert texts == [
            ["mood (differs)", "calm", "–"],
            ["text (differs)", "It rained.", "It snowed."],
            ["title (differs)", "–", "<b>New</b>"],
        ]
        if button == "Store the merge":
            await dialog.get_by_text("Merge by hand").click()
            merge = dialog.get_by_label("What the record is to hold, as JSON")
            assert json.loads(await merge.input_value()) == {
                "text": "It snowed.",
                "mood": "calm",
                "title": "<b>New</b>",
            }
            await merge.fill("[1")
            await dialog.get_by_role("button", name=button).click()
            await expect(dialog.get_by_role("alert")).to_have_text("The merge is no JSON object.")
            await merge.fill(json.dumps(stored))
        await dialog.get_by_role("button", name=button).click()
        await expect(dialog).to_be_hidden()
        await expect(page.locator("#conflicts .said")).to_have_text(f"{undecided.page['id']}: {said}")
        await expect(page.locator("#conflicts")).to_contain_text("Nothing waits for a decision.")
        heard = [await talk.hear() for _ in range(1 if button == "Accept server" else 2)]
    assert {one.WhichOneof("message") for one in heard} <= {"conflict", "changes"}
    assert await held(phone, undecided.page) == stored


async def test_a_merge_that_cannot_be_stored_says_why_and_stays(undecided: Undecided, desk: Tab) -> None:
    await desk.page.get_by_role("button", name="Decide").click()
    dialog = desk.page.get_by_role("dialog")
    await dialog.get_by_text("Merge by hand").click()
    await dialog.get_by_label("What the record is to hold, as JSON").fill('{"text": 7}')
    await dialog.get_by_role("button", name="Store the merge").click()
    await expect(dialog.get_by_role("alert")).to_contain_text("client_data.text")
    await desk.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(desk.page.get_by_role("button", name="Decide")).to_be_visible()
    desk.complaints[:] = [one for one in desk.complaints if "status of 400" not in one]


async def test_one_that_somebody_else_has_decided_meanwhile_is_told_and_goes(undecided: Undecided, desk: Tab) -> None:
    await desk.page.get_by_role("button", name="Decide").click()
    dialog = desk.page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Accept client")).to_be_visible()
    assert (await resolve(undecided.phone, undecided.id, "accept_server")).status_code == 200
    await dialog.get_by_role("button", name="Accept client").click()
    await expect(desk.page.locator("#conflicts .said")).to_contain_text("somebody else has decided it.")
    await expect(desk.page.locator("#conflicts")).to_contain_text("Nothing waits for a decision.")
    desk.complaints[:] = [one for one in desk.complaints if "status of 409" not in one]


async def test_a_record_that_went_on_is_shown_as_it_is_now(undecided: Undecided, desk: Tab) -> None:
    await push(undecided.phone, {**undecided.page, "base_version": 1, "data": {"text": "It cleared up."}})
    await desk.page.get_by_role("button", name="Decide").click()
    dialog = desk.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("it is at version 2 now")
    await expect(dialog.locator("tbody tr").first).to_contain_text("It cleared up.")


async def test_an_upload_is_followed_chunk_by_chunk_until_it_has_ended(desk: Tab, tenant: Tenant) -> None:
    phone, uploads = await tenant.phone(), desk.page.locator("#uploads")
    sending = await Sending.started(phone, some_file(2))
    await tenant.report(phone, syncs=1)
    await expect(uploads.locator("tbody tr")).to_contain_text("a.ogg")
    await expect(uploads.get_by_role("progressbar")).to_have_js_property("value", 0)
    assert (await phone.call("POST", **sending.chunk_request(0))).status_code == 200
    await expect(uploads.locator("tbody tr")).to_contain_text("50 %")
    assert (await phone.call("DELETE", sending.path)).status_code == 200
    await expect(uploads).to_contain_text("No upload is on its way.")
