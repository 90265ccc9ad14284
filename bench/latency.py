"""Latency: how long after a push the user's other device has what was pushed, among a hundred that are connected."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from statistics import quantiles
from uuid import uuid4

from bench.phones import Phone, by_socket, by_stream
from bench.report import Line
from bench.stack import Stack
from bench.wire import channels, sign_up

USERS = 50
PUSHES = 400
TARGETS = {50: 10.0, 99: 50.0}  # ms by percentile

_Connect = Callable[[str], AbstractAsyncContextManager[Phone]]


async def lines(stack: Stack) -> list[Line]:
    """Two devices for each of fifty users: all with streams, and all with WebSockets."""
    edge = stack.addresses["envoy"]
    tokens = await sign_up(edge, USERS)
    async with channels(edge, 2 * USERS) as opened:
        free = iter(opened)
        by_grpc = await _seconds(lambda token: by_stream(next(free), token), tokens)
    by_websocket = await _seconds(lambda token: by_socket(edge, token), tokens)
    return [*_lines("streams", by_grpc), *_lines("WebSockets", by_websocket)]


async def _seconds(connect: _Connect, tokens: Sequence[str]) -> list[float]:
    async with AsyncExitStack() as exit:
        pairs = [[await exit.enter_async_context(connect(token)) for _ in range(2)] for token in tokens]
        for pusher, other in pairs:  # the feeds, and what a server prepares for a first time: not counted
            await _once(pusher, other)
        return [await _once(*random.choice(pairs)) for _ in range(PUSHES)]


async def _once(pusher: Phone, other: Phone) -> float:
    id = str(uuid4())
    started = time.perf_counter()
    await pusher.push(id)
    await other.received(id)
    took = time.perf_counter() - started
    await pusher.settled()
    return took


def _lines(how: str, seconds: Sequence[float]) -> list[Line]:
    cuts = quantiles(seconds, n=100)
    return [
        Line(
            name=f"From a push to the other device, {how} through Envoy, p{percent}",
            figure=f"{cuts[percent - 1] * 1000:.1f} ms",
            target=f"at most {target:g} ms",
            met=cuts[percent - 1] * 1000 <= target,
        )
        for percent, target in TARGETS.items()
    ]
