"""Batches of 100 sessions: by gRPC and as JSON through the edge, against the bare upsert and against FastAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from satchel.sessions.v1 import device_sessions_pb2

from bench import batches, http1
from bench.reference import reference
from bench.rounds import Measure, Pair, rate
from bench.stack import Stack
from bench.upsert import upsert
from bench.wire import Metadata, channels, metadata, sign_up

CLIENTS = 8
FLOOR = "bare upsert"
EACH = "FastAPI item by item, 8 clients"
BULK = "FastAPI in bulk, 8 clients"

_Rpc = grpc.aio.UnaryUnaryMultiCallable[bytes, device_sessions_pb2.BatchUploadResponse]
_PATH = "/sessions/batch_upload"
_BULK_PATH = "/sessions/batch_upload_in_bulk"
_RPC = "/satchel.sessions.v1.DeviceSessionService/BatchUpload"


async def pairs(stack: Stack, directory: Path, exit: AsyncExitStack, *, workers: int) -> list[Pair]:
    """Batches of one client and of eight, each client a user with a connection of its own."""
    tokens = await sign_up(stack.addresses["envoy"], CLIENTS)
    floor = exit.enter_context(upsert(stack.database_url)).rows
    rival = await exit.enter_async_context(reference(stack.database_url, directory, workers=workers))
    each = _by_json(rival.address, [rival.token() for _ in range(CLIENTS)])
    bulk = _by_json(rival.address, [rival.token() for _ in range(CLIENTS)], path=_BULK_PATH)
    grpc_one = await _by_grpc(stack.addresses["sessions"], tokens[:1], exit)
    grpc_all = await _by_grpc(stack.addresses["sessions"], tokens, exit)
    json_one = _by_json(stack.addresses["envoy"], tokens[:1])
    json_all = _by_json(stack.addresses["envoy"], tokens)
    rows = [
        ("100-session batches, gRPC, 1 client", grpc_one, FLOOR, floor, None),
        ("100-session batches, gRPC, 8 clients", grpc_all, FLOOR, floor, 0.5),
        ("100-session batches, JSON through Envoy, 1 client", json_one, FLOOR, floor, None),
        ("100-session batches, JSON through Envoy, 8 clients", json_all, FLOOR, floor, 0.35),
        ("100-session batches, gRPC, 8 clients", grpc_all, EACH, each, 5.0),
        ("100-session batches, JSON through Envoy, 8 clients", json_all, EACH, each, 5.0),
        ("100-session batches, JSON through Envoy, 8 clients", json_all, BULK, bulk, None),
    ]
    return [
        Pair(name=name, floor_name=beside, unit="rows/s", figure=figure, floor=under, target=target)
        for name, figure, beside, under, target in rows
    ]


async def _by_grpc(address: str, tokens: list[str], exit: AsyncExitStack) -> Measure:
    template = batches.message_template()
    opened = await exit.enter_async_context(channels(address, len(tokens)))

    async def measure(seconds: float) -> float:
        ready = template.fresh(seconds)
        callers = [_caller(channel, metadata(token), ready) for channel, token in zip(opened, tokens, strict=True)]
        return await rate(callers, seconds) * batches.SIZE

    return measure


def _caller(channel: grpc.aio.Channel, caller: Metadata, ready: Iterator[bytes]) -> Callable[[], Awaitable[bool]]:
    # The batches are bytes already; the answer is read, since every one of its items must have been created.
    rpc: _Rpc = channel.unary_unary(_RPC, response_deserializer=device_sessions_pb2.BatchUploadResponse.FromString)

    async def call() -> bool:
        batch = next(ready, None)
        if batch is None:
            return False
        answer = await rpc(batch, metadata=caller)
        if answer.created != batches.SIZE:
            raise RuntimeError(f"{answer.created} of {batches.SIZE} sessions were stored")
        return True

    return call


def _by_json(address: str, tokens: list[str], *, path: str = _PATH) -> Measure:
    template = batches.json_template()

    def caller(connection: http1.Connection, token: str, ready: Iterator[bytes]) -> Callable[[], Awaitable[bool]]:
        head = http1.request("POST", path, address, token, template.length)

        async def call() -> bool:
            body = next(ready, None)
            if body is None:
                return False
            answer = await connection.send(head + body)
            if b'"created":%d' % batches.SIZE not in answer.replace(b" ", b""):
                raise RuntimeError(answer.decode(errors="replace"))
            return True

        return call

    async def measure(seconds: float) -> float:
        ready = template.fresh(seconds)
        async with http1.connections(address, len(tokens)) as opened:
            callers = [caller(connection, token, ready) for connection, token in zip(opened, tokens, strict=True)]
            return await rate(callers, seconds) * batches.SIZE

    return measure
