"""An app in a browser, loaded from another origin: it sends and reads what the browser lets it, and that is enough."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from deploy.parts import ROOT
from tests.conftest import Edge
from tests.factories import Phone, change
from tests.sending import CHUNK, Sending, some_file

ORIGIN = "https://app.example"
# The Fetch standard: what a script may send, and read, without being allowed to.
SENT_FREELY = {"accept", "accept-language", "content-language"}
READ_FREELY = {
    *("cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma"),
}
# What no script gets to see or misses: the browser's, or CORS's own.
OF_THE_BROWSER = {"date", "server", "vary", "x-content-type-options", "connection", "transfer-encoding"}


class Blocked(Exception):
    """The browser does not let the script do it."""


class Tab:
    """A signed-in app that calls as `fetch` does."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self.hidden: set[str] = set()
        """Headers of answers that the app could not read."""

    async def fetch(self, verb: str, path: str, **request: Any) -> httpx.Response:
        """The answer, with the headers that a script may read. Raises Blocked."""
        headers = {**self._phone.headers, **request.pop("headers", {})}
        asked = sorted(name.lower() for name in headers.keys() - SENT_FREELY)
        preflight = await self._phone.http.options(
            path,
            headers={
                "origin": ORIGIN,
                "access-control-request-method": verb,
                "access-control-request-headers": ",".join(asked),
            },
        )
        if not preflight.is_success or preflight.headers.get("access-control-allow-origin") not in ("*", ORIGIN):
            raise Blocked(f"{verb} {path}: {preflight.status_code}")
        if verb not in _listed(preflight, "access-control-allow-methods"):
            raise Blocked(verb)
        if refused := set(asked) - _listed(preflight, "access-control-allow-headers"):
            raise Blocked(f"may not send {refused}")
        answer = await self._phone.http.request(verb, path, headers={**headers, "origin": ORIGIN}, **request)
        if answer.headers.get("access-control-allow-origin") not in ("*", ORIGIN):
            raise Blocked(f"may not read {answer.status_code} of {path}")
        shown = _listed(answer, "access-control-expose-headers") | READ_FREELY
        self.hidden |= {
            name for name in answer.headers if name not in shown and not name.startswith("access-control-")
        } - OF_THE_BROWSER
        answer.headers = httpx.Headers([(name, value) for name, value in answer.headers.items() if name in shown])
        return answer


def _listed(answer: httpx.Response, name: str) -> set[str]:
    return {one.strip() for one in answer.headers.get(name, "").split(",")}


@pytest.fixture
def tab(phone: Phone) -> Tab:
    return Tab(phone)


async def test_a_put_that_broke_off_is_resumed_and_the_file_read_in_parts(tab: Tab, phone: Phone) -> None:
    sending = await Sending.started(phone, some_file(3))
    path, data = sending.path, sending.data
    half = await tab.fetch("PUT", f"{path}/content", content=data[:CHUNK], headers={"upload-offset": "0"})
    assert half.json()["offset"] == CHUNK
    offset = int((await tab.fetch("GET", f"{path}/status")).headers["upload-offset"])
    assert offset == CHUNK
    rest = {"upload-offset": str(offset), "content-type": "application/octet-stream"}
    assert (await tab.fetch("PUT", f"{path}/content", content=data[offset:], headers=rest)).status_code == 200
    finalized = await tab.fetch("POST", f"{path}/finalize")
    file = httpx.URL(finalized.json()["file_url"]).path

    whole = await tab.fetch("GET", file)
    assert whole.headers["accept-ranges"] == "bytes"
    assert "a.ogg" in whole.headers["content-disposition"]
    tag = whole.headers["etag"]
    part = await tab.fetch("GET", file, headers={"range": "bytes=10-19", "if-range": tag})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert (await tab.fetch("GET", file, headers={"if-none-match": tag})).status_code == 304
    beyond = await tab.fetch("GET", file, headers={"range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert not tab.hidden


async def test_chunks_are_sent_with_their_checksums(tab: Tab, phone: Phone) -> None:
    sending = await Sending.started(phone, some_file(1))
    assert (await tab.fetch("POST", **sending.chunk_request(0))).json()["uploaded"] is True
    assert not tab.hidden


async def test_a_push_is_named_timed_and_repeated(tab: Tab) -> None:
    said = {
        "idempotency-key": "k1",
        "x-client-time": "2026-02-26T10:00:00Z",
        "x-device-id": "tab-1",
        "x-app-version": "1.0.0",
        "x-os-version": "1",
        "x-network-type": "wifi",
        "x-platform": "web",
    }
    body = {"changes": [change()]}
    first = await tab.fetch("POST", "/api/v1/sync/push", json=body, headers=said)
    assert first.status_code == 200, first.text
    again = await tab.fetch("POST", "/api/v1/sync/push", json=body, headers=said)
    assert again.json()["receipts"] == first.json()["receipts"]
    assert not tab.hidden


@pytest.mark.parametrize("path", ["/api/v1/sync/export", "/v1/auth/export"])
async def test_an_export_says_under_which_name_it_is_kept(tab: Tab, path: str) -> None:
    assert "filename=" in (await tab.fetch("GET", path)).headers["content-disposition"]
    assert not tab.hidden


async def test_who_has_to_wait_can_read_how_long(own_edge: Callable[..., Awaitable[Edge]]) -> None:
    edge = await own_edge(rate_limits="on")
    tab = Tab(await edge.phone())
    answers = [await tab.fetch("GET", "/v1/subscription/status") for _ in range(11)]
    assert answers[0].headers["ratelimit-remaining"] == "9"
    assert answers[10].status_code == 429
    assert int(answers[10].headers["retry-after"]) == int(answers[10].headers["ratelimit-reset"]) > 0
    assert answers[10].headers["x-request-id"]
    assert not tab.hidden


async def test_every_header_that_a_service_reads_may_be_sent(tab: Tab) -> None:
    """Where no journey above happens to send one."""
    inner = {"user-agent", "accept-encoding", "x-request-id", "x-envoy-external-address"}
    read = re.compile(r"""(?:\bheader|metadata\.get)\("([a-z-]+)"\)""")
    files = [one for room in ("runtime", "services") for one in (ROOT / room).rglob("*.py")]
    names = {name for file in files for name in read.findall(file.read_text())} - inner
    assert {"range", "upload-offset", "x-client-time"} <= names
    await tab.fetch("GET", "/healthz", headers=dict.fromkeys(names - {"authorization"}, "x"))
