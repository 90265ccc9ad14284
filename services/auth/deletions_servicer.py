"""Owns the rpcs of deletions' receipts: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.auth.v1 import deletions_pb2 as pb
from satchel.auth.v1 import deletions_pb2_grpc as pb_grpc

from services.auth import deletions_convert as convert
from services.auth.deletions_domain import Deletions

Context = ServicerContext[Any, Any]


class DeletionServicer(pb_grpc.DeletionServiceServicer):
    """satchel.auth.v1.DeletionService."""

    def __init__(self, deletions: Deletions) -> None:
        self._deletions = deletions

    async def GetDeletion(self, request: pb.GetDeletionRequest, context: Context) -> pb.GetDeletionResponse:
        return convert.deletion_response(await self._deletions.find(request.receipt_id))
