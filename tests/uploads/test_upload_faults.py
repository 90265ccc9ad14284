"""Parts that die, and lines that are cut, while phones send files: no byte is lost, asked for twice, or left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from uuid import UUID

import grpc
import httpx
import psycopg
import pytest
from satchel.uploads.v1 import uploads_pb2 as pb
from satchel.uploads.v1 import uploads_pb2_grpc as pb_grpc

from deploy.parts import Child, running
from deploy.postgres import postgres_part
from deploy.sockets import free_port
from runtime.clock import utc_now
from runtime.config import Config
from runtime.database import database
from runtime.outcomes import Outcomes
from runtime.server import serving
from services.uploads.blobs import MARK, open_blobs
from services.uploads.digests import hashing
from services.uploads.sweeps_domain import Sweeps
from services.uploads.uploads_store import UploadStore
from tests.buckets import BUCKET, Bucket, Front, bucket_on, client
from tests.conftest import ALL, Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone
from tests.sending import CHUNK, Sending, files_below, sha256, some_file, until

SAMPLES = Path(__file__).parent / "samples"
SESSIONS = ("sessions",)
OTHERS = ("auth", "health", "garmin", "websocket")


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A mesh whose uploads service is a process, to be killed; the others are in this one."""

    edge: Edge
    uploads: Child

    @property
    def config(self) -> Config:
        return self.edge.mesh.config

    @property
    def blobs(self) -> Path:
        return self.config.home / "blobs"

    async def crash(self, child: Child | None = None) -> None:
        """Kills the uploads service, or what is given."""
        child = child or self.uploads
        child.kill()
        await child.wait()

    async def rise(self, child: Child | None = None) -> None:
        child = child or self.uploads
        await child.start()
        await child.until_ready()

    async def column(self, name: str, upload_id: str) -> object:
        """A column of the upload's row."""
        async with await psycopg.AsyncConnection.connect(self.config.database_url, autocommit=True) as connection:
            found = await connection.execute(f"SELECT {name} FROM uploads.uploads WHERE id = %s", [upload_id])
            return (await found.fetchone() or [None])[0]

    async def swept(self) -> list[str]:
        """What lies in the store once the sweeper has gone through it, some hours from now."""
        async with (
            database(self.config.database_url, connections=2, name="tests") as db,
            open_blobs(self.config.blobs, self.config.home) as blobs,
        ):
            with hashing(blobs) as digests:
                later = utc_now() + timedelta(hours=3)
                sweeps = Sweeps(UploadStore(db), blobs, digests, outcomes=Outcomes(), now=lambda: later)
                await sweeps.round()
            uploads = [f"uploads/{id}" async for id, _ in blobs.uploads()]
            return sorted(uploads + [f"files/{id}" async for id, _ in blobs.files()])

    async def check_tidy(self, *sendings: Sending) -> None:
        """The store holds exactly these files, and the sweeper finds nothing else to do."""
        names = sorted(f"files/{UUID(one.id).hex[:2]}/{one.id}" for one in sendings)
        assert files_below(self.blobs) == names
        assert await self.swept() == sorted(f"files/{one.id}" for one in sendings)


@asynccontextmanager
async def others(config: Config, *names: str) -> AsyncIterator[None]:
    async with serving(config, {name: ALL[name] for name in names}):
        yield


@asynccontextmanager
async def stand_of(
    config: Config, directory: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Stand]:
    """`environment`: what the uploads service finds in it beside its settings."""
    part = service_part("uploads", config, directory, blobs=config.blobs)
    part = replace(part, env={**part.env, **(environment or {})})
    async with (
        envoy_for(config, directory / "edge") as edge,
        others(config, *SESSIONS, *OTHERS),
        running(part) as uploads,
    ):
        await until_healthy(edge)
        yield Stand(edge=edge, uploads=uploads)


