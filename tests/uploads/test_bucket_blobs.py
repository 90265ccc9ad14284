"""What uploads and files in a bucket promise beyond what every store does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from uuid import uuid4

import pytest
from obstore.store import from_url

from runtime.config import Config
from services.uploads import bucket_blobs
from services.uploads.blobs import BlobError, BlobMissing, open_blobs
from services.uploads.bucket_blobs import PATIENCE, BucketBlobs
from tests.blobs import CHUNK, content, ids, some_bytes, store, upload
from tests.buckets import BUCKET, PAGE, Bucket, Front, bucket_on, client

# Seconds; a slow server is waited for this long.
BOUND = 2.0


@pytest.fixture(scope="module")
async def bucket(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bucket]:
    async with bucket_on("moto", tmp_path_factory.mktemp("moto")) as started:
        yield started


@dataclass(frozen=True)
class Store:
    """A store of its own prefix, and what stands between it and its server."""

    blobs: BucketBlobs
    front: Front
    bucket: Bucket
    url: str


@pytest.fixture
async def through(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    front = Front(bucket.endpoint)
    async with front.listening() as endpoint:
        for name, value in {**bucket.environment, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        url = bucket.url(uuid4().hex)
        yield Store(BucketBlobs.at(url, BOUND), front, bucket, url)


@pytest.mark.parametrize("mode", ["refuse", "stall"])
async def test_a_server_that_fails_is_told_in_time_and_found_again(through: Store, mode: str) -> None:
    blobs, data = through.blobs, some_bytes(7 * CHUNK)
    upload_id, file_id, new_id = await upload(blobs, data), await store(blobs, data), uuid4()
    attempts = [
        lambda: blobs.write_chunk(upload_id, 0, 0, data[:CHUNK]),
        lambda: blobs.read_chunk(upload_id, 0, 0, CHUNK),
        lambda: blobs.assemble(upload_id, new_id, 7, len(data)),
        lambda: blobs.discard(uuid4()),
        lambda: content(blobs, file_id, 0, 4),
        lambda: blobs.size(file_id),
        lambda: blobs.remove(uuid4()),
        lambda: ids(blobs.uploads),
        lambda: ids(blobs.files),
    ]
    through.front.turn(mode)

    async def attempt(call) -> None:
        began = monotonic()
        with pytest.raises(BlobError) as raised:
            await call()
        assert not isinstance(raised.value, BlobMissing)
        assert "http" not in str(raised.value)
        assert monotonic() - began < BOUND + 3

    await asyncio.gather(*(attempt(call) for call in attempts))
    through.front.turn("pass")
    await blobs.assemble(upload_id, new_id, 7, len(data))
    assert await content(blobs, new_id, 0, len(data)) == data
    assert await ids(blobs.files) == sorted([file_id, new_id])


async def test_a_server_that_fails_for_a_moment_is_not_noticed(through: Store) -> None:
    through.front.turn("refuse")
    writing = asyncio.create_task(through.blobs.write_chunk(uuid4(), 0, 0, some_bytes(CHUNK)))
    async with asyncio.timeout(30):
        while not through.front.requests:
            await asyncio.sleep(0)
    through.front.turn("pass")
    await writing


@pytest.mark.parametrize("mode", ["refuse", "stall"])
async def test_a_server_that_fails_in_the_middle_of_a_file_leaves_none(through: Store, mode: str) -> None:
    blobs, data, file_id = through.blobs, some_bytes(24 * CHUNK), uuid4()
    upload_id = await upload(blobs, data)
    assembling = asyncio.create_task(blobs.assemble(upload_id, file_id, 24, len(data)))
    s3 = client(through.bucket)
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(_unfinished, s3, through):
            await asyncio.sleep(0.005)
    through.front.turn(mode)
    began = monotonic()
    with pytest.raises(BlobError):
        await assembling
    # The parts that were on their way, and then the attempt to take back the others.
    assert monotonic() - began < 3 * BOUND + 5
    through.front.turn("pass")
    assert await blobs.size(file_id) is None
    await blobs.assemble(upload_id, file_id, 24, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data


async def test_assembling_goes_on_after_it_was_called_off(through: Store) -> None:
    blobs, data, file_id = through.blobs, some_bytes(24 * CHUNK), uuid4()
    upload_id = await upload(blobs, data)
    assembling = asyncio.create_task(blobs.assemble(upload_id, file_id, 24, len(data)))
    s3 = client(through.bucket)
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(_unfinished, s3, through):
            await asyncio.sleep(0.005)
    assembling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await assembling
    assert await blobs.size(file_id) is None
    await blobs.assemble(upload_id, file_id, 24, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data


def _unfinished(s3, through: Store) -> list[str]:
    prefix = through.url.removeprefix(f"s3://{BUCKET}/")
    return [one["Key"] for one in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) if prefix in one["Key"]]


async def test_an_upload_of_another_size_leaves_no_parts_behind(through: Store) -> None:
    upload_id = await upload(through.blobs, some_bytes(9 * CHUNK))
    with pytest.raises(BlobMissing):
        await through.blobs.assemble(upload_id, uuid4(), 9, 9 * CHUNK + 1)
    assert await asyncio.to_thread(_unfinished, client(through.bucket), through) == []


@pytest.mark.parametrize("step", ["_chunk_of", "discard", "_delete"])
async def test_assembling_goes_on_after_a_kill(through: Store, step: str) -> None:
    blobs, data, file_id = through.blobs, some_bytes(9 * CHUNK), uuid4()
    upload_id = await upload(blobs, data)
    script = f"""
