"""Owns the door: it takes WebSocket connections, one Sync stream for each, and says goodbye when the process stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from http import HTTPStatus
from itertools import cycle
from random import SystemRandom
from typing import Any, Final, cast

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from runtime.errors import Failure, Reason
from runtime.telemetry import WEBSOCKET_ENDS, WEBSOCKETS, logger
from services.websocket import answers, handshake, partings
from services.websocket.conversation import Conversation
from services.websocket.partings import Parting

HEALTH_PATH: Final = "/healthz"
# The edge's limit for bodies, too.
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
# One message at a time: the next one stays with the network until this one is on its way.
MAX_QUEUE: Final = 1
WRITE_LIMIT: Final = 32 * 1024
PING_INTERVAL: Final = 20.0
CLOSE_TIMEOUT: Final = 5.0
# Of the time to drain: phones are sent away one after the other, not all at once.
SPREAD: Final = 0.25

# Each message by itself: what two live windows take would be most of the memory of a phone that says nothing.
_DEFLATE: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    server_max_window_bits=12,
    compress_settings={"memLevel": 5},
)
# Close codes that are counted by themselves.
_COUNTED: Final = frozenset((1000, 1001, 1005, 1006, 1009, 1011, 4400, 4401, 4408, 4426, 4429, 4503))


def _silent() -> logging.Logger:
    """The library's own logger prints requests with the tokens in them; what matters is in our lines."""
    made = logging.Logger("websockets")
    made.addHandler(logging.NullHandler())
    return made


class Door:
    """Where phones come in by WebSocket."""

    def __init__(
        self, stubs: Sequence[Any], *, idle_timeout: float, drain_timeout: float, now: Callable[[], datetime]
    ) -> None:
        """`stubs` are of SyncService, used in turn; the timeouts are seconds."""
        self._stubs = cycle(stubs)
        self._idle_timeout = idle_timeout
        self._drain_timeout = drain_timeout
        self._now = now
        self._draining = False
        self._conversations: set[Conversation] = set()

    @asynccontextmanager
    async def opened(self, listen: str) -> AsyncIterator[None]:
        """Takes connections on `listen`, host:port, for as long as the block runs, then drains."""
        host, _, port = listen.rpartition(":")
        server = await serve(
            self._meet,
            host.strip("[]"),
            int(port),
            process_request=self._screen,
            select_subprotocol=_subprotocol,
            extensions=[_DEFLATE],
            compression=None,
            server_header=None,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_INTERVAL,
            close_timeout=CLOSE_TIMEOUT,
            max_size=MAX_FRAME_BYTES,
            max_queue=MAX_QUEUE,
            write_limit=WRITE_LIMIT,
            logger=_silent(),
            reuse_port=True,
        )
        try:
            yield
        finally:
            await self._drain(server)

    async def _drain(self, server: Server) -> None:
        self._draining = True
        server.close(close_connections=False)
        await asyncio.gather(*(self._send_away(one) for one in self._conversations))
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await server.wait_closed()

    async def _send_away(self, conversation: Conversation) -> None:
        spread = self._drain_timeout * SPREAD
        await asyncio.wait([conversation.ended], timeout=SystemRandom().uniform(0, spread))
        await conversation.leave(self._drain_timeout - spread)

    def _screen(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answers what is no phone; everything else is let in, because browsers see no status but a close code."""
        path = request.path.partition("?")[0]
        if path == HEALTH_PATH:
            status = HTTPStatus.SERVICE_UNAVAILABLE if self._draining else HTTPStatus.OK
            return socket.respond(status, f"{status.phrase}\n")
        return None if path in handshake.PATHS else socket.respond(HTTPStatus.NOT_FOUND, "Not found\n")

    async def _meet(self, socket: ServerConnection) -> None:
        """A connection from its first frame to its last."""
        request = cast(Request, socket.request)
        peer = _peer(socket)
        started = time.perf_counter()
        counts: dict[str, Any] = {}
        with WEBSOCKETS.track_inprogress():
            try:
                parting = await self._converse(socket, request, peer, counts)
                if parting is not None:
                    await self._part(socket, parting)
            except ConnectionClosed:
                pass
            except Exception as error:
                logger().error("a connection failed", exc_info=error)
                await self._part(socket, partings.refused(Failure(Reason.INTERNAL)))
        code = socket.close_code
        WEBSOCKET_ENDS.labels(str(code) if code in _COUNTED else "other").inc()
        # Neither the path nor a header, but for these: both carry tokens.
        logger().info(
            "websocket",
            code=code,
            request_id=handshake.request_id_of(request.headers),
            client=handshake.client_of(request.headers, peer),
            ms=round((time.perf_counter() - started) * 1000, 2),
            **counts,
        )

    async def _converse(
        self, socket: ServerConnection, request: Request, peer: str, counts: dict[str, Any]
    ) -> Parting | None:
        try:
            opening = handshake.opening_of(request.path, request.headers, peer)
        except Failure as failure:
            return partings.refused(failure)
        counts["device"] = opening.hello.device_id
        # No deadline: the stream lives as long as the phone stays, within the lifetime that the other side allows.
        stream = next(self._stubs).Sync(metadata=opening.metadata)
        conversation = Conversation(socket, stream, opening, idle_timeout=self._idle_timeout, now=self._now)
        self._conversations.add(conversation)
        try:
            return await conversation.hold()
        finally:
            self._conversations.discard(conversation)
            counts |= {"received": conversation.received, "sent": conversation.sent}

    async def _part(self, socket: ServerConnection, parting: Parting) -> None:
        """Tells the phone why, and closes."""
        with suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await socket.send(answers.error_frame(parting.failure, self._now()), text=True)
                await asyncio.gather(socket.close(parting.code, parting.reason), _unheard(socket))
                return
        socket.transport.abort()


async def _unheard(socket: ServerConnection) -> None:
    """Takes what a phone still says: its own goodbye stands behind that."""
    with suppress(ConnectionClosed):
        while True:
            await socket.recv(decode=False)


def _subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Never the token that is offered behind the word."""
    return Subprotocol(handshake.SUBPROTOCOL) if handshake.SUBPROTOCOL in offered else None


def _peer(socket: ServerConnection) -> str:
    """The address of whoever opened the connection: the edge, or a caller that came past it."""
    address = socket.remote_address
    return str(address[0]) if isinstance(address, tuple) else ""
