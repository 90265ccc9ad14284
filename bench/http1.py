"""A keep-alive HTTP/1.1 connection of a few lines, so that the client is not what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast


class Connection(asyncio.Protocol):
    """Sends finished requests, one at a time, and reads answers that say how long they are."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._end: int | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._end is None:
            head_end = self._received.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._end = head_end + 4 + _content_length(self._received[:head_end].lower())
        if len(self._received) >= self._end and self._answer is not None:
            answer, self._received, self._end = bytes(self._received), bytearray(), None
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    async def send(self, request: bytes, body: bytes = b"") -> bytes:
        """The whole answer. Raises RuntimeError when it is not 200."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        if body:
            self._transport.write(body)
        answer = await self._answer
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def connections(address: str, count: int) -> AsyncIterator[list[Connection]]:
    """`count` connections to host:port for as long as the block runs."""
    host, _, port = address.rpartition(":")
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            _, connection = await asyncio.get_running_loop().create_connection(Connection, host, int(port))
            stack.callback(connection.close)
            opened.append(connection)
        yield opened


def request(
    verb: str,
    path: str,
    address: str,
    token: str,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The head of a request, to which its body of `length` bytes is appended."""
    lines = [f"{verb} {path} HTTP/1.1", f"host: {address}", f"authorization: Bearer {token}"]
    if length is not None:
        lines += ["content-type: application/json", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _content_length(head: bytearray) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    raise RuntimeError(f"an answer without a length: {head.decode(errors='replace')}")
