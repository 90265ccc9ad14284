"""Files: chunks, a streamed PUT and a download, each beside what one process does with the same bytes alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import psutil
from satchel.uploads.v1 import uploads_pb2, uploads_pb2_grpc

from bench.http1 import Connection, connections, request
from bench.report import Line
from bench.rounds import Measure, Pair
from bench.servers import LOOPBACK
from bench.stack import Stack
from bench.wire import channels, metadata, sign_up

MIB: Final = 1024 * 1024
CHUNKS: Final = 128  # of a file that is sent chunk by chunk: MiB
STREAMED: Final = 1024  # MiB of a file that is sent in one go, and read
AT_ONCE: Final = 4
BYTES: Final = "one process that hashes and pwrites"
COPY: Final = "bare file-to-socket copy"
# Memory: so many phones at once, each with a file of so many MiB.
PHONES: Final = 20
EACH: Final = 200

# The first bytes of an MP4 file: a box of 24 bytes that says so.
_HEAD: Final = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
_CHUNK_RPC: Final = "/satchel.uploads.v1.UploadService/UploadChunk"


class Film:
    """A file of random bytes whose last MiB is new each time: its hash costs one MiB, whatever its length."""

    def __init__(self, chunks: int) -> None:
        # Longer than any cache, and no more memory than that.
        noise = os.urandom(64 * MIB)
        pieces = [noise[at : at + MIB] for at in range(0, len(noise), MIB)]
        self.chunks = [_HEAD + pieces[0][len(_HEAD) :], *(pieces[1 + at % 63] for at in range(chunks - 1))]
        self._begun = hashlib.sha256()
        for chunk in self.chunks[:-1]:
            self._begun.update(chunk)
        self.sums = [hashlib.sha256(chunk).hexdigest() for chunk in self.chunks]
        self.hash = ""
        self.renew()

    def renew(self) -> Film:
        """Another file."""
        self.chunks[-1] = os.urandom(16) + self.chunks[-1][16:]
        self.sums[-1] = hashlib.sha256(self.chunks[-1]).hexdigest()
        whole = self._begun.copy()
        whole.update(self.chunks[-1])
        self.hash = whole.hexdigest()
        return self

    @property
    def size(self) -> int:
        return len(self.chunks) * MIB


class Sender:
    """A phone that has an account and sends files."""

    def __init__(self, edge: str, channel: grpc.aio.Channel, token: str) -> None:
        self.edge = edge
        self.token = token
        self._stub = uploads_pb2_grpc.UploadServiceStub(channel)

    async def init(self, film: Film) -> str:
        asked = uploads_pb2.InitUploadRequest(
            filename="film.mp4", total_size=film.size, mime_type="video/mp4", file_hash=film.hash
        )
        return str((await self._stub.InitUpload(asked, metadata=metadata(self.token))).upload_id)

    async def finalize(self, upload_id: str) -> None:
        asked = uploads_pb2.FinalizeUploadRequest(upload_id=upload_id)
        while True:
            try:
                await self._stub.FinalizeUpload(asked, metadata=metadata(self.token))
                return
            except grpc.aio.AioRpcError as error:
                # Where many files are put together at once, a phone is told to ask again.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.5)

    async def delete(self, upload_id: str) -> None:
        """The file that the upload has become."""
        await self._stub.DeleteFile(uploads_pb2.DeleteFileRequest(file_id=upload_id), metadata=metadata(self.token))

    async def finish(self, upload_id: str) -> None:
        """Looks whether everything has arrived as it was sent, and makes room."""
        await self.finalize(upload_id)
        await self.delete(upload_id)


async def pairs(stack: Stack, home: Path, exit: AsyncExitStack, finalized: list[float]) -> list[Pair]:
    """Adds to `finalized` how long it took to finalize each file that came in one go, seconds."""
    edge, (token,) = stack.addresses["envoy"], await sign_up(stack.addresses["envoy"], 1)
    (channel,) = await exit.enter_async_context(channels(stack.addresses["uploads"], 1))
    sender, film, long = Sender(edge, channel, token), Film(CHUNKS), Film(STREAMED)
    opened = await exit.enter_async_context(connections(edge, AT_ONCE))
    floor, long_floor = _written(home, film), _written(home, long)
    named = f"Chunks of 1 MiB, {AT_ONCE} at once"
    read = f"Download of {STREAMED} MiB through Envoy (wanted: 400 MiB/s)"
    put = f"One streamed PUT of {STREAMED} MiB through Envoy"
    rows: list[tuple[str, Measure, str, Measure, float | None]] = [
        (f"{named}, through Envoy", _chunks(sender, film, partial(_by_http, sender, film, opened)), BYTES, floor, 0.6),
        (f"{named}, gRPC", _chunks(sender, film, partial(_by_grpc, sender, film, channel)), BYTES, floor, 0.75),
        ("What hashing those twice leaves, a thread per core, no server", _twice(home, film), BYTES, floor, None),
        (put, _put(sender, long, finalized), BYTES, long_floor, 0.6),
        (read, await _download(sender, long), COPY, _copied(home, long), None),
    ]
    return [
        Pair(name=name, floor_name=beside, unit="MiB/s", figure=figure, floor=under, target=target)
        for name, figure, beside, under, target in rows
    ]


def finalizing(finalized: Sequence[float]) -> Line:
    """How long it took to finalize a long file that had come in order."""
    took = median(finalized) * 1000
    return Line(
        name=f"Finalizing a file of {STREAMED} MiB that came in order",
        figure=f"{took:.0f} ms",
        target="at most 100 ms",
        met=took <= 100,
    )


async def memory(stack: Stack) -> Line:
    """What the uploads service grows by while twenty phones send at once, each in chunks, four at a time."""
    edge = stack.addresses["envoy"]
    film = Film(EACH)
    processes = [psutil.Process(pid) for pid in stack.pids("uploads")]

    def held() -> int:
        return sum(process.memory_info().rss for process in processes)

    tokens, idle, most = await sign_up(edge, PHONES), held(), 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, held())
            await asyncio.sleep(0.05)

    async with channels(stack.addresses["uploads"], 1) as (channel,), connections(edge, PHONES * AT_ONCE) as opened:
        watching = asyncio.create_task(watch())
        senders = [Sender(edge, channel, token) for token in tokens]

        async def send(number: int, sender: Sender) -> None:
            upload_id = await sender.init(film)
            await _by_http(sender, film, opened[number * AT_ONCE : (number + 1) * AT_ONCE], upload_id)
            await sender.finish(upload_id)

        await asyncio.gather(*(send(number, sender) for number, sender in enumerate(senders)))
        watching.cancel()
    grown = (most - idle) / MIB
    return Line(
        name=f"Memory of the uploads service above idle, {PHONES} files of {EACH} MiB at once",
        figure=f"{grown:.0f} MiB",
        target="at most 150 MiB",
        met=grown <= 150,
    )


def _chunks(sender: Sender, film: Film, send: Callable[[str], Any]) -> Measure:
    async def measure(seconds: float) -> float:
        del seconds  # the whole file, however long it takes
        upload_id = await sender.init(film.renew())
        started = time.perf_counter()
        await send(upload_id)
        took = time.perf_counter() - started
        await sender.finish(upload_id)
        return len(film.chunks) / took

    return measure


async def _by_http(sender: Sender, film: Film, opened: Sequence[Connection], upload_id: str) -> None:
    waiting = iter(range(len(film.chunks)))

    async def send(connection: Connection) -> None:
        for index in waiting:
            path = f"/api/v1/uploads/{upload_id}/chunk/{index}"
            head = request("POST", path, sender.edge, sender.token, MIB, {"x-chunk-checksum": film.sums[index]})
            await connection.send(head, film.chunks[index])

    await asyncio.gather(*(send(connection) for connection in opened))


async def _by_grpc(sender: Sender, film: Film, channel: grpc.aio.Channel, upload_id: str) -> None:
    waiting = iter(range(len(film.chunks)))
    call = channel.unary_unary(_CHUNK_RPC, response_deserializer=uploads_pb2.UploadChunkResponse.FromString)

    async def send() -> None:
        for index in waiting:
            chunk = uploads_pb2.UploadChunkRequest(upload_id=upload_id, chunk_index=index, checksum=film.sums[index])
            chunk.content.data = film.chunks[index]
            await call(chunk.SerializeToString(), metadata=metadata(sender.token))

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))


def _put(sender: Sender, film: Film, finalized: list[float]) -> Measure:
    async def measure(seconds: float) -> float:
        del seconds
        upload_id = await sender.init(film.renew())
        head = request("PUT", f"/api/v1/uploads/{upload_id}/content", sender.edge, sender.token, film.size)
        started = time.perf_counter()
        await asyncio.to_thread(_exchange, sender.edge, [head, *film.chunks])
        took = time.perf_counter() - started
        started = time.perf_counter()
        await sender.finalize(upload_id)
        finalized.append(time.perf_counter() - started)
        await sender.delete(upload_id)
        return len(film.chunks) / took

    return measure


async def _download(sender: Sender, film: Film) -> Measure:
    upload_id = await sender.init(film.renew())
    head = request("PUT", f"/api/v1/uploads/{upload_id}/content", sender.edge, sender.token, film.size)
    await asyncio.to_thread(_exchange, sender.edge, [head, *film.chunks])
    await sender.finalize(upload_id)
    asked = request("GET", f"/files/{upload_id}.mp4", sender.edge, sender.token)

    async def measure(seconds: float) -> float:
        del seconds
        started = time.perf_counter()
        await asyncio.to_thread(_read, sender.edge, asked, film.size)
        return len(film.chunks) / (time.perf_counter() - started)

    return measure


def _in_a_thread(work: Callable[[], float]) -> Measure:
    async def measure(seconds: float) -> float:
        del seconds  # all of it, however long it takes
        return await asyncio.to_thread(work)

    return measure


def _written(home: Path, film: Film) -> Measure:
    """The floor of sending: each MiB is hashed and written in its place, one after the other."""

    def write() -> float:
        path = home / "floor.bin"
        started = time.perf_counter()
        with path.open("wb") as file:
            for index, chunk in enumerate(film.chunks):
                hashlib.sha256(chunk).digest()
                os.pwrite(file.fileno(), chunk, index * MIB)
        took = time.perf_counter() - started
        path.unlink()
        return len(film.chunks) / took

    return _in_a_thread(write)


def _twice(home: Path, film: Film) -> Measure:
    """What the service cannot be faster than: each MiB hashed by itself and as a part of the whole, and written."""

    def write() -> float:
        path, whole = home / "twice.bin", hashlib.sha256()
        started = time.perf_counter()
        with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as threads, ThreadPoolExecutor(1) as one:
            done: list[Future[Any]] = []
            for index, chunk in enumerate(film.chunks):
                done.append(one.submit(whole.update, chunk))
                done.append(threads.submit(lambda chunk: hashlib.sha256(chunk).digest(), chunk))
                done.append(threads.submit(os.pwrite, file.fileno(), chunk, index * MIB))
            for future in done:
                future.result()
        took = time.perf_counter() - started
        path.unlink()
        return len(film.chunks) / took

    return _in_a_thread(write)


def _copied(home: Path, film: Film) -> Measure:
    """The floor of reading: the kernel copies a file to a socket, and one process reads it there."""
    path = home / "copied.bin"
    path.write_bytes(b"".join(film.chunks))

    def copy() -> float:
        with closing(socket.create_server((LOOPBACK, 0))) as server:
            started = time.perf_counter()
            thread = threading.Thread(target=_serve, args=(server, path))
            thread.start()
            _read("{}:{}".format(*server.getsockname()), b"\r\n\r\n", film.size)
            thread.join()
            return len(film.chunks) / (time.perf_counter() - started)

    return _in_a_thread(copy)


def _serve(server: socket.socket, path: Path) -> None:
    connection, _ = server.accept()
    with connection, path.open("rb") as file:
        connection.recv(1024)  # what was asked: a socket that is closed with something unread is reset
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.sendfile(file)


def _exchange(address: str, pieces: Sequence[bytes]) -> None:
    """Sends a request with a blocking socket, and looks whether it was answered with 200."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = connection.recv(64 * 1024)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode(errors="replace"))


def _read(address: str, asked: bytes, size: int) -> None:
    """Reads an answer of 200 and `size` bytes."""
    host, _, port = address.rpartition(":")
    buffer = bytearray(MIB)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(asked)
        got = connection.recv_into(buffer)
        head, _, body = bytes(buffer[:got]).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode(errors="replace"))
        read = len(body)
        while read < size and (got := connection.recv_into(buffer)):
            read += got
    if read != size:
        raise RuntimeError(f"{read} of {size} bytes were read")
