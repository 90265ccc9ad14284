"""Owns a relay for HTTP/1.1 in front of the edge: it counts calls, holds bodies back, and answers in its place."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

PIECE = 65536


class Relay:
    """A door of its own to a server, for one client."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._allowance: int | None = None
        self._opened = asyncio.Event()
        self.held = asyncio.Event()
        """A body is waiting."""
        self.calls: list[tuple[str, dict[str, str]]] = []
        """`POST /path` and the headers of each call that came."""
        self.instead: deque[tuple[str, str]] = deque()
        """The first call whose first line holds the first text gets the second for an answer, and goes no further."""
        self.refused = 0
        """Connections that nobody took on the other side."""
        self.url = ""

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def count(self, text: str) -> int:
        """How many calls had this in their first line."""
        return sum(text in line for line, _ in self.calls)

    def allow(self, size: int) -> None:
        """Lets so many bytes of bodies to /api/v1/uploads/{id}/ through, chunks only whole, and holds what follows."""
        self._allowance = size

    def release(self) -> None:
        """Lets everything through again."""
        self._allowance = None
        self._opened.set()

    def hang_up(self) -> None:
        """Drops every connection."""
        for writer in self._open:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far: asyncio.StreamWriter | None = None
        answers: asyncio.Task[None] | None = None
        self._open.add(writer)
        try:
            try:
                far_reader, far = await asyncio.open_connection(*self._target)
            except OSError:
                self.refused += 1
                raise
            answers = asyncio.create_task(self._answers(far_reader, writer))
            while True:
                await self._request(reader, far, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two is gone: the other one finds a connection that ends
        finally:
            self._open.discard(writer)
            if answers is not None:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()
                    with suppress(OSError):
                        await end.wait_closed()

    async def _request(
        self, reader: asyncio.StreamReader, far: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        self.calls.append((line, headers))
        left = int(headers.get("content-length", "0"))
        if self.instead and self.instead[0][0] in line:
            _, answer = self.instead.popleft()  # before others come, who would find the same one
            await reader.readexactly(left)
            writer.write(answer.encode())
            await writer.drain()
            return
        if "/chunk/" in line:
            await self._take(left)
        far.write(head)
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise ConnectionResetError
            if line.startswith("PUT "):
                await self._take(len(piece))
            far.write(piece)
            await far.drain()
            left -= len(piece)

    async def _take(self, size: int) -> None:
        if self._allowance is None:
            return
        if self._allowance < size:
            self.held.set()
            await self._opened.wait()
            return
        self._allowance -= size

    async def _answers(self, far: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await far.read(PIECE):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


def answer(status: str, body: str, *headers: str) -> str:
    """An answer in HTTP/1.1, such as `429 Too Many Requests`."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines) + "\r\n\r\n" + body
