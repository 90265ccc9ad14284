"""Owns a phone's line to the server: a relay that can be cut in the middle of a request or just before its answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress

CHUNK = 65536
_DATA, _HEADERS = 0, 1


class Line:
    """A TCP relay on a port of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault = ""
        self.port = 0
        self.cuts = {"request": 0, "answer": 0}
        """How often it was cut, by where."""

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self, where: str) -> None:
        """Has the next `request` cut in half, or the next `answer` swallowed after the server has given it."""
        self._fault = where

    def mend(self) -> None:
        """Takes back a cut that has not happened."""
        self._fault = ""

    def hang_up(self) -> None:
        """Drops every connection, as a phone does that loses its network."""
        for writer in self._open:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            ends.append(far_writer)
            self._open.add(far_writer)
            await asyncio.gather(
                self._pump(reader, far_writer, "request", ends), self._pump(far_reader, writer, "answer", ends)
            )
        except OSError:
            pass  # nobody listens there now: the phone sees a connection that ends
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.transport.abort()
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, ends: list[asyncio.StreamWriter]
    ) -> None:
        while data := await reader.read(CHUNK):
            if self._fault == kind and _carries(data):
                self._fault = ""
                self.cuts[kind] += 1
                if kind == "request":
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                break
            writer.write(data)
            await writer.drain()
        for end in ends:
            end.transport.abort()


def _carries(data: bytes) -> bool:
    """Whether a chunk is part of a call: a head of HTTP/1, or frames of HTTP/2 that begin with headers or data."""
    return data[:4].isalpha() or data.startswith(b"GET ") or (len(data) > 9 and data[3] in (_DATA, _HEADERS))
