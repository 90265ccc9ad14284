"""Owns a device on the Sync stream: one talk for as long as its line holds, and the feed as it comes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from tests.convergence.device import Device
from tests.convergence.doors import (
    DEADLINE,
    Lost,
    Misused,
    Page,
    TooLate,
    change_to_pb,
    entry_from_pb,
    grpc_channel,
    receipt_from_pb,
)
from tests.convergence.ledger import Entry, Push, Reading, now
from tests.convergence.model import Change, Data, Key, Receipt

Hear = Callable[[pb.SyncResponse, pb.SyncRequest | None], None]
"""Takes what the server says, with what it answers; None: it came unasked."""

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

# What gRPC on our side calls an internal error: Envoy resets a stream whose replica died; nobody can write to it then.
_BROKEN = ("RST_STREAM", "Internal error from Core")


class Talk:
    """One stream, from hello to its end."""

    def __init__(self, call: Any, hear: Hear) -> None:
        self._call = call
        self._hear = hear
        self._asked: dict[str, tuple[pb.SyncRequest, asyncio.Future[pb.SyncResponse]]] = {}
        self._numbers = itertools.count(1)
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        return not self._reader.done()

    async def ask(self, **message: Any) -> pb.SyncResponse:
        """Says something and waits for its answer. Raises Lost, and what the server's refusal stands for."""
        request = pb.SyncRequest(request_id=str(next(self._numbers)), **message)
        answer: asyncio.Future[pb.SyncResponse] = asyncio.get_running_loop().create_future()
        self._asked[request.request_id] = request, answer
        await self.say(request)
        await asyncio.wait({answer, self._reader}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Lost("the stream ended" if self._reader.done() else "no answer came")
        return _answer(answer.result())

    async def say(self, message: pb.SyncRequest) -> None:
        """Raises Lost."""
        try:
            async with self._writing:
                await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise Lost from error
        except asyncio.CancelledError as error:
            if self._call.done():  # what grpcio raises when it is the call that was cancelled
                raise Lost from error
            raise

    async def end(self) -> None:
        """Hangs up; what broke the reader, if anything but the network, comes up here."""
        self._call.cancel()
        await asyncio.wait({self._reader})
        if not self._reader.cancelled():
            self._reader.result()

    async def _read(self) -> None:
        try:
            while (said := await self._call.read()) is not grpc.aio.EOF:
                request, answer = self._asked.pop(said.request_id, (None, None))
                # What is said is heard in its order: an answer not before what was said ahead of it.
                self._hear(said, request)
                if answer is not None:
                    answer.set_result(said)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _GONE and not any(word in (error.details() or "") for word in _BROKEN):
                raise


class StreamDevice(Device):
    """A phone that keeps a stream open while it is online; its pulls only see to that."""

    def __init__(self, name: str, *, stub: pb_grpc.SyncServiceStub, token: str, **rest: Any) -> None:
        super().__init__(name, door=_StreamDoor(self), **rest)
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._talk: Talk | None = None
        self._connecting = asyncio.Lock()
        self._acks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._reading: Reading | None = None

    async def connected(self) -> Talk:
        """The open stream; a new one if need be. Raises Lost."""
        async with self._connecting:
            if self._talk is not None and self._talk.is_open:
                return self._talk
            await self.hang_up()
            self._talk = talk = Talk(self._stub.Sync(metadata=self._metadata), self._hear)
            shown, sent = self._clock.read(), now()
            hello = pb.Hello(device_id=f"phone-{self.name}", cursor=self._cursor, client_time=_timestamp(shown))
            try:
                await talk.ask(hello=hello)
            except Lost:
                await self.hang_up()
                raise
            self._reading = Reading(shown, sent, now())
            self._ledger.counts["streams"] += 1
            return talk

    async def hang_up(self) -> None:
        """Ends the stream, if there is one."""
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.end()

    async def pull(self, limit: int, *, pages: int | None = None) -> bool:
        if not self.is_offline:
            self._on_call()
            try:
                await self.connected()
            except Lost:
                self._ledger.counts["calls lost"] += 1
        return False

    async def begin_anew(self) -> None:
        async with self._connecting:
            await self.hang_up()
        await super().begin_anew()

    async def catch_up(self, patience: float) -> None:
        """Returns when the stream has told, unasked, everything that anybody was told of."""
        deadline = time.monotonic() + patience
        while missing := self._missing():
            assert time.monotonic() < deadline, f"{self.name}: the stream does not tell of {missing}"
            self._news.clear()
            try:
                await self.connected()
                async with asyncio.timeout(1):
                    await self._news.wait()
            except (Lost, TimeoutError):
                continue

    async def _hand_over(self, push: Push) -> list[Receipt]:
        await self.connected()
        assert self._reading is not None
        push.readings.append(self._reading)
        return await self.door.push(push.name, push.changes, None)

    def _missing(self) -> list[tuple[Key, int]]:
        delivered = {entry.key: entry.version for entry in self._delivered}
        return [(key, one) for key, one in self._ledger.acknowledged.items() if delivered.get(key, 0) < one]

    def _hear(self, said: pb.SyncResponse, request: pb.SyncRequest | None) -> None:
        match said.WhichOneof("message"):
            case "changes":
                page = said.changes
                self._take(Page([entry_from_pb(one) for one in page.changes], page.next_cursor, page.has_more))
                task = asyncio.create_task(self._acknowledge(page.next_cursor))
                self._acks.add(task)
                task.add_done_callback(self._acks.discard)
                self._ledger.counts["pages on streams"] += 1
            case "receipts" if said.receipts.next_cursor and request is not None:
                self._take(Page(_own(request, said.receipts), said.receipts.next_cursor, False))
                self._ledger.counts["pages left out"] += 1
            case "conflict":
                self._ledger.heard.add(said.conflict.conflict_id)
        self._news.set()

    async def _acknowledge(self, cursor: str) -> None:
        talk = self._talk
        if talk is not None:
            try:
                await talk.say(pb.SyncRequest(ack=pb.Ack(cursor=cursor)))
            except Lost:
                return


class _StreamDoor:
    """Calls on a device's stream."""

    def __init__(self, device: StreamDevice) -> None:
        self._device = device

    async def push(self, name: str, changes: Sequence[Change], shown: int | None) -> list[Receipt]:
        talk = await self._device.connected()
        push = pb.PushChangesRequest(changes=[change_to_pb(one) for one in changes], idempotency_key=name)
        return [receipt_from_pb(one) for one in (await talk.ask(push=push)).receipts.receipts]

    async def decide(self, conflict_id: str, choice: str, merged: Data) -> int:
        request = pb.ResolveConflictRequest(conflict_id=conflict_id, resolution=choice)
        if choice == "merge":
            request.client_data.CopyFrom(json_format.ParseDict(merged, Struct()))
        return int((await (await self._device.connected()).ask(resolve=request)).resolution.version)


@asynccontextmanager
async def streaming(name: str, *, port: int, token: str, **rest: Any) -> AsyncIterator[StreamDevice]:
    """A phone whose stream ends with the block."""
    async with grpc_channel(port) as channel:
        device = StreamDevice(name, stub=pb_grpc.SyncServiceStub(channel), token=token, **rest)
        try:
            yield device
        finally:
            await device.hang_up()


def _answer(said: pb.SyncResponse) -> pb.SyncResponse:
    """What the server said, unless it refused."""
    if said.WhichOneof("message") != "refusal":
        return said
    match said.refusal.reason:
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED":
            raise Lost(said.refusal.message)
        case "IDEMPOTENCY_CONFLICT":
            raise Misused
        case "SYNC_CONFLICT":
            raise TooLate
    raise AssertionError(f"refused: {said.refusal}")


def _own(request: pb.SyncRequest, receipts: pb.Receipts) -> list[Entry]:
    """What the feed leaves out: this push's own records, as nothing else happened meanwhile."""
    last: dict[Key, Entry] = {}
    for change, receipt in zip(request.push.changes, receipts.receipts, strict=True):
        if receipt.status == "APPLIED":
            key = Key(change.domain, change.id)
            last.pop(key, None)
            last[key] = Entry(key, receipt.version, json.loads(change.data) if change.operation == "UPSERT" else None)
    return list(last.values())


def _timestamp(micros: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(micros)
    return stamp
