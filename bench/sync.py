"""Sync: pushes over one stream against the bare upsert, and reading a long feed against the bare SELECT."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import grpc
import jwt
import psycopg
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc

from bench import batches
from bench.batched import FLOOR
from bench.rounds import Measure, Pair
from bench.stack import Stack
from bench.upsert import upsert
from bench.wire import channels, metadata, sign_up

FEED = 50_000  # records
PAGE = 1000
IN_FLIGHT = 20  # pushes that a phone has sent without having their receipts
SELECT = "bare SELECT"
STREAM = "/satchel.sessions.v1.SyncService/Sync"

# What a pull reads, with nothing around it.
_SELECT = """
    SELECT position, domain, id, version, deleted, data::text, update_time FROM sessions.records
    WHERE user_id = %b AND position > %b AND position > 0 ORDER BY position LIMIT %b"""


async def pairs(stack: Stack, exit: AsyncExitStack) -> list[Pair]:
    """One stream that pushes, and one phone that reads 50,000 records, page by page and by stream."""
    address = stack.addresses["sessions"]
    pusher, reader = await sign_up(stack.addresses["envoy"], 2)
    floor = exit.enter_context(upsert(stack.database_url)).rows
    (channel,) = await exit.enter_async_context(channels(address, 1))
    await _fill(channel, reader)
    select = _select(exit.enter_context(psycopg.connect(stack.database_url, autocommit=True)), user_of(reader))
    rows: list[tuple[str, Measure, str, Measure, float]] = [
        ("100-change pushes over one stream", pushes(channel, pusher), FLOOR, floor, 0.5),
        (f"Pull of {FEED:,} changes, gRPC", _pull(channel, reader), SELECT, select, 0.4),
        (f"The same {FEED:,} over a stream", _stream(channel, reader), SELECT, select, None),
    ]
    return [
        Pair(name=name, floor_name=beside, unit="rows/s", figure=figure, floor=under, target=target)
        for name, figure, beside, under, target in rows
    ]


def user_of(token: str) -> UUID:
    """Whose token it is."""
    return UUID(jwt.decode(token, options={"verify_signature": False})["sub"])


def talk(channel: grpc.aio.Channel, token: str) -> Any:
    """An open stream that takes encoded requests."""
    return channel.stream_stream(STREAM, response_deserializer=sync_pb2.SyncResponse.FromString)(
        metadata=metadata(token)
    )


async def hello(call: Any, cursor: str | None = None, device_id: str = "bench") -> None:
    """Says hello and waits to be welcomed."""
    said = sync_pb2.Hello(device_id=device_id)
    if cursor is not None:
        said.cursor = cursor
    await call.write(sync_pb2.SyncRequest(hello=said).SerializeToString())
    answer = await call.read()
    if answer is grpc.aio.EOF or answer.WhichOneof("message") != "welcome":
        raise RuntimeError(f"not welcomed: {answer}")


def pushes(channel: grpc.aio.Channel, token: str) -> Measure:
    """Changes that are stored per second, pushed over one stream."""
    template = batches.push_template()

    async def measure(seconds: float) -> float:
        stored, took = await push_for(seconds, channel, token, template)
        return stored / took

    return measure


async def push_for(
    seconds: float, channel: grpc.aio.Channel, token: str, template: batches.Template
) -> tuple[int, float]:
    """Pushes over one stream; how many changes were stored, and in how many seconds."""
    ready = template.fresh(seconds)
    call = talk(channel, token)
    await hello(call)
    places = asyncio.Semaphore(IN_FLIGHT)
    sent, started = 0, time.perf_counter()

    async def write() -> None:
        nonlocal sent
        for batch in ready:
            await places.acquire()
            if time.perf_counter() - started >= seconds:
                break
            await call.write(batch)
            sent += 1
        await call.done_writing()

    writing = asyncio.create_task(write())
    stored = 0
    while (answer := await call.read()) is not grpc.aio.EOF:
        if answer.WhichOneof("message") == "receipts":
            places.release()
            stored += sum(receipt.status == "APPLIED" for receipt in answer.receipts.receipts)
    took = time.perf_counter() - started
    await writing
    if stored != sent * batches.SIZE:
        raise RuntimeError(f"{stored} of {sent * batches.SIZE} changes were stored")
    return stored, took


def _pull(channel: grpc.aio.Channel, token: str) -> Measure:
    pull, caller = sync_pb2_grpc.SyncServiceStub(channel).PullChanges, metadata(token)

    async def measure(seconds: float) -> float:
        del seconds  # the whole feed, however long it takes
        read, cursor, started = 0, "", time.perf_counter()
        while True:
            page = await pull(sync_pb2.PullChangesRequest(cursor=cursor, limit=PAGE), metadata=caller)
            read, cursor = read + len(page.changes), page.next_cursor
            if not page.has_more:
                return _whole(read) / (time.perf_counter() - started)

    return measure


def _stream(channel: grpc.aio.Channel, token: str) -> Measure:
    async def measure(seconds: float) -> float:
        del seconds
        call = talk(channel, token)
        started = time.perf_counter()
        await hello(call, cursor="")
        read = 0
        while read < FEED:
            page = (await call.read()).changes
            read += len(page.changes)
            await call.write(sync_pb2.SyncRequest(ack=sync_pb2.Ack(cursor=page.next_cursor)).SerializeToString())
        took = time.perf_counter() - started
        call.cancel()
        return _whole(read) / took

    return measure


def _select(connection: psycopg.Connection[Any], user_id: UUID) -> Measure:
    def rows() -> float:
        read, position, started = 0, 0, time.perf_counter()
        cursor = connection.cursor(binary=True)
        while found := cursor.execute(_SELECT, [user_id, position, PAGE], prepare=True).fetchall():
            read, position = read + len(found), found[-1][0]
        return _whole(read) / (time.perf_counter() - started)

    async def measure(seconds: float) -> float:
        del seconds
        return await asyncio.to_thread(rows)

    return measure


def _whole(read: int) -> int:
    if read != FEED:
        raise RuntimeError(f"{read} of {FEED} records were read")
    return read


async def _fill(channel: grpc.aio.Channel, token: str) -> None:
    call = talk(channel, token)
    await hello(call)
    ready = batches.push_template().fresh(FEED / batches.SIZE / batches.enough(1.0))
    for _ in range(FEED // batches.SIZE):
        await call.write(next(ready))
        answer = await call.read()
        if answer.WhichOneof("message") != "receipts":
            raise RuntimeError(str(answer))
    call.cancel()
