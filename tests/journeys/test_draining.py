"""A service told to stop while answers are on their way for longer than it waits: none may look whole that is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import httpx
import psycopg
import pytest
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from deploy.parts import Child, running
from tests.conftest import Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.sessions.test_exports import store_42_megabytes

PATH = "/api/v1/sync/export"
PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class Stand:
    edge: Edge
    services: Child
    phone: Phone


@asynccontextmanager
async def stand_of(database_url: str, directory: Path, *, drain: float) -> AsyncIterator[Stand]:
    """A mesh whose services are one process that waits `drain` seconds for calls under way."""
    config = config_for(directory / "home", database_url=database_url)
    part = replace(service_part("all", config, directory, drain_timeout=str(drain)), grace=PATIENCE)
    async with running(part) as services, envoy_for(config, directory / "edge") as edge:
        await until_healthy(edge)
        phone = await edge.phone()
        store_42_megabytes(edge, phone)
        yield Stand(edge=edge, services=services, phone=phone)


def is_whole(raw: bytes) -> bool:
    """Whether HTTP/1.1 says that nothing is missing."""
    return raw.endswith(b"0\r\n\r\n")


async def read_all(line: socket.socket, begun: bytes) -> bytes:
    raw = bytearray(begun)
    try:
        async with asyncio.timeout(PATIENCE):
            while piece := await asyncio.get_running_loop().sock_recv(line, 1 << 16):
                raw += piece
                if is_whole(raw):
                    break
    except ConnectionResetError:
        pass
    return bytes(raw)


@asynccontextmanager
async def begun(stand: Stand) -> AsyncIterator[tuple[socket.socket, bytes]]:
    """An export whose reader takes the first of it and then pauses."""
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(line, ("127.0.0.1", stand.edge.port))
        token = stand.phone.headers["authorization"]
        await loop.sock_sendall(line, f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        first = b""
        while b'"format":"satchel-export"' not in first:
            first += await loop.sock_recv(line, 4096)
        assert first.startswith(b"HTTP/1.1 200 OK")
        yield line, first


async def test_an_export_that_outlives_the_grace_breaks_instead_of_looking_whole(
    database_url: str, tmp_path: Path
) -> None:
    async with stand_of(database_url, tmp_path, drain=0.5) as stand, begun(stand) as (line, first):
        await stand.services.stop()
        raw = await read_all(line, first)
        assert b'"end":true' not in raw
        assert not is_whole(raw)


async def test_a_reader_who_is_merely_slow_sees_it_too(database_url: str, tmp_path: Path) -> None:
    async with stand_of(database_url, tmp_path, drain=0.5) as stand:
        with pytest.raises(httpx.RemoteProtocolError):
            async with stand.edge.http.stream("GET", PATH, headers=stand.phone.headers) as answer:
                stopping: asyncio.Task[None] | None = None
                async for _ in answer.aiter_raw(1 << 16):
                    stopping = stopping or asyncio.create_task(stand.services.stop())
                    await asyncio.sleep(0.01)  # the pace of a bad network
        assert stopping is not None
        await stopping


async def test_a_grpc_reader_gets_no_good_status(database_url: str, tmp_path: Path) -> None:
    async with stand_of(database_url, tmp_path, drain=0.5) as stand:
        async with grpc.aio.insecure_channel(stand.edge.target) as channel:
            call = pb_grpc.SyncServiceStub(channel).ExportRecords(
                pb.ExportRecordsRequest(), metadata=stand.phone.metadata, timeout=PATIENCE
            )
            assert (await call.read()).data
            await stand.services.stop()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


async def test_one_that_waits_for_the_database_when_its_time_is_over_breaks_too(
    database_url: str, tmp_path: Path
) -> None:
    """Nothing is on its way then that an end would have to wait behind."""
    async with (
        stand_of(database_url, tmp_path, drain=0.5) as stand,
        await psycopg.AsyncConnection.connect(database_url) as other,
    ):
        await other.execute("LOCK TABLE sessions.conflicts IN ACCESS EXCLUSIVE MODE")
        got, end = 0, b""
        with pytest.raises(httpx.RemoteProtocolError):
            async with stand.edge.http.stream("GET", PATH, headers=stand.phone.headers) as answer:
                stopping: asyncio.Task[None] | None = None
                async for piece in answer.aiter_raw():
                    got, end = got + len(piece), (end + piece)[-400:]
                    if got > 41_000_000:  # all there is but the conflicts
                        stopping = stopping or asyncio.create_task(stand.services.stop())
        assert b'"end":true' not in end
        assert stopping is not None
        await stopping
