"""Owns the rpcs of the operator's page: unpack, call, pack."""

from __future__ import annotations

from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.health.v1 import page_pb2 as pb
from satchel.health.v1 import page_pb2_grpc as pb_grpc

from runtime.caching import unless_known
from runtime.call import answer_headers
from services.health.page_domain import Page, PageFile

Context = ServicerContext[Any, Any]

# A file is asked for again each time, and comes again only when it has changed: its parts must be of one version.
CACHE_CONTROL: Final = "no-cache"
# What the page shows was named by phones: whatever they call themselves, nothing but the page's own files may run or be
# loaded, and no text becomes markup.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS: Final = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)


class PageServicer(pb_grpc.PageServiceServicer):
    """satchel.health.v1.PageService."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def GetPage(self, request: pb.GetPageRequest, context: Context) -> HttpBody:
        return _answer(self._page.index())

    async def GetPageFile(self, request: pb.GetPageFileRequest, context: Context) -> HttpBody:
        return _answer(self._page.file(request.name))


def _answer(file: PageFile) -> HttpBody:
    answer_headers(*HEADERS)
    return unless_known(file.content, tag=file.tag, content_type=file.content_type, cache_control=CACHE_CONTROL)
