"""Owns the rpcs of the reference: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.health.v1 import reference_pb2 as pb
from satchel.health.v1 import reference_pb2_grpc as pb_grpc

from services.health.reference_files import DOCUMENT, PAGE, Reference

Context = ServicerContext[Any, Any]


class ReferenceServicer(pb_grpc.ReferenceServiceServicer):
    """satchel.health.v1.ReferenceService."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    async def GetOpenApi(self, request: pb.GetOpenApiRequest, context: Context) -> HttpBody:
        return self._reference.document.answer(DOCUMENT)

    async def GetDocs(self, request: pb.GetDocsRequest, context: Context) -> HttpBody:
        return self._reference.page.answer(PAGE)

    async def GetDocsFile(self, request: pb.GetDocsFileRequest, context: Context) -> HttpBody:
        return self._reference.parts.answer(request.name)