@pytest.fixture
async def stand(database_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand_of(config_for(tmp_path / "home", database_url=database_url), tmp_path) as started:
        yield started


async def acknowledged(sending: Sending, chunks: int) -> None:
    """Returns when so many chunks are acknowledged."""

    async def enough() -> bool:
        return len(sending.acknowledged) >= chunks

    await until(enough, pause=0)


def at(place: int, do: Callable[[], Awaitable[None]]) -> Callable[[int], Awaitable[None]]:
    """What `Sending.stream` does once: as soon as `place` bytes have gone."""
    todo = [do]

    async def pause(gone: int) -> None:
        if todo and gone >= place:
            await todo.pop()()

    return pause


async def test_a_kill_of_the_service_between_parallel_chunks_costs_no_acknowledged_byte(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(16.3))
    for stored in (4, 9):
        pushing = asyncio.create_task(sending.some((await sending.status()).json()["missing_chunks"]))
        await acknowledged(sending, stored)
        await stand.crash()
        await pushing
        assert not await sending.chunk(16), "nobody is there"
        await stand.rise()
    await sending.rest()
    await sending.check_arrived()
    # Sent again was only what got no answer: of four senders each lost one by each of two kills, and one found nobody.
    assert sending.sent.total() <= sending.chunks + 2 * 4 + 2
    await stand.check_tidy(sending)


async def test_a_kill_of_the_service_in_a_streamed_body_costs_no_stored_byte(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(12.5))
    seen = 0

    async def kill() -> None:
        nonlocal seen
        while seen < 4 * CHUNK:
            seen = await sending.offset()
        await stand.crash()

    answer = await sending.stream(0, at(7 * CHUNK + 1, kill))
    assert answer is None or answer.status_code == 503
    await stand.rise()
    offset = await sending.offset()
    assert seen <= offset < len(sending.data)
    answer = await sending.stream(offset)
    assert answer is not None
    assert answer.json() == {"offset": len(sending.data), "remaining_chunks": 0, "progress_pct": 100}
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def test_a_kill_while_a_file_is_read_for_its_hash_leaves_the_upload_to_be_finalized(stand: Stand) -> None:
    phone, sendings = await stand.edge.phone(), list[Sending]()
    for _ in range(5):  # the kill may come too late
        sendings.append(await Sending.started(phone, some_file(40)))
        if await die_while_it_reads(stand, sendings[-1]):
            break
    sending = sendings[-1]
    assert await stand.column("status", sending.id) == "assembling"
    assert files_below(stand.blobs / "uploads") == [f"{sending.id}.part"]
    await stand.rise()
    answer = (await sending.status()).json()
    assert (answer["status"], answer["missing_chunks"], answer["progress_pct"]) == ("assembling", [], 100)
    await sending.check_arrived()
    assert set(sending.sent.values()) == {1}
    for one in sendings:
        await one.check_in_feed()
    await stand.check_tidy(*sendings)


async def die_while_it_reads(stand: Stand, sending: Sending) -> bool:
    """Kills the service in the middle of the finalization of a file that came from its end on; whether it was there."""
    if not stand.uploads.running:
        await stand.rise()
    await sending.rest_from_the_end()
    async with await psycopg.AsyncConnection.connect(stand.config.database_url, autocommit=True) as connection:
        finalizing = asyncio.create_task(sending.call("POST", f"{sending.path}/finalize"))

        async def assembling() -> bool:
            found = await connection.execute(
                "SELECT FROM uploads.uploads WHERE id = %s AND status <> 'active'", [sending.id]
            )
            return await found.fetchone() is not None

        await until(assembling, pause=0)
        await stand.crash()
        await finalizing
    return files_below(stand.blobs / "uploads") != []


async def test_a_kill_between_a_file_and_its_row_leaves_one_of_each(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(2))
    await sending.rest()
    await die_behind_the_rename(stand, sending)
    assert await stand.column("status", sending.id) == "assembling"
    await stand.rise()
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def test_a_kill_between_a_recording_and_its_row_leaves_nothing_and_it_is_handed_over_again(stand: Stand) -> None:
    phone = await stand.edge.phone()
    files = {"file": ("run.tcx", (SAMPLES / "run.tcx").read_bytes(), "application/octet-stream")}
    path = f"/activities/{phone.user_id}"
    async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
        await connection.execute("LOCK TABLE uploads.outbox")
        adding = asyncio.create_task(phone.call("POST", path, files=files))

        async def renamed() -> bool:
            return files_below(stand.blobs / "files") != []

        await until(renamed)
        await stand.crash()
        assert (await adding).status_code == 503
    await stand.rise()
    await until_healthy(stand.edge)
    assert (await phone.call("GET", "/api/v1/files")).json()["files"] == []
    added = await phone.call("POST", path, files=files)
    assert added.status_code == 201
    assert await stand.swept() == [f"files/{added.json()['activity_id']}"]


@pytest.mark.parametrize("way", ["cancelled", "expired"])
async def test_an_upload_that_ends_behind_such_a_kill_leaves_no_file(stand: Stand, way: str) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(2))
    await sending.rest()
    await die_behind_the_rename(stand, sending)
    await stand.rise()
    if way == "cancelled":
        assert (await sending.insist("DELETE", sending.path)).json()["cancelled"] is True
        assert files_below(stand.blobs) == []
    else:
        async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
            await connection.execute("UPDATE uploads.uploads SET expire_time = now() - interval '2 days'")
    assert await stand.swept() == []
    assert files_below(stand.blobs) == []
    assert await stand.column("status", sending.id) == way


