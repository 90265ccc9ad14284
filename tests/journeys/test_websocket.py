"""The WebSocket door through the edge: seed 003's dialogue, errors, ends, and what no phone may do to it."""

from __future__ import annotations

from tests.conftest import Edge
from tests.factories import Phone
from tests.websockets import journal, line, voice


async def test_smoke(edge: Edge, phone: Phone) -> None:
    async with line(edge, phone.access_token) as one:
        print(await one.sync(voice_data=[voice()], records=[journal(), journal(domain="nothing"), 5]))
        print(await one.ask({"type": "heartbeat", "payload": {"client_time": "2025-09-28T12:00:00Z"}}, "heartbeat_ack"))
        print(one.socket.response.headers, one.socket.protocol.extensions)
    async with line(edge, "nonsense") as one:
        print(await one.end())
    async with line(edge, phone.access_token, device_id="a b") as one:
        print(await one.end())
    r = await edge.http.get("/ws/mobile/sync/")
    print(r.status_code, r.text, r.headers)
