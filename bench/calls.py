"""The smallest signed-in call, GetMe: by gRPC, by gRPC through the edge, and as JSON through the edge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path

from satchel.auth.v1 import auth_pb2, auth_pb2_grpc

from bench import http1
from bench.rounds import Measure, Pair, rate
from bench.servers import PORT, server
from bench.stack import Stack
from bench.wire import Metadata, channels, metadata, sign_up

IN_FLIGHT = 32
CHANNELS = 4

FLOOR = "bare gRPC server"


async def pairs(stack: Stack, directory: Path, exit: AsyncExitStack) -> list[Pair]:
    """GetMe of 32 accounts at once, each against the bare server."""
    tokens = await sign_up(stack.addresses["envoy"], IN_FLIGHT)
    echo = await exit.enter_async_context(server(directory, "bench.echo", PORT))
    floor = await _by_grpc(echo, tokens, exit)
    figures = {
        "GetMe, gRPC": (await _by_grpc(stack.addresses["auth"], tokens, exit), 0.6),
        "GetMe, gRPC through Envoy": (await _by_grpc(stack.addresses["envoy"], tokens, exit), None),
        "GetMe, JSON through Envoy": (_by_json(stack.addresses["envoy"], tokens), None),
    }
    return [
        Pair(name=name, floor_name=FLOOR, unit="calls/s", figure=figure, floor=floor, target=target)
        for name, (figure, target) in figures.items()
    ]


async def _by_grpc(address: str, tokens: Sequence[str], exit: AsyncExitStack) -> Measure:
    opened = await exit.enter_async_context(channels(address, CHANNELS))
    stubs = [auth_pb2_grpc.AuthServiceStub(channel) for channel in opened]
    callers = [_caller(stub, metadata(token)) for stub, token in zip(cycle(stubs), tokens, strict=False)]
    return lambda seconds: rate(callers, seconds)


def _caller(stub: auth_pb2_grpc.AuthServiceAsyncStub, caller: Metadata) -> Callable[[], Awaitable[bool]]:
    request = auth_pb2.GetMeRequest()

    async def call() -> bool:
        return bool((await stub.GetMe(request, metadata=caller)).id)

    return call


def _by_json(address: str, tokens: Sequence[str]) -> Measure:
    requests = [http1.request("GET", "/v1/auth/me", address, token) for token in tokens]

    def caller(connection: http1.Connection, request: bytes) -> Callable[[], Awaitable[bool]]:
        async def call() -> bool:
            await connection.send(request)
            return True

        return call

    async def measure(seconds: float) -> float:
        async with http1.connections(address, len(tokens)) as opened:
            return await rate([caller(*pair) for pair in zip(opened, requests, strict=True)], seconds)

    return measure
