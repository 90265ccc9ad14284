"""Owns how the WebSocket door is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc
from satchel.sessions.v1 import sync_pb2_grpc

from runtime.clock import utc_now
from runtime.config import Config
from runtime.mesh import STREAM_OPTIONS, channel
from services.websocket.door import Door

# Connections to the sessions service: its processes share a port, and each of their connections meets one of them.
CHANNELS: Final = 8


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Opens the door for as long as the block runs; `server` only answers for its health."""
    async with AsyncExitStack() as stack:
        options = (*STREAM_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        sessions = [await stack.enter_async_context(channel(config.sessions_address, options)) for _ in range(CHANNELS)]
        door = Door(
            [sync_pb2_grpc.SyncServiceStub(one) for one in sessions],
            idle_timeout=config.stream_idle_timeout,
            drain_timeout=config.drain_timeout,
            now=utc_now,
        )
        async with door.opened(config.websocket_listen):
            yield
