"""Owns the upload rpcs: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.uploads.v1 import uploads_pb2 as pb
from satchel.uploads.v1 import uploads_pb2_grpc as pb_grpc

from services.uploads import convert
from services.uploads.domain import UploadLimits

Context = ServicerContext[Any, Any]


class UploadServicer(pb_grpc.UploadServiceServicer):
    """satchel.uploads.v1.UploadService."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits

    async def GetUploadLimits(self, request: pb.GetUploadLimitsRequest, context: Context) -> pb.GetUploadLimitsResponse:
        return convert.limits_response(self._limits)
