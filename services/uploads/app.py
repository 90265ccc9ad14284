"""Owns how the uploads service is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from satchel.uploads.v1 import uploads_pb2_grpc

from runtime.config import Config
from services.uploads.domain import read_limits
from services.uploads.servicer import UploadServicer


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the uploads service to `server` for as long as the block runs."""
    uploads_pb2_grpc.add_UploadServiceServicer_to_server(UploadServicer(read_limits()), server)
    yield
