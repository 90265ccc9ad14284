"""Devices that are connected: by a Sync stream, and by a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import grpc
import orjson
from satchel.sessions.v1 import sync_pb2
from websockets.asyncio.client import ClientConnection, connect

from bench.sync import hello, talk

PATIENCE = 30.0  # seconds

_DOMAIN = "journal"
_PAGE = {
    "title": "A day",
    "text": "It rained, so the long run became a short one, and the mat had the rest.",
}


class Phone(Protocol):
    """A device that says one thing at a time."""

    async def push(self, id: str) -> None:
        """Pushes one new record; returns once it is on its way."""

    async def settled(self) -> None:
        """Returns once the push was answered. Raises RuntimeError when the record was not stored."""

    async def received(self, id: str) -> None:
        """Returns once this record has come from another device."""


class StreamPhone:
    """A phone with a Sync stream; it acknowledges every page."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def push(self, id: str) -> None:
        await self._call.write(push_of(id))

    async def settled(self) -> None:
        while (answer := await self._hear()).WhichOneof("message") != "receipts":
            pass
        if [receipt.status for receipt in answer.receipts.receipts] != ["APPLIED"]:
            raise RuntimeError(f"not stored: {answer}")

    async def received(self, id: str) -> None:
        while id not in {entry.id for entry in (await self._hear()).changes.changes}:
            pass

    async def _hear(self) -> sync_pb2.SyncResponse:
        async with asyncio.timeout(PATIENCE):
            answer = await self._call.read()
        if answer is grpc.aio.EOF or answer.WhichOneof("message") in ("refusal", "go_away"):
            raise RuntimeError(f"refused: {answer}")
        if answer.WhichOneof("message") == "changes":
            await self._call.write(ack_of(answer.changes))
        return answer


class SocketPhone:
    """A phone with a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def push(self, id: str) -> None:
        record = {"domain": _DOMAIN, "mobile_id": id, "client_version": 0, "operation": "UPSERT", "data": _PAGE}
        frame = {"type": "sync", "payload": {"records": [record]}}
        await self._socket.send(orjson.dumps(frame), text=True)

    async def settled(self) -> None:
        payload = await self._hear("sync_response")
        if payload["synced_items"] != 1:
            raise RuntimeError(f"not stored: {payload}")

    async def received(self, id: str) -> None:
        while id not in {update["entity_id"] for update in (await self._hear("server_push"))["updates"]}:
            pass

    async def _hear(self, kind: str) -> dict[str, Any]:
        while True:
            async with asyncio.timeout(PATIENCE):
                frame = orjson.loads(await self._socket.recv(decode=False))
            if frame["type"] == kind:
                return frame["payload"]
            if frame["type"] == "error":
                raise RuntimeError(f"refused: {frame}")


@asynccontextmanager
async def by_stream(channel: grpc.aio.Channel, token: str) -> AsyncIterator[Phone]:
    """A phone with a stream for as long as the block runs; it gets what changes from now on."""
    call = talk(channel, token)
    await hello(call, device_id=uuid4().hex)
    yield StreamPhone(call)
    call.cancel()


@asynccontextmanager
async def by_socket(address: str, token: str) -> AsyncIterator[Phone]:
    """The same by WebSocket."""
    url = f"ws://{address}/ws/mobile/sync/?device_id={uuid4().hex}&hello=1"
    sent = {"Authorization": f"Bearer {token}"}
    # Once goodbye is said: the edge leaves it to the phone to hang up, for a second.
    options: dict[str, Any] = {"proxy": None, "ping_interval": None, "open_timeout": PATIENCE, "close_timeout": 0.01}
    async with connect(url, additional_headers=sent, **options) as socket:
        frame = orjson.loads(await socket.recv(decode=False))
        if frame["type"] != "welcome":
            raise RuntimeError(f"not welcomed: {frame}")
        yield SocketPhone(socket)


def push_of(id: str) -> bytes:
    """A push of one new record on the stream."""
    change = sync_pb2.Change(
        domain=_DOMAIN, id=id, operation="UPSERT", base_version=0, data=orjson.dumps(_PAGE).decode()
    )
    return sync_pb2.SyncRequest(push=sync_pb2.PushChangesRequest(changes=[change])).SerializeToString()


def ack_of(page: sync_pb2.Changes) -> bytes:
    """What a phone says once it has applied a page."""
    return sync_pb2.SyncRequest(ack=sync_pb2.Ack(cursor=page.next_cursor)).SerializeToString()
