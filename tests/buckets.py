"""S3 servers for tests, each a process of its own, and a front that can be told to fail."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import boto3

from deploy.parts import Part, running
from deploy.sockets import free_port, http_get

KEY, SECRET, BUCKET = "satchel", "satchel-secret", "files"
# Objects in a server's answer to a listing.
PAGE = 10


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server at `endpoint`."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What lets a client in, by the names that AWS's own tools read."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"


@asynccontextmanager
async def bucket_on(server: str, directory: Path) -> AsyncIterator[Bucket]:
    """An empty bucket on a fresh `server` (moto or versitygw), for as long as the block runs."""
    port, data = free_port(), directory / "data"
    data.mkdir()
    if server == "moto":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    else:
        command = ["versitygw", "--port", f"127.0.0.1:{port}", "posix", str(data)]

    async def answers() -> bool:
        return (await http_get(("127.0.0.1", port), "/"))[0] != 0

    # Short pages, for a listing to have several of them.
    environment = {
        **os.environ,
        "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE),
        "ROOT_ACCESS_KEY": KEY,
        "ROOT_SECRET_KEY": SECRET,
    }
    part = Part(name=server, command=command, log=directory / f"{server}.log", ready=answers, env=environment)
    async with running(part):
        bucket = Bucket(f"http://127.0.0.1:{port}")
        await asyncio.to_thread(client(bucket).create_bucket, Bucket=BUCKET)
        yield bucket


def client(bucket: Bucket):
    """Another client of the bucket, to look behind ours."""
    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


class Front:
    """Stands in front of a server and passes everything on, until it is told to fail."""

    def __init__(self, endpoint: str) -> None:
        self._host, self._port = urlsplit(endpoint).hostname, urlsplit(endpoint).port
        self._mode: Literal["pass", "refuse", "stall"] = "pass"
        self._connections: set[asyncio.StreamWriter] = set()
        self.requests = 0
        """That were refused."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its endpoint, for as long as the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self._hang_up()

    def turn(self, mode: Literal["pass", "refuse", "stall"]) -> None:
        """From now on: pass requests on, answer 500, or take them and never answer. Open connections end."""
        self._mode = mode
        self._hang_up()

    def _hang_up(self) -> None:
        for writer in self._connections:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                match self._mode:
                    case "pass":
                        await self._pass(reader, writer)
                    case "refuse":
                        await self._refuse(reader, writer)
                    case "stall":
                        await reader.read()
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(self._host, self._port)
        try:
            # Whoever of the two hangs up first ends both.
            ways = [
                asyncio.create_task(_pipe(reader, behind_writer)),
                asyncio.create_task(_pipe(behind_reader, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            behind_writer.close()

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next((line[15:] for line in head.split(b"\r\n") if line.startswith(b"content-length:")), b"0")
            await reader.readexactly(int(length))
            self.requests += 1
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
