"""What an administrator sees of the uploads that are on their way."""

from __future__ import annotations

from random import randrange
from typing import Any

import pytest

from tests.conftest import Edge
from tests.factories import Phone
from tests.sending import Sending, some_file

ACTIVE = "/api/v1/uploads/active"


@pytest.fixture
def tenant() -> int:
    """One that no other test has uploads in."""
    return randrange(1000, 2**31)


async def active(administrator: Phone, **query: Any) -> dict[str, Any]:
    answer = await administrator.call("GET", ACTIVE, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_upload_is_seen_from_its_start_to_its_end(edge: Edge, tenant: int) -> None:
    boss, phone = await edge.administrator(tenant_id=tenant), await edge.phone(tenant_id=tenant)
    assert await active(boss) == {"uploads": [], "next_page_token": "", "total": 0}
    sending = await Sending.started(phone, some_file(2.5))
    page = await active(boss)
    (one,) = page["uploads"]
    assert page["total"] == 1
    assert (one["upload_id"], one["user_id"], one["filename"]) == (sending.id, phone.user_id, "a.ogg")
    assert (one["mime_type"], one["total_size"], one["status"]) == ("audio/ogg", len(sending.data), "active")
    assert (one["stored_chunks"], one["total_chunks"], one["progress_pct"]) == (0, 3, 0)
    assert one["created_at"] < one["expires_at"]
    assert (await phone.call("POST", **sending.chunk_request(1))).status_code == 200
    (one,) = (await active(boss))["uploads"]
    assert (one["stored_chunks"], one["progress_pct"]) == (1, 33.3)
    answer = await phone.call("PUT", f"{sending.path}/content", content=sending.data)
    assert answer.status_code == 200, answer.text
    assert (await phone.call("POST", f"{sending.path}/finalize")).status_code == 200
    assert (await active(boss))["uploads"] == []


async def test_one_that_was_cancelled_is_gone(edge: Edge, tenant: int) -> None:
    boss, phone = await edge.administrator(tenant_id=tenant), await edge.phone(tenant_id=tenant)
    sending = await Sending.started(phone, some_file(1))
    assert (await active(boss))["total"] == 1
    assert (await phone.call("DELETE", sending.path)).status_code == 200
    assert (await active(boss))["total"] == 0


async def test_only_those_of_the_own_tenant_and_page_by_page_the_newest_first(edge: Edge, tenant: int) -> None:
    boss, other = await edge.administrator(tenant_id=tenant), await edge.administrator(tenant_id=tenant + 1)
    phone = await edge.phone(tenant_id=tenant)
    started = [(await Sending.started(phone, some_file(0.1))).id for _ in range(5)]
    seen, token = [], ""
    for size in (2, 2, 1):
        page = await active(boss, page_size=2, page_token=token)
        assert (len(page["uploads"]), page["total"]) == (size, 5)
        seen += [one["upload_id"] for one in page["uploads"]]
        token = page["next_page_token"]
    assert (seen, token) == (started[::-1], "")
    assert (await active(other))["total"] == 0


async def test_its_path_is_no_upload_of_that_name(edge: Edge, phone: Phone) -> None:
    assert (await phone.call("GET", ACTIVE)).json()["error"]["code"] == "AUTH_FORBIDDEN"
    for verb, path in (("DELETE", ACTIVE), ("GET", f"{ACTIVE}/status")):
        assert (await phone.call(verb, path)).json()["error"]["code"] == "UPLOAD_001"