async def die_behind_the_rename(
    stand: Stand, sending: Sending, before: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Kills the service when the bytes are a file already, and no row says so: the outbox is locked for it."""
    async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
        await connection.execute("LOCK TABLE uploads.outbox")
        finalizing = asyncio.create_task(sending.call("POST", f"{sending.path}/finalize"))

        async def renamed() -> bool:
            return any(name.endswith(sending.id) for name in files_below(stand.blobs / "files"))

        await until(renamed)
        if before is not None:
            await before()
        await stand.crash()
        await finalizing


async def test_a_kill_of_the_edge_in_a_body_costs_no_stored_byte(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(9.5))
    pushing = asyncio.create_task(sending.some(range(4, 8)))
    await acknowledged(sending, 1)
    await stand.crash(stand.edge.envoy)
    await pushing
    await stand.rise(stand.edge.envoy)
    await sending.status()
    seen = 0

    async def kill() -> None:
        nonlocal seen
        while seen < 2 * CHUNK:
            seen = await sending.offset()
        await stand.crash(stand.edge.envoy)

    assert await sending.stream(0, at(3 * CHUNK + 5, kill)) is None
    await stand.rise(stand.edge.envoy)
    offset = await sending.offset()
    assert seen <= offset < len(sending.data)
    answer = await sending.stream(offset)
    assert answer is not None
    assert answer.json()["remaining_chunks"] == 0
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def test_a_line_that_is_cut_in_a_chunk_leaves_nothing_of_it(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(3.5))
    assert await sending.chunk(0)
    for length, sent, hang_up in (
        (CHUNK, CHUNK // 2, "abort"),
        (CHUNK, CHUNK // 2, "end"),
        (CHUNK, CHUNK - 1, "end"),
        (2 * CHUNK, CHUNK, "end"),
    ):
        head = {"content-length": str(length), "x-chunk-checksum": sha256(sending.part(1))}
        await half_a_body(stand, sending, f"POST {sending.path}/chunk/1", head, sending.part(1)[:sent], hang_up)
    headers = {"x-chunk-checksum": sha256(sending.part(1))}
    short = await sending.phone.call("POST", f"{sending.path}/chunk/1", content=sending.part(1)[:-1], headers=headers)
    assert (short.status_code, short.json()["error"]["code"]) == (400, "SYNC_001")
    assert (await sending.status()).json()["uploaded_chunks"] == [0]
    await sending.rest()
    assert sending.sent.total() == sending.chunks
    await sending.check_arrived()
    await stand.check_tidy(sending)


@pytest.mark.parametrize("hang_up", ["abort", "end"])
async def test_a_line_that_is_cut_in_a_streamed_body_leaves_what_has_come(stand: Stand, hang_up: str) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(6.5))
    head = {"content-length": str(len(sending.data))}
    body = sending.data[: 3 * CHUNK + CHUNK // 2]

    async def three_stored() -> bool:
        return await sending.offset() == 3 * CHUNK

    await half_a_body(stand, sending, f"PUT {sending.path}/content", head, body, hang_up, lambda: until(three_stored))
    assert (await sending.status()).json()["uploaded_chunks"] == [0, 1, 2]
    answer = await sending.stream(3 * CHUNK)
    assert answer is not None
    assert answer.json()["remaining_chunks"] == 0
    assert await stand.column("contested", sending.id) is False, "who was cut off has given back what it had claimed"
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def half_a_body(
    stand: Stand,
    sending: Sending,
    line: str,
    head: Mapping[str, str],
    body: bytes,
    hang_up: str,
    before: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Begins a request and hangs up in its middle: at once, or with an end of what it sends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.edge.port)
    fields = {"host": "satchel", "content-type": "application/octet-stream", **sending.phone.headers, **head}
    writer.write(f"{line} HTTP/1.1\r\n".encode())
    writer.write("".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n" + body)
    await writer.drain()
    if before is not None:
        await before()
    if hang_up == "abort":
        writer.transport.abort()
        return
    writer.write_eof()
    answer = await reader.read()
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    writer.close()


async def test_a_stream_into_an_upload_that_is_cancelled_leaves_nothing(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(9))

    async def cancel() -> None:
        while not await sending.offset():
            pass
        await sending.insist("DELETE", sending.path)

    headers = {"content-length": str(len(sending.data))}
    pieces = sending.pieces(0, at(4 * CHUNK + 1, cancel))
    answer = await sending.phone.call("PUT", f"{sending.path}/content", content=pieces, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UPLOAD_001")
    assert files_below(stand.blobs) == []


async def test_a_stream_that_leaves_a_gap_does_not_say_that_all_before_it_is_stored(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(4.5))
    answer = await sending.stream(2 * CHUNK)
    assert answer is not None
    assert answer.json() == {"offset": 0, "remaining_chunks": 2, "progress_pct": 60}
    assert await sending.offset() == 0
    await sending.rest()
    await sending.check_arrived()


async def test_a_second_stream_beside_one_that_hangs_gets_the_file_through(stand: Stand) -> None:
    """As when a phone changes its network: the first line is not cut, for all that the server knows."""
    sending = await Sending.started(await stand.edge.phone(), some_file(9.5))
    answers = []

    async def again() -> None:
        while not await sending.offset():
            pass
        answers.append(await sending.stream(await sending.offset()))

    answers.append(await sending.stream(0, at(3 * CHUNK + 1, again)))
    for answer in answers:
        assert answer is not None
        assert answer.json() == {"offset": len(sending.data), "remaining_chunks": 0, "progress_pct": 100}
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def test_a_crash_of_the_database_costs_no_acknowledged_byte(tmp_path: Path) -> None:
    # Not in pytest's own directory, to which the account of PostgreSQL has no way.
    with TemporaryDirectory(prefix="satchel-") as directory:
        # Without fsync, which only a power cut would miss.
        part = postgres_part(Path(directory, "postgres"), log=tmp_path / "postgres.log", settings={"fsync": "off"})
        config = config_for(tmp_path / "home", database_url=part.url)
        async with running(part) as server, stand_of(config, tmp_path) as stand:
            phone = await stand.edge.phone()
            sending, streaming = [await Sending.started(phone, some_file(12.5)) for _ in range(2)]

            async def crash() -> None:
                """What `pg_ctl stop -m immediate` does."""
                os.kill(server.pid or 0, signal.SIGQUIT)
                await server.wait()

            pushing = asyncio.create_task(sending.some(range(sending.chunks)))
            await acknowledged(sending, 4)
            await crash()
            asked = [("POST", "/finalize"), ("DELETE", "")]
            for answer in await asyncio.gather(*(sending.call(verb, sending.path + path) for verb, path in asked)):
                assert answer is not None
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
            await pushing
            await stand.rise(server)
            await sending.rest()

            seen = 0

            async def crash_in_a_stream() -> None:
                nonlocal seen
                while seen < 3 * CHUNK:
                    seen = await streaming.offset()
                await crash()

            answer = await streaming.stream(0, at(5 * CHUNK, crash_in_a_stream))
            assert answer is None or answer.status_code == 503
            await stand.rise(server)
            offset = await streaming.offset()
            assert offset >= seen
            answer = await streaming.stream(offset)
            assert answer is not None
            assert answer.json()["remaining_chunks"] == 0

            finalizing = asyncio.create_task(streaming.call("POST", f"{streaming.path}/finalize"))
            await crash()
            await finalizing
            await stand.rise(server)
            await sending.check_arrived()
            await streaming.check_arrived()
            await stand.check_tidy(sending, streaming)


async def test_a_full_disk_says_so_and_the_upload_goes_on_when_there_is_room(stand: Stand) -> None:
    sending = await Sending.started(await stand.edge.phone(), some_file(5.5))
    sending.refusals.clear()  # the edge may have heard a moment later than we that the service is up
    room = 2 * CHUNK + CHUNK // 2  # the third chunk is written in half
    _, unlimited = resource.prlimit(stand.uploads.pid or 0, resource.RLIMIT_FSIZE)
    resource.prlimit(stand.uploads.pid or 0, resource.RLIMIT_FSIZE, (room, unlimited))
    await sending.some(range(sending.chunks), at_once=1)
    assert sending.acknowledged == {0, 1}
    assert not await sending.chunk(4)
    answer = await sending.stream(2 * CHUNK)
    assert answer is not None
    assert len(sending.refusals) == 3
    for refused in sending.refusals:
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
        assert refused.json()["error"]["message"] == "There is no room for files at the moment."
    assert (await sending.status()).json()["uploaded_chunks"] == [0, 1]
    resource.prlimit(stand.uploads.pid or 0, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    assert await sending.chunk(4)
    answer = await sending.stream(2 * CHUNK)
    assert answer is not None
    assert answer.json()["remaining_chunks"] == 0
    await sending.check_arrived()
    await stand.check_tidy(sending)


async def test_two_replicas_take_one_file_between_them_and_finalize_it_once(database_url: str, tmp_path: Path) -> None:
    """The sessions service is away until all is over; what it is to be told waits."""
    config = config_for(tmp_path / "home", database_url=database_url)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, tmp_path / "edge"))
        await stack.enter_async_context(others(config, *OTHERS))
        first, second = [await stack.enter_async_context(replica(config, tmp_path, name)) for name in ("a", "b")]
        stand = Stand(edge=edge, uploads=first.child)
        phone = await edge.phone()
        data = some_file(20.5)
        upload_id = await first.start(phone, data)
        sending = Sending(phone, data, upload_id)

        turns = iter(range(sending.chunks))

        async def sender(to: Replica) -> None:
            for index in turns:
                if not await to.chunk(sending, index):
                    return

        pushing = asyncio.gather(*(sender(one) for one in (first, second, first, second)))
        await acknowledged(sending, 5)
        await stand.crash(second.child)
        await pushing
        assert len(sending.acknowledged) < sending.chunks, "one of them was killed in the middle"
        await stand.rise(second.child)
        await second.until_ready(phone)
        missing = (await sending.status()).json()["missing_chunks"]
        assert all(await asyncio.gather(*(second.chunk(sending, index) for index in missing)))

        asking = [asyncio.create_task(sending.status()) for _ in range(20)]  # none of which finds a chunk missing
        receipts = await asyncio.gather(*[one.finalize(phone, upload_id) for one in (first, second) * 3])
        await asyncio.gather(*asking)
        assert len(set(receipts)) == 1
        assert await second.stream(sending, [3, 4]) == 0
        assert await in_outbox(stand) == [upload_id]
        async with others(config, *SESSIONS):
            await sending.check_arrived()
            assert await in_outbox(stand) == []
            await stand.check_tidy(sending)


async def test_the_other_replica_finalizes_when_one_dies_in_the_middle_of_it(database_url: str, tmp_path: Path) -> None:
    config = config_for(tmp_path / "home", database_url=database_url)
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(envoy_for(config, tmp_path / "edge"))
        await stack.enter_async_context(others(config, *SESSIONS, *OTHERS))
        first, second = [await stack.enter_async_context(replica(config, tmp_path, name)) for name in ("a", "b")]
        stand = Stand(edge=edge, uploads=first.child)
        phone = await edge.phone()
        data = some_file(2.5)
        sending = Sending(phone, data, await second.start(phone, data))
        await sending.rest()
        waiting = None

        async def ask_the_other() -> None:
            nonlocal waiting
            waiting = asyncio.create_task(second.finalize(phone, sending.id))
            await until(lambda: is_waited_for(stand))

        await die_behind_the_rename(stand, sending, ask_the_other)
        assert waiting is not None
        finalized = await waiting
        assert finalized is not None
        await stand.rise()
        assert await first.finalize(phone, sending.id) == finalized
        await sending.check_arrived()
        await stand.check_tidy(sending)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of several uploads services, asked without an edge in between."""

    child: Child
    stub: pb_grpc.UploadServiceStub

    async def start(self, phone: Phone, data: bytes) -> str:
        request = pb.InitUploadRequest(
            filename="a.ogg", total_size=len(data), mime_type="audio/ogg", file_hash=sha256(data)
        )
        answer = await self.stub.InitUpload(request, metadata=phone.metadata, timeout=30, wait_for_ready=True)
        return str(answer.upload_id)

    async def until_ready(self, phone: Phone) -> None:
        request = pb.GetUploadLimitsRequest()
        await self.stub.GetUploadLimits(request, metadata=phone.metadata, timeout=30, wait_for_ready=True)

    async def chunk(self, sending: Sending, index: int) -> bool:
        """Sends a chunk; whether it is stored."""
        part = sending.part(index)
        request = pb.UploadChunkRequest(upload_id=sending.id, chunk_index=index, checksum=sha256(part))
        request.content.data = part
        try:
            await self.stub.UploadChunk(request, metadata=sending.phone.metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False
        sending.acknowledged.add(index)
        return True

    async def stream(self, sending: Sending, indexes: Iterable[int]) -> int:
        """Sends chunks in one call; how many are missing then."""
        requests = [
            pb.UploadChunksRequest(
                upload_id=sending.id, chunk_index=index, data=sending.part(index), checksum=sha256(sending.part(index))
            )
            for index in indexes
        ]
        answer = await self.stub.UploadChunks(iter(requests), metadata=sending.phone.metadata, timeout=30)
        return int(answer.remaining_chunks)

    async def finalize(self, phone: Phone, upload_id: str) -> bytes:
        """The receipt, to the letter."""
        request = pb.FinalizeUploadRequest(upload_id=upload_id)
        answer = await self.stub.FinalizeUpload(request, metadata=phone.metadata, timeout=30, wait_for_ready=True)
        return bytes(answer.SerializeToString(deterministic=True))


@asynccontextmanager
async def replica(config: Config, directory: Path, name: str) -> AsyncIterator[Replica]:
    """`a` is the one that the edge knows."""
    if name != "a":
        config = config.model_copy(update={"uploads_address": f"127.0.0.1:{free_port()}"})
    part = replace(service_part("uploads", config, directory), log=directory / f"{name}.log")
    # Soon there again after it was.
    options = (("grpc.max_reconnect_backoff_ms", 200),)
    async with running(part) as child, grpc.aio.insecure_channel(config.uploads_address, options=options) as channel:
        await channel.channel_ready()
        yield Replica(child=child, stub=pb_grpc.UploadServiceStub(channel))


async def in_outbox(stand: Stand) -> list[str]:
    """The records that other services are still to be told of."""
    async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
        found = await connection.execute("SELECT record_id FROM uploads.outbox")
        return [record_id for (record_id,) in await found.fetchall()]


async def is_waited_for(stand: Stand) -> bool:
    """Whether somebody waits for an upload that somebody else holds."""
    async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
        found = await connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND query LIKE '%FROM uploads.uploads%FOR UPDATE'"
        )
        return await found.fetchone() is not None


async def test_the_record_of_a_file_waits_for_a_service_that_is_away(database_url: str, tmp_path: Path) -> None:
    """The relay dies, too, while it waits."""
    config = config_for(tmp_path / "home", database_url=database_url)
    async with (
        envoy_for(config, tmp_path / "edge") as edge,
        others(config, *OTHERS),
        running(service_part("uploads", config, tmp_path)) as uploads,
    ):
        stand = Stand(edge=edge, uploads=uploads)
        sending = await Sending.started(await edge.phone(), some_file(1.5))
        await sending.rest()
        receipt = await sending.finalized()
        await stand.crash()
        await stand.rise()
        assert await sending.finalized() == receipt
        assert await in_outbox(stand) == [sending.id]
        async with await psycopg.AsyncConnection.connect(stand.config.database_url) as connection:
            # A relay that was killed in the middle of telling is believed to be gone a minute later: now.
            await connection.execute("UPDATE uploads.outbox SET due_time = due_time - interval '1 minute'")
        async with others(config, *SESSIONS):
            await sending.check_arrived()
            await stand.check_tidy(sending)


@pytest.fixture(scope="module")
async def bucket(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bucket]:
    async with bucket_on("moto", tmp_path_factory.mktemp("moto")) as started:
        yield started


@asynccontextmanager
async def stand_on(
    bucket: Bucket, database_url: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Stand, Front]]:
    """A mesh whose files live in a bucket, and what stands between the two."""
    front = Front(bucket.endpoint)
    async with front.listening() as endpoint:
        environment = {**bucket.environment, "AWS_ENDPOINT_URL": endpoint}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)  # for the sweeper, which runs here
        config = config_for(directory / "home", database_url=database_url, blobs=bucket.url(directory.name))
        async with stand_of(config, directory, environment) as stand:
            yield stand, front


