"""A phone on the Sync stream, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

PATIENCE = 10.0


def change(domain: str = "journal", id: str = "", **given: Any) -> pb.Change:
    """An upsert of a record, or with `operation="DELETE"` its end."""
    data = given.pop("data", {"title": "A day", "text": "It rained."})
    operation = given.pop("operation", "UPSERT")
    raw = json.dumps(data) if operation == "UPSERT" else ""
    return pb.Change(domain=domain, id=id or str(uuid4()), operation=operation, data=raw, **given)


def now(seconds: float = 0.0) -> Timestamp:
    """The time, so many seconds from now."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    stamp.FromNanoseconds(stamp.ToNanoseconds() + int(seconds * 1e9))
    return stamp


class Talk:
    """One open stream; what the server says is read in its order."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.welcome = pb.Welcome()
        self.cursor = ""

    async def say(self, request_id: str = "", **message: Any) -> None:
        await self.call.write(pb.SyncRequest(request_id=request_id, **message))

    async def hear(self, kind: str = "") -> Any:
        """The next thing that the server says; with `kind` it has to be that."""
        async with asyncio.timeout(PATIENCE):
            said = await self.call.read()
        assert said is not grpc.aio.EOF, f"the stream ended: {await self.call.code()}"
        if not kind:
            return said
        assert said.WhichOneof("message") == kind, said
        return getattr(said, kind)

    async def hello(self, **given: Any) -> pb.Welcome:
        await self.say(hello=pb.Hello(**{"device_id": "phone-1", "client_time": now(), **given}))
        self.welcome = await self.hear("welcome")
        self.cursor = self.welcome.cursor
        return self.welcome

    async def push(self, *changes: pb.Change, **given: Any) -> pb.Receipts:
        await self.say("push", push=pb.PushChangesRequest(changes=changes, **given))
        return await self.hear("receipts")

    async def changes(self) -> list[pb.FeedEntry]:
        """The next page of the feed, acknowledged."""
        page = await self.hear("changes")
        self.cursor = page.next_cursor
        await self.say(ack=pb.Ack(cursor=page.next_cursor))
        return list(page.changes)

    async def code(self) -> grpc.StatusCode:
        """How the stream ends; whatever is still said before is skipped."""
        async with asyncio.timeout(PATIENCE):
            with suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code()


@asynccontextmanager
async def talking(channel: grpc.aio.Channel, metadata: Any, **hello: Any) -> AsyncIterator[Talk]:
    """A stream that has said hello, as far as `hello` has anything to say; `cursor=""` asks for the whole feed."""
    call = pb_grpc.SyncServiceStub(channel).Sync(metadata=metadata)
    try:
        talk = Talk(call)
        if hello:
            await talk.hello(**hello)
        yield talk
    finally:
        call.cancel()
