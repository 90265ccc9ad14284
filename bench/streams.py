"""Streams: what one that says nothing takes in memory, by gRPC and by WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import psutil

from bench.phones import Phone, by_socket, by_stream
from bench.report import Line
from bench.stack import Stack, stack
from bench.wire import channels, sign_up

USERS, EACH = 50, 20
COUNT = USERS * EACH
TARGET = 60  # KiB of the sessions process per stream

_SETTLED = 2.0  # seconds

_KIB = 1024
_Connect = Callable[[int], AbstractAsyncContextManager[Phone]]
"""Connects a device of the user with this number."""


async def lines(home: Path, *, workers: int) -> list[Line]:
    """A thousand idle streams, and a thousand idle WebSockets, each on processes that have held nothing before."""
    async with stack(home, workers=workers) as running:
        tokens = await sign_up(running.addresses["envoy"], USERS)
        async with channels(running.addresses["sessions"], USERS) as opened:
            (by_grpc,) = await _taken(running, lambda user: by_stream(opened[user], tokens[user]), ["sessions"])
    async with stack(home, workers=workers) as running:
        tokens = await sign_up(running.addresses["envoy"], USERS)
        door = running.addresses["websocket"]
        parts = await _taken(running, lambda user: by_socket(door, tokens[user]), ["websocket", "sessions"])
    return [
        Line(
            name=f"Memory of an idle stream, of {COUNT:,}",
            figure=f"{by_grpc / _KIB:.1f} KiB",
            target=f"at most {TARGET} KiB",
            met=by_grpc / _KIB <= TARGET,
        ),
        Line(
            name=f"Memory of an idle WebSocket, of {COUNT:,}, door + sessions",
            figure=" + ".join(f"{part / _KIB:.1f}" for part in parts) + " KiB",
        ),
    ]


async def _taken(stack: Stack, connect: _Connect, services: Sequence[str]) -> list[float]:
    """Bytes per connection by which each service has grown when all of them are open."""
    users = list(range(USERS))
    async with AsyncExitStack() as first:  # what the first ones load stays, however many there are
        await _open(first, connect, users)
    await asyncio.sleep(_SETTLED)
    before = [_rss(stack, service) for service in services]
    async with AsyncExitStack() as exit:
        for _ in range(EACH):
            await _open(exit, connect, users)
        await asyncio.sleep(_SETTLED)
        after = [_rss(stack, service) for service in services]
    return [(high - low) / COUNT for high, low in zip(after, before, strict=True)]


async def _open(exit: AsyncExitStack, connect: _Connect, users: Sequence[int]) -> None:
    """A device for each of the users, all at once."""
    await asyncio.gather(*(exit.enter_async_context(connect(user)) for user in users))


def _rss(stack: Stack, service: str) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in stack.pids(service))
