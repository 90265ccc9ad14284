"""Runs the servers that floors and references need: a Python module each, on a free port."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from deploy.parts import Part, running
from deploy.sockets import free_port

LOOPBACK = "127.0.0.1"
PORT = "{port}"  # in a command: where the port goes


@asynccontextmanager
async def server(directory: Path, *command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[str]:
    """host:port of `python -m command`, once it accepts connections, for as long as the block runs."""
    port = free_port()
    part = module(directory, *(word.replace(PORT, str(port)) for word in command), env=env or {}, port=port)
    async with running(part):
        yield f"{LOOPBACK}:{port}"


def module(directory: Path, *command: str, env: Mapping[str, str], port: int | None = None) -> Part:
    """`python -m command`, which is ready when it accepts connections on `port`."""

    async def ready() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.close()
            return True
        return False

    name = command[0]
    log = directory / f"{name}.log"
    return Part(name=name, command=[sys.executable, "-m", *command], log=log, env={**os.environ, **env}, ready=ready)
