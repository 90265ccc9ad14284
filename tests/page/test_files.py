"""The page's files as they are served: their types, how they are cached, and that there is no way to others."""

from __future__ import annotations

import re

import httpx
import pytest

from deploy.parts import ROOT
from tests.conftest import Edge

PAGE = ROOT / "services" / "health" / "page"
NAMES = sorted(path.name for path in PAGE.iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "require-trusted-types-for 'script'",
}


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_comes_whole_guarded_and_again_only_when_it_has_changed(edge: Edge, name: str) -> None:
    answer = await edge.http.get(path_of(name))
    assert (answer.status_code, answer.content) == (200, (PAGE / name).read_bytes())
    assert answer.headers["content-type"] == TYPES[(PAGE / name).suffix]
    assert set(answer.headers["content-security-policy"].split("; ")) == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    again = await edge.http.get(path_of(name), headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await edge.http.get(path_of(name), headers={"if-none-match": '"another"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/page/index.html", "/page/nothing.js", "/page/page.css%00", "/page/PAGE.CSS", "/page/page.css/x", "/page/"),
        *("/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/..%5capp.py"),
        *("/page/%2e%2e%2fapp.py", "/page/....//app.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd", "/index.html"),
    ],
)
async def test_there_is_no_way_to_another_file(edge: Edge, path: str) -> None:
    answer = httpx.Response(0)
    async with httpx.AsyncClient() as client:
        request = client.build_request("GET", edge.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = await client.send(request)
    assert answer.status_code in (400, 404), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert b"import" not in answer.content


async def test_only_reading_is_to_be_had(edge: Edge) -> None:
    for verb in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/page/page.css"):
            answer = await edge.http.request(verb, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND")


def test_the_page_names_every_module_ahead_and_nothing_of_others() -> None:
    index = (PAGE / "index.html").read_text()
    modules = {name for name in NAMES if name.endswith(".js")}
    assert set(re.findall(r'(?:modulepreload" href|script type="module" src)="/page/(\w+\.js)"', index)) == modules
    for name in NAMES:
        text = (PAGE / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
        addresses = set(re.findall(r"https?://[^\"' )]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{name} leads to {addresses}"
        for imported in re.findall(r'from "([^"]+)"', text):
            assert imported.removeprefix("./") in modules, f"{name} imports {imported}"