import asyncio, os, signal, sys
from uuid import UUID
from services.uploads.bucket_blobs import BucketBlobs

real, calls = BucketBlobs.{step}, 0

def step(*args):
    global calls
    calls += 1
    if {step != "_chunk_of"} or calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

async def main(url, upload_id, file_id):
    BucketBlobs.{step} = step
    await BucketBlobs.at(url).assemble(UUID(upload_id), UUID(file_id), 9, {len(data)})

asyncio.run(main(*sys.argv[1:]))
"""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, through.url, str(upload_id), str(file_id)
    )
    assert await child.wait() == -signal.SIGKILL
    assert await blobs.size(file_id) == (None if step == "_chunk_of" else len(data))
    await blobs.assemble(upload_id, file_id, 9, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data
    assert (await ids(blobs.uploads), await ids(blobs.files)) == ([], [file_id])


async def test_an_upload_of_more_objects_than_a_page_is_assembled(
    through: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_blobs, "PAGE", PAGE)
    data, count = some_bytes(10 * (3 * PAGE + 1)), 3 * PAGE + 1
    upload_id, file_id = await upload(through.blobs, data, 10), uuid4()
    assert await ids(through.blobs.uploads) == [upload_id]
    await through.blobs.assemble(upload_id, file_id, count, len(data))
    assert await content(through.blobs, file_id, 0, len(data)) == data
    assert await ids(through.blobs.uploads) == []


async def test_a_bucket_that_is_not_there_is_no_missing_file(through: Store) -> None:
    blobs = BucketBlobs.at("s3://nowhere/prefix", BOUND)
    attempts = [
        lambda: blobs.write_chunk(uuid4(), 0, 0, b"1"),
        lambda: blobs.read_chunk(uuid4(), 0, 0, 1),
        lambda: blobs.assemble(uuid4(), uuid4(), 1, 1),
        lambda: blobs.size(uuid4()),
        lambda: blobs.remove(uuid4()),
        lambda: ids(blobs.files),
    ]
    for attempt in attempts:
        with pytest.raises(BlobError) as raised:
            await attempt()
        assert not isinstance(raised.value, BlobMissing)


async def test_names_that_are_not_ours_are_left_alone(through: Store) -> None:
    upload_id, file_id = await upload(through.blobs, b"123"), await store(through.blobs, b"1234")
    behind = from_url(through.url, client_options={"allow_http": True})
    for path in [
        "uploads/notes",
        f"uploads/{uuid4()}/notes",
        f"uploads/{uuid4()}",
        f"uploads/{str(uuid4()).upper()}/0",
        "files/notes",
        f"files/{uuid4()}/0",
        "notes",
        str(uuid4()),
    ]:
        await behind.put_async(path, b"")
    assert (await ids(through.blobs.uploads), await ids(through.blobs.files)) == ([upload_id], [file_id])


async def test_stores_in_one_bucket_keep_apart(through: Store) -> None:
    file_id = await store(through.blobs, b"1234")
    async with open_blobs(f"{through.url}-2", Path(os.devnull)) as other:
        assert await other.size(file_id) is None
        assert await ids(other.files) == []


def test_a_request_gives_up_before_the_call_that_waits_for_it() -> None:
    assert Config.model_fields["call_timeout"].default > PATIENCE
