"""Owns how the WebSocket door is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from satchel.sessions.v1 import sync_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.mesh import STREAM_OPTIONS, channel
from services.websocket.door import Door


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Opens the door for as long as the block runs; `server` only answers for its health."""
    async with channel(config.sessions_address, STREAM_OPTIONS) as sessions:
        door = Door(
            sync_pb2_grpc.SyncServiceStub(sessions),
            idle_timeout=config.stream_idle_timeout,
            drain_timeout=config.drain_timeout,
            now=utc_now,
        )
        async with door.opened(config.websocket_listen):
            yield
