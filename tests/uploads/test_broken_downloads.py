"""Downloads whose bytes give out on the way: what a reader gets never looks like the whole of what was asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import grpc
import httpx
import pytest
from satchel.uploads.v1 import uploads_pb2 as pb
from satchel.uploads.v1 import uploads_pb2_grpc as pb_grpc

from tests.buckets import Bucket, bucket_on
from tests.conftest import config_for
from tests.sending import PATIENCE, Sending, some_file
from tests.uploads.test_upload_faults import Stand, stand_of, stand_on

# More than all that stands between the store and a reader holds, so that who stops reading stops the store as well.
CHUNKS = 48


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file, and a way to take its bytes away."""

    sending: Sending
    path: str
    target: str
    """Where gRPC callers connect."""
    give_out: Callable[[], Awaitable[None]]

    @property
    def data(self) -> bytes:
        return self.sending.data


async def stored(stand: Stand, give_out: Callable[[str], Awaitable[None]]) -> Stored:
    sending = await Sending.started(await stand.edge.phone(), some_file(CHUNKS))
    answer = await sending.stream(0)
    assert answer is not None
    path = httpx.URL((await sending.finalized())["file_url"]).path
    return Stored(sending=sending, path=path, target=stand.edge.target, give_out=lambda: give_out(sending.id))


async def cut(stand: Stand, id: str) -> None:
    os.truncate(stand.blobs / "files" / UUID(id).hex[:2] / id, 2 << 20)


@pytest.fixture(scope="module")
async def bucket(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bucket]:
    async with bucket_on("moto", tmp_path_factory.mktemp("moto")) as started:
        yield started


@pytest.fixture(params=["directory", "bucket"])
async def file(
    request: pytest.FixtureRequest,
    bucket: Bucket,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stored]:
    if request.param == "bucket":
        async with stand_on(bucket, database_url, tmp_path, monkeypatch) as (stand, front):

            async def refuse(_: str) -> None:
                front.turn("refuse")

            yield await stored(stand, refuse)
        return
    async with stand_of(config_for(tmp_path / "home", database_url=database_url), tmp_path) as stand:
        yield await stored(stand, lambda id: cut(stand, id))


@pytest.mark.parametrize("way", ["token", "link", "range"])
async def test_a_json_reader_sees_the_line_break(file: Stored, way: str) -> None:
    path, headers, expected = file.path, file.sending.phone.headers, len(file.data)
    if way == "link":
        signed = await file.sending.insist("POST", f"/api/v1/files/{file.sending.id}/signed-url", json={})
        path, headers = httpx.URL(signed.json()["url"]).raw_path.decode(), {}
    if way == "range":
        expected -= 10
        headers = {**headers, "range": "bytes=10-"}
    got = 0
    async with (
        httpx.AsyncClient(base_url=f"http://{file.target}", timeout=PATIENCE) as http,
        http.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == (206 if way == "range" else 200)
        assert answer.headers["content-length"] == str(expected)
        with pytest.raises(httpx.RemoteProtocolError):
            async for piece in answer.aiter_raw():
                if not got:
                    await file.give_out()
                got += len(piece)
    assert 0 < got < expected


async def test_a_grpc_reader_gets_no_good_status(file: Stored) -> None:
    got = 0
    async with grpc.aio.insecure_channel(file.target) as channel, asyncio.timeout(PATIENCE):
        call = pb_grpc.UploadServiceStub(channel).GetFile(
            pb.GetFileRequest(name=file.path.rpartition("/")[2]), metadata=file.sending.phone.metadata
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for piece in call:
                if not got:
                    await file.give_out()
                got += len(piece.data)
    assert 0 < got < len(file.data)
    assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)


async def test_a_line_that_breaks_takes_no_other_with_it(database_url: str, tmp_path: Path) -> None:
    async with stand_of(config_for(tmp_path / "home", database_url=database_url), tmp_path) as stand:
        files = [await stored(stand, lambda id: cut(stand, id)) for _ in range(2)]
        broken = asyncio.Event()

        async def read(one: Stored, http: httpx.AsyncClient) -> int:
            got = 0
            async with http.stream("GET", one.path, headers=one.sending.phone.headers) as answer:
                async for piece in answer.aiter_raw():
                    if not got and one is files[0]:
                        await one.give_out()
                    elif not got:
                        await broken.wait()
                    got += len(piece)
            return got

        async with httpx.AsyncClient(base_url=f"http://{files[0].target}", timeout=PATIENCE) as http:
            others = [asyncio.create_task(read(files[1], http)) for _ in range(4)]
            with pytest.raises(httpx.RemoteProtocolError):
                await read(files[0], http)
            broken.set()
            assert await asyncio.gather(*others) == [len(files[1].data)] * 4