def objects(bucket: Bucket, stand: Stand) -> list[str]:
    """Every object there is of ours, but the one that tells whose they are."""
    prefix = stand.config.blobs.removeprefix(f"s3://{BUCKET}/") + "/"
    listed = client(bucket).list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    names = [one["Key"].removeprefix(prefix) for one in listed.get("Contents", [])]
    return [name for name in names if name != MARK]


async def test_a_file_goes_through_a_bucket_and_back(
    bucket: Bucket, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand_on(bucket, database_url, tmp_path, monkeypatch) as (stand, _):
        sending = await Sending.started(await stand.edge.phone(), some_file(7.5))
        await sending.some([2, 0, 5])
        answer = await sending.stream(CHUNK)
        assert answer is not None
        assert answer.json() == {"offset": len(sending.data), "remaining_chunks": 0, "progress_pct": 100}
        await sending.check_arrived()
        assert await asyncio.to_thread(objects, bucket, stand) == [f"files/{sending.id}"]
        path = httpx.URL((await sending.finalized())["file_url"]).path
        part = await sending.insist("GET", path, headers={"range": f"bytes={CHUNK - 3}-{3 * CHUNK + 2}"})
        assert (part.status_code, part.content) == (206, sending.data[CHUNK - 3 : 3 * CHUNK + 3])
        assert await stand.swept() == [f"files/{sending.id}"]
        for _ in range(2):
            assert (await sending.insist("DELETE", f"/api/v1/files/{sending.id}")).json() == {"deleted": True}
        assert await asyncio.to_thread(objects, bucket, stand) == []
        assert (await sending.phone.call("GET", path)).status_code == 404


@pytest.mark.parametrize("mode", ["refuse", "stall"])
async def test_a_bucket_that_fails_for_a_while_costs_no_acknowledged_byte(
    bucket: Bucket, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Literal["refuse", "stall"]
) -> None:
    async with stand_on(bucket, database_url, tmp_path, monkeypatch) as (stand, front):
        phone = await stand.edge.phone()
        read, unwanted, whole, sending, streaming = [await Sending.started(phone, some_file(4.5)) for _ in range(5)]
        await asyncio.gather(read.rest(), unwanted.rest(), whole.rest(), sending.some(range(3)))
        url = (await read.finalized())["file_url"]
        await unwanted.finalized()

        async def fail() -> None:
            while await streaming.offset() < 2 * CHUNK:
                pass
            front.turn(mode)
            failing.set()

        async def ask() -> list[httpx.Response | None]:
            await failing.wait()
            calls = [
                sending.call("POST", **sending.chunk_request(3)),
                whole.call("POST", f"{whole.path}/finalize"),
                unwanted.call("DELETE", f"/api/v1/files/{unwanted.id}"),
            ]
            if mode == "refuse":  # the edge asks for a file three times before it says so: too long to wait for here
                calls.append(read.call("GET", httpx.URL(url).path))
            return await asyncio.gather(*calls)

        failing = asyncio.Event()
        answer, answers = await asyncio.gather(streaming.stream(0, at(3 * CHUNK + 1, fail)), ask())
        assert {one and one.status_code for one in [answer, *answers]} == {503}
        assert (await streaming.status()).json()["uploaded_chunks"][:2] == [0, 1]
        front.turn("pass")

        await sending.rest()
        answer = await streaming.stream(await streaming.offset())
        assert answer is not None
        assert answer.json()["remaining_chunks"] == 0
        for one in (read, whole, sending, streaming):
            await one.check_arrived()
        assert (await unwanted.insist("DELETE", f"/api/v1/files/{unwanted.id}")).json() == {"deleted": True}
        left = sorted(f"files/{one.id}" for one in (read, whole, sending, streaming))
        assert await asyncio.to_thread(objects, bucket, stand) == left
        assert await stand.swept() == left
