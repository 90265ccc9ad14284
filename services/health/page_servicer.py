"""Owns the rpcs of the operator's page: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.health.v1 import page_pb2 as pb
from satchel.health.v1 import page_pb2_grpc as pb_grpc

from services.health.page_files import INDEX, Page

Context = ServicerContext[Any, Any]


class PageServicer(pb_grpc.PageServiceServicer):
    """satchel.health.v1.PageService."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def GetPage(self, request: pb.GetPageRequest, context: Context) -> HttpBody:
        return self._page.index.answer(INDEX)

    async def GetPageFile(self, request: pb.GetPageFileRequest, context: Context) -> HttpBody:
        return self._page.parts.answer(request.name)
