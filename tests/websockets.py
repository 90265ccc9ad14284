"""A phone on the WebSocket, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import Edge

PATIENCE = 20.0
PATH = "/ws/mobile/sync/"

Frame = dict[str, Any]


class Line:
    """An open connection; frames are read in their order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, frame: Frame | str | bytes) -> None:
        await self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def hear(self, kind: str = "") -> Frame:
        """The next frame; with `kind` it has to be that."""
        async with asyncio.timeout(PATIENCE):
            frame: Frame = json.loads(await self.socket.recv())
        assert not kind or frame["type"] == kind, frame
        return frame

    async def ask(self, frame: Frame | str | bytes, kind: str) -> Frame:
        """Says `frame` and returns the payload of the answer, which has to be of `kind`."""
        await self.say(frame)
        payload: Frame = (await self.hear(kind))["payload"]
        return payload

    async def sync(self, **payload: Any) -> Frame:
        return await self.ask({"type": "sync", "payload": payload}, "sync_response")

    async def beat(self) -> Frame:
        """A heartbeat: what was said before it has been heard when its answer comes."""
        return await self.ask({"type": "heartbeat", "payload": {}}, "heartbeat_ack")

    async def end(self) -> tuple[int, list[Frame]]:
        """The close code, and every frame that comes before it."""
        frames = []
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    frames.append(json.loads(await self.socket.recv()))
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 1006, frames


@asynccontextmanager
async def line(
    edge: Edge,
    token: str = "",
    *,
    path: str = PATH,
    headers: dict[str, str] | None = None,
    client: dict[str, Any] | None = None,
    **query: str,
) -> AsyncIterator[Line]:
    """A connection through the edge, with the token in a header; `client` are settings of the library's client."""
    url = f"ws://127.0.0.1:{edge.port}{path}?{urlencode({'device_id': 'phone-1', **query})}"
    sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    options = {"max_size": None, "proxy": None, **(client or {})}
    async with connect(url, additional_headers=sent, **options) as socket:
        yield Line(socket)


def voice(**given: Any) -> Frame:
    """An item of voice_data as seed 003 shows it."""
    return {
        "verification_id": str(uuid4()),
        "timestamp": "2025-09-28T12:00:00Z",
        "verified": True,
        "confidence_score": 0.95,
        "quality_score": 0.88,
        "processing_time_ms": 150,
        **given,
    }


def record(domain: str = "journal", **given: Any) -> Frame:
    """A record in the general form."""
    return {
        "domain": domain,
        "mobile_id": str(uuid4()),
        "client_version": 0,
        "operation": "create",
        "data": {"title": "A day", "text": "It rained."},
        "client_timestamp": "2025-09-28T12:00:00Z",
        **given,
    }
