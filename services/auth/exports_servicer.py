"""Owns the rpc of the account's export: unpack, call, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from grpc.aio import ServicerContext
from satchel.auth.v1 import exports_pb2 as pb
from satchel.auth.v1 import exports_pb2_grpc as pb_grpc

from runtime.call import answer_headers, header, principal
from services.auth import exports_convert as convert
from services.auth.exports_domain import Exports

Context = ServicerContext[Any, Any]


class ExportServicer(pb_grpc.ExportServiceServicer):
    """satchel.auth.v1.ExportService."""

    def __init__(self, exports: Exports) -> None:
        self._exports = exports

    async def ExportAccount(self, request: pb.ExportAccountRequest, context: Context) -> AsyncIterator[HttpBody]:
        async with (
            aclosing(self._exports.everything(principal(), header("authorization"))) as items,
            aclosing(convert.pieces(items)) as pieces,
        ):
            first = await anext(pieces)
            answer_headers(convert.DISPOSITION)  # now that it is no refusal, which nobody wants as a file
            yield first
            async for piece in pieces:
                yield piece
