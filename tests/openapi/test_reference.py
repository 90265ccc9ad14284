"""The reference by wire: the document, the page, and its parts."""

from __future__ import annotations

import json
import re

import pytest

from deploy.parts import ROOT
from tests.conftest import Edge


async def test_the_document_is_served_as_it_was_generated(edge: Edge) -> None:
    answer = await edge.http.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == json.loads((ROOT / "gen" / "openapi.json").read_text())


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/swagger-ui.css"])
async def test_who_has_it_already_is_told_so_without_a_body(edge: Edge, path: str) -> None:
    answer = await edge.http.get(path)
    again = await edge.http.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "max-age" in again.headers["cache-control"]
    other = await edge.http.get(path, headers={"if-none-match": '"another"'})
    assert (other.status_code, other.content) == (200, answer.content)


PACKED = ["/openapi.json", "/docs/swagger-ui-bundle.js", "/", "/page/page.css", "/page/app.js"]


@pytest.mark.parametrize("path", PACKED)
async def test_who_takes_gzip_gets_it_by_a_tag_of_its_own(edge: Edge, path: str) -> None:
    plain = await edge.http.get(path, headers={"accept-encoding": "identity"})
    packed = await edge.http.get(path, headers={"accept-encoding": "br;q=1.0, GZIP;q=0.8, *;q=0.1"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content, "the client unpacks it"
    assert packed.num_bytes_downloaded < len(plain.content) * 2 // 3
    assert packed.headers["etag"] != plain.headers["etag"]
    for answer in (plain, packed):
        words = [word.strip().lower() for word in answer.headers["vary"].split(",")]
        assert sorted(words) == ["accept-encoding", "origin"]
        again = await edge.http.get(
            path,
            headers={
                "if-none-match": answer.headers["etag"],
                "accept-encoding": answer.headers.get("content-encoding", ""),
            },
        )
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("said", ["", "identity", "br", "*", "gzip;q=0", "gzip; q=0.000, br", "x-gzip", "gzippo"])
async def test_who_does_not_take_gzip_gets_a_file_as_it_is(edge: Edge, said: str) -> None:
    answer = await edge.http.get("/docs/swagger-ui.css", headers={"accept-encoding": said})
    assert "content-encoding" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_small_file_and_what_is_no_file_are_never_packed(edge: Edge) -> None:
    phone = await edge.phone()
    for path in ("/docs", "/v1/auth/me", "/meta/schemas"):
        answer = await phone.call("GET", path, headers={"accept-encoding": "gzip"})
        assert (answer.status_code, "content-encoding" in answer.headers) == (200, False), path


async def test_all_that_the_page_loads_is_here(edge: Edge) -> None:
    page = await edge.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"docs/start.js", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json"} <= set(loaded)
    for path in loaded:
        answer = await edge.http.get(f"/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].partition(";")[0] in {
            "text/css",
            "text/javascript",
            "image/svg+xml",
            "application/json",
        }


async def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_that_is_written_into_it(edge: Edge) -> None:
    page = await edge.http.get("/docs")
    policy = dict(one.strip().partition(" ")[::2] for one in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*src=)|\bon\w+=|<style|style=", page.text)


@pytest.mark.parametrize("name", ["nothing.js", "docs.html", "start.js.map", "%2fetc", "openapi.json"])
async def test_what_is_no_part_of_the_page_is_not_there(edge: Edge, name: str) -> None:
    answer = await edge.http.get(f"/docs/{name}")
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["code"] in ("NOT_FOUND", "VALIDATION_FAILED")
