"""What every store of uploads and files does, wherever it keeps them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from services.uploads.blobs import PIECE, BlobMissing, Blobs, open_blobs
from tests.blobs import CHUNK, chunks_of, content, ids, some_bytes, store, upload
from tests.buckets import Bucket, bucket_on

# And a server that checks signatures and keeps objects as files, where somebody has it.
KINDS = ["directory", "moto", *(["versitygw"] if shutil.which("versitygw") else [])]


@pytest.fixture(scope="module")
async def bucket(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bucket | None]:
    """The bucket of a kind that has one."""
    async with AsyncExitStack() as stack:
        is_directory = request.param == "directory"
        yield (
            None
            if is_directory
            else await stack.enter_async_context(bucket_on(request.param, tmp_path_factory.mktemp(request.param)))
        )


@pytest.fixture
async def blobs(bucket: Bucket | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Blobs]:
    """An empty store."""
    for name, value in (bucket.environment if bucket else {}).items():
        monkeypatch.setenv(name, value)
    async with open_blobs(bucket.url(uuid4().hex) if bucket else "", tmp_path) as store:
        yield store


pytestmark = pytest.mark.parametrize("bucket", KINDS, indirect=True, scope="module")


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 7 * CHUNK, 11 * CHUNK - 5])
async def test_a_file_has_the_bytes_of_its_chunks(blobs: Blobs, size: int) -> None:
    data = some_bytes(size)
    file_id = await store(blobs, data)
    assert await content(blobs, file_id, 0, size) == data
    assert await blobs.size(file_id) == size


async def test_chunks_come_in_any_order_and_more_than_once(blobs: Blobs) -> None:
    data, upload_id, file_id = some_bytes(6 * CHUNK - 100), uuid4(), uuid4()
    order = [5, 0, 3, 3, 1, 5, 4, 2, 0]
    for index in order:
        await blobs.write_chunk(upload_id, *chunks_of(data)[index])
    await blobs.assemble(upload_id, file_id, 6, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data


async def test_a_written_chunk_can_be_read(blobs: Blobs) -> None:
    data = some_bytes(2 * CHUNK + 10)
    upload_id = await upload(blobs, data)
    for index, offset, chunk in chunks_of(data):
        read = await blobs.read_chunk(upload_id, index, offset, len(chunk))
        assert isinstance(read, bytes)
        assert read == chunk


async def test_a_chunk_that_is_not_there_is_missing(blobs: Blobs) -> None:
    with pytest.raises(BlobMissing):
        await blobs.read_chunk(uuid4(), 0, 0, 10)
    upload_id = await upload(blobs, some_bytes(CHUNK + 10))
    with pytest.raises(BlobMissing):
        await blobs.read_chunk(upload_id, 1, CHUNK, 11)
    with pytest.raises(BlobMissing):
        await blobs.read_chunk(upload_id, 2, 2 * CHUNK, 1)


async def test_assembling_again_changes_nothing(blobs: Blobs) -> None:
    data, file_id = some_bytes(3 * CHUNK), uuid4()
    upload_id = await upload(blobs, data)
    for _ in range(3):
        await blobs.assemble(upload_id, file_id, 3, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data
    assert await ids(blobs.uploads) == []
    assert await ids(blobs.files) == [file_id]


async def test_an_empty_file_is_assembled_again(blobs: Blobs) -> None:
    upload_id, file_id = uuid4(), uuid4()
    for _ in range(2):
        await blobs.assemble(upload_id, file_id, 0, 0)
    assert await blobs.size(file_id) == 0
    assert await ids(blobs.uploads) == []


@pytest.mark.parametrize("size", [0, 1, 11 * CHUNK - 5])
async def test_a_file_that_is_all_there_is_put_as_one_and_again(blobs: Blobs, size: int) -> None:
    data, file_id = some_bytes(size), uuid4()
    for _ in range(2):
        await blobs.put(file_id, memoryview(data))
        assert await content(blobs, file_id, 0, size) == data
    assert await ids(blobs.uploads) == []
    assert await ids(blobs.files) == [file_id]


@pytest.mark.parametrize("chunks", [3, 9], ids=["small", "large"])
@pytest.mark.parametrize("wrong", [-1, 1])
async def test_an_upload_of_another_size_becomes_no_file(blobs: Blobs, chunks: int, wrong: int) -> None:
    data, file_id = some_bytes(chunks * CHUNK), uuid4()
    upload_id = await upload(blobs, data)
    with pytest.raises(BlobMissing):
        await blobs.assemble(upload_id, file_id, chunks, len(data) + wrong)
    assert await blobs.size(file_id) is None
    # And nothing was lost by trying.
    await blobs.assemble(upload_id, file_id, chunks, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data


async def test_an_upload_that_is_not_there_becomes_no_file(blobs: Blobs) -> None:
    with pytest.raises(BlobMissing):
        await blobs.assemble(uuid4(), uuid4(), 1, 10)


async def test_a_discarded_upload_is_gone(blobs: Blobs) -> None:
    upload_id, other = await upload(blobs, some_bytes(3 * CHUNK)), await upload(blobs, some_bytes(10))
    for _ in range(2):
        await blobs.discard(upload_id)
    assert await ids(blobs.uploads) == [other]
    with pytest.raises(BlobMissing):
        await blobs.read_chunk(upload_id, 0, 0, 1)


async def test_a_removed_file_is_gone(blobs: Blobs) -> None:
    file_id, other = await store(blobs, some_bytes(100)), await store(blobs, some_bytes(200))
    for _ in range(2):
        await blobs.remove(file_id)
    assert await blobs.size(file_id) is None
    assert await ids(blobs.files) == [other]


async def test_any_range_of_a_file_can_be_read(blobs: Blobs) -> None:
    data = some_bytes(3 * CHUNK + 77)
    file_id = await store(blobs, data)
    size = len(data)
    edges = [0, 1, PIECE - 1, PIECE, 2 * PIECE, CHUNK, CHUNK + 1, 2 * CHUNK - 1, size - 1, size]
    for start, end in [(start, end) for start in edges for end in edges if start <= end]:
        pieces = [piece async for piece in blobs.read(file_id, start, end)]
        assert b"".join(pieces) == data[start:end]
        assert all(isinstance(piece, bytes) and 0 < len(piece) <= PIECE for piece in pieces)


async def test_what_is_not_in_a_file_is_missing_ahead_of_the_first_piece(blobs: Blobs) -> None:
    file_id = await store(blobs, some_bytes(CHUNK))
    for wanted, start, end in [
        (uuid4(), 0, 0),
        (uuid4(), 0, 10),
        (file_id, 0, CHUNK + 1),
        (file_id, 2 * CHUNK, 3 * CHUNK),
    ]:
        with pytest.raises(BlobMissing):
            await anext(blobs.read(wanted, start, end))
    assert await blobs.size(uuid4()) is None


async def test_a_reader_may_go_before_the_end(blobs: Blobs) -> None:
    data = some_bytes(5 * CHUNK)
    file_id = await store(blobs, data)
    async with aclosing(blobs.read(file_id, 0, len(data))) as pieces:
        assert await anext(pieces) == data[: min(PIECE, CHUNK)]
    reading = asyncio.create_task(content(blobs, file_id, 0, len(data)))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await content(blobs, file_id, 0, len(data)) == data


async def test_a_file_that_is_removed_is_read_to_its_end_or_fails(blobs: Blobs) -> None:
    data = some_bytes(5 * CHUNK)
    file_id = await store(blobs, data)
    pieces = blobs.read(file_id, 0, len(data))
    got = await anext(pieces)
    await blobs.remove(file_id)
    try:
        async for piece in pieces:
            got += piece
    except BlobMissing:
        assert data.startswith(got)
    else:
        assert got == data


async def test_a_writer_that_goes_away_does_not_stop_the_others(blobs: Blobs) -> None:
    data, upload_id, file_id = some_bytes(8 * CHUNK), uuid4(), uuid4()
    writers = [asyncio.create_task(blobs.write_chunk(upload_id, *chunk)) for chunk in chunks_of(data)]
    await asyncio.sleep(0)
    writers[0].cancel()
    outcomes = await asyncio.gather(*writers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] + [type(None)] * 7
    await blobs.write_chunk(upload_id, *chunks_of(data)[0])
    await blobs.assemble(upload_id, file_id, 8, len(data))
    assert await content(blobs, file_id, 0, len(data)) == data


async def test_what_is_stored_is_listed_with_its_time(blobs: Blobs) -> None:
    uploads = [await upload(blobs, some_bytes(2 * CHUNK)) for _ in range(2)]
    files = [await store(blobs, some_bytes(size)) for size in (10, 20, 30)]
    assert await ids(blobs.uploads) == sorted(uploads)
    assert await ids(blobs.files) == sorted(files)
    async for listing in _all(blobs):
        # Buckets tell whole seconds.
        assert timedelta(seconds=-2) < datetime.now(UTC) - listing < timedelta(minutes=5)


async def _all(blobs: Blobs) -> AsyncIterator[datetime]:
    async for _, time in blobs.uploads():
        yield time
    async for _, time in blobs.files():
        yield time


async def test_a_store_is_marked_as_somebodys(blobs: Blobs) -> None:
    assert await blobs.mark() is None
    first, second = str(uuid4()), str(uuid4())
    for mark in (first, first, second):
        await blobs.set_mark(mark)
        assert await blobs.mark() == mark
    assert [one async for one in blobs.files()] == [one async for one in blobs.uploads()] == []
