"""Owns how the Garmin connector is put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from runtime.config import Config


@asynccontextmanager
async def service(config: Config, server: grpc.aio.Server) -> AsyncIterator[None]:
    """Adds the Garmin connector to `server` for as long as the block runs."""
    yield
