"""Owns one phone's stay: its frames go to the Sync stream, what that says comes back, until one of them ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import grpc
from satchel.sessions.v1 import sync_pb2 as pb
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from runtime.errors import Failure, Reason
from runtime.telemetry import logger
from services.websocket import answers, partings, requests
from services.websocket.handshake import Opening
from services.websocket.partings import Parting
from services.websocket.requests import Asked

# Seconds for the stream to welcome the phone.
OPEN_TIMEOUT: Final = 10.0
# Seconds for a frame to leave; a phone that takes nothing for so long is gone.
SEND_TIMEOUT: Final = 20.0
# Requests on their way to an answer; the phone's next frame is not read before there is room again.
MAX_UNANSWERED: Final = 16

_NOTHING: Final = Asked()

Stream = Any
"""A call of SyncService.Sync."""


class Conversation:
    """A connected phone. Two tasks: one reads its frames, the other the stream; both may send frames."""

    def __init__(
        self,
        socket: ServerConnection,
        stream: Stream,
        opening: Opening,
        *,
        idle_timeout: float,
        now: Callable[[], datetime],
    ) -> None:
        self.received = 0
        self.sent = 0
        self._socket = socket
        self._stream = stream
        self._opening = opening
        self._idle_timeout = idle_timeout
        self._now = now
        self._unanswered: dict[str, Asked] = {}
        self._room = asyncio.Semaphore(MAX_UNANSWERED)
        self._writing = asyncio.Lock()
        self._cursor = ""
        self._leaving = False
        self._limited: Failure | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._end: asyncio.Future[Parting | None] = asyncio.get_running_loop().create_future()

    async def hold(self) -> Parting | None:
        """Talks to the end; None: the phone left by itself."""
        try:
            parting = await self._greeted()
            if parting is None and not self._end.done():
                self._tasks = [asyncio.create_task(self._until_end(talk)) for talk in (self._listen(), self._speak())]
                parting = await self._end
            return parting
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._stream.cancel()

    async def leave(self, grace: float) -> None:
        """Ends the conversation because this process stops: hears no more, and waits for answers under way."""
        self._leaving = True
        self._end_if_done()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.shield(self._end)
        self._ends(partings.draining())

    @property
    def ended(self) -> asyncio.Future[Parting | None]:
        """Done when the conversation is over."""
        return self._end

    async def tell(self, frame: bytes) -> None:
        """Sends a frame. Raises ConnectionClosed, also when the phone does not take it in time."""
        try:
            async with asyncio.timeout(min(SEND_TIMEOUT, self._idle_timeout)):
                await self._socket.send(frame, text=True)
        except TimeoutError:
            # A closing handshake would have to wait behind what is not taken.
            self._socket.transport.abort()
            await self._socket.wait_closed()
            raise ConnectionClosed(None, None) from None
        self.sent += 1

    async def _greeted(self) -> Parting | None:
        """Says hello for the phone; the end, if the stream does not want it."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._stream.write(pb.SyncRequest(hello=self._opening.hello))
                first = await self._stream.read()
        except TimeoutError:
            return partings.refused(Failure(Reason.UNAVAILABLE))
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return await self._ended()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return await self._ended()
        if first is grpc.aio.EOF:
            return await self._ended()
        if first.WhichOneof("message") == "go_away":
            return partings.sent_away(first.go_away)
        if first.WhichOneof("message") == "refusal":
            return partings.refused(partings.failure_of(first.refusal))
        if self._opening.wants_welcome:
            await self.tell(answers.welcome_frame(first.welcome, self._now()))
        return None

    async def _listen(self) -> Parting | None:
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout):
                    frame = await self._socket.recv()
            except TimeoutError:
                return partings.idle()
            if not self._leaving:
                self.received += 1
                await self._hear(frame)

    async def _hear(self, frame: str | bytes) -> None:
        name = ""
        try:
            envelope = requests.opened(frame)
            name = envelope.name
            message, asked = requests.request_of(envelope)
        except Failure as failure:
            await self.tell(answers.error_frame(failure, self._now(), name))
            return await self._refused(_NOTHING)
        if message is None:
            await self.tell(answers.refused_frame(asked, self._now()))
            return await self._refused(asked)
        await self._room.acquire()
        message.request_id = str(self.received)
        self._unanswered[message.request_id] = asked
        async with self._writing:
            await self._stream.write(message)
            # What the other task left to us while we were writing.
            await self._acknowledge()
        return None

    async def _refused(self, asked: Asked) -> None:
        """Says to the other side that a frame was refused here, so that it is counted."""
        async with self._writing:
            await self._stream.write(requests.unread(asked))
            await self._acknowledge()

    async def _speak(self) -> Parting | None:
        while True:
            message = await self._stream.read()
            if message is grpc.aio.EOF:
                return await self._ended()
            kind = message.WhichOneof("message")
            if kind == "go_away":
                return partings.sent_away(message.go_away)
            if kind == "refusal" and message.refusal.reason == Reason.RATE_LIMITED.name:
                self._limited = partings.failure_of(message.refusal)
            asked = self._unanswered.pop(message.request_id, None)
            if asked is not None:
                self._room.release()
            frame = answers.frame_of(message, asked or _NOTHING, self._now())
            if frame is not None:
                await self.tell(frame)
            self._end_if_done()
            if kind == "changes":
                self._cursor = message.changes.next_cursor
                # Never waits for a writer: the stream may not read before we do.
                if not self._writing.locked():
                    async with self._writing:
                        await self._acknowledge()

    async def _acknowledge(self) -> None:
        """Acknowledges the pages that were sent since the last time, by the last of them."""
        while self._cursor:
            cursor, self._cursor = self._cursor, ""
            await self._stream.write(requests.acknowledgement(cursor))

    async def _until_end(self, talk: Coroutine[Any, Any, Parting | None]) -> None:
        """Runs one of the two tasks; whichever comes to an end first ends the conversation."""
        try:
            self._ends(await talk)
        except ConnectionClosed:
            self._ends(None)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            self._ends(await self._ended())
        except (grpc.RpcError, asyncio.InvalidStateError):
            self._ends(await self._ended())
        except Exception as error:
            logger().error("a conversation failed", exc_info=error)
            self._ends(partings.refused(Failure(Reason.INTERNAL)))

    def _end_if_done(self) -> None:
        if self._leaving and not self._unanswered:
            self._ends(partings.draining())

    def _ends(self, parting: Parting | None) -> None:
        if not self._end.done():
            self._end.set_result(parting)

    async def _ended(self) -> Parting:
        """The end that the stream came to."""
        code, trailers = await self._stream.code(), await self._stream.trailing_metadata()
        return partings.stream_ended(code, trailers or (), self._limited)


def _is_cancelled() -> bool:
    """Whether this task is; otherwise gRPC says by the same error that the other side has cancelled the call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
