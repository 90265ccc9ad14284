"""What comes of two calls that meet at one upload: one outcome, whatever comes first, on any number of replicas."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import LockNotAvailable

from runtime.call import Principal
from runtime.errors import Failure, Reason
from services.uploads.finalizing_domain import Receipt
from services.uploads.uploads_domain import Upload
from tests.uploads.replicas import (
    CHUNK,
    LIMITS,
    PATIENCE,
    QUOTA,
    Actor,
    Replica,
    World,
    asked,
    lock_waiters,
    piece,
    pieces,
    sha256,
    somebody,
    world,
)


@pytest.fixture
async def here(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with world(database_url, tmp_path / "blobs") as opened:
        yield opened


@pytest.fixture
async def replicas(here: World) -> AsyncIterator[tuple[Replica, Replica]]:
    async with here.replica() as one, here.replica() as two:
        yield one, two


async def outcome(doing: Awaitable[Any]) -> Any:
    """What it came to: its answer, or the reason of its refusal."""
    try:
        return await doing
    except Failure as failure:
        return failure.reason


async def begun(replica: Replica, data: bytes, caller: Principal, *sent: int) -> Upload:
    """An upload of `data` with some of its chunks."""
    upload = await replica.uploads.start(caller, asked(data))
    for index in sent:
        await chunk(replica, upload, index, data)
    return upload


async def chunk(replica: Replica, upload: Upload, index: int, data: bytes) -> Any:
    """Sends a chunk as it is in `data`."""
    return await outcome(replica.uploads.chunk(upload, index, piece(data, index), sha256(piece(data, index))))


async def finalized(replica: Replica, caller: Principal, upload: Upload) -> Any:
    return await outcome(replica.finalizer.finalize(caller, str(upload.id)))


async def cancelled(replica: Replica, caller: Principal, upload: Upload) -> Any:
    """As a phone that comes again when it is told to, since others hold the upload or wait for it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(LockNotAvailable):
                return await outcome(replica.uploads.cancel(caller, str(upload.id)))
            await asyncio.sleep(0.01)


@asynccontextmanager
async def held(here: World, id: UUID) -> AsyncIterator[None]:
    """Nobody else gets at the upload's row while the block runs."""
    async with here.store.hold(id):
        yield


async def waiting(here: World, many: int) -> None:
    """Returns when so many calls wait for a row that another one holds."""
    async with asyncio.timeout(PATIENCE):
        while await lock_waiters(here.db) < many:
            await asyncio.sleep(0.005)


async def in_line(here: World, id: UUID, *doings: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What comes of calls that stand in line for the upload's row, in this order."""
    tasks: list[asyncio.Task[Any]] = []
    async with held(here, id):
        for doing in doings:
            tasks.append(asyncio.ensure_future(outcome(doing())))
            await waiting(here, len(tasks))
    return list(await asyncio.gather(*tasks))


async def ended(here: World, upload: Upload, status: str, data: bytes = b"") -> None:
    """Asserts how the upload has ended, and that what there is on the disk is that and no more."""
    now = await here.store.find(upload.id)
    assert now is not None
    assert now.status == status
    assert not here.part(upload.id).exists()
    if status == "completed":
        assert here.file(upload.id).read_bytes() == data
    else:
        assert not here.file(upload.id).exists()
    assert await here.told_of(upload.id) == (status == "completed")
    assert await here.store.count(upload.id) == 0, "its chunks are forgotten"


both_orders = pytest.mark.parametrize("turned", [False, True], ids=["in this order", "the other way round"])


class TestChunks:
    async def test_the_same_chunk_twice_at_once_is_stored_once(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(3 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        actors = [Actor(str(number), chunk(replica, upload, 0, data)) for number, replica in enumerate(replicas)]
        for actor in actors:
            await actor.until_still(here.db)  # both have said what they will write, and neither has
        for actor in actors:
            actor.set_free()
        for answer in await asyncio.gather(*(actor.task for actor in actors)):
            assert (answer.stored, answer.remaining) == (1, 2)
        found = await here.store.find(upload.id)
        assert found is not None
        assert not found.contested, "the same bytes"
        assert (await replicas[1].uploads.status(caller, str(upload.id))).stored == [0]

    async def test_of_different_bytes_for_a_chunk_one_is_stored_and_the_file_is_read_before_it_is_believed(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        other = os.urandom(2 * CHUNK)
        upload = await begun(replicas[0], data, caller, 1)
        wrong = Actor("wrong", chunk(replicas[0], upload, 0, other))
        await wrong.until_still(here.db)
        assert (await chunk(replicas[1], upload, 0, data)).remaining == 0
        wrong.set_free()
        assert await wrong.task is Reason.UNAVAILABLE, "it came first and does not count"
        assert await chunk(replicas[0], upload, 0, other) is Reason.CHUNK_CHECKSUM
        assert (await chunk(replicas[0], upload, 0, data)).remaining == 0
        # Its bytes came last: they are what is there, and not what was announced.
        assert await finalized(replicas[1], caller, upload) is Reason.FILE_CHECKSUM
        await ended(here, upload, "failed")

    async def test_who_writes_other_bytes_after_the_end_does_not_reach_the_file(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 1)
        late = Actor("late", chunk(replicas[0], upload, 0, os.urandom(2 * CHUNK)))
        await late.until_still(here.db)
        assert (await chunk(replicas[1], upload, 0, data)).remaining == 0
        assert isinstance(await finalized(replicas[1], caller, upload), Receipt)
        late.set_free()
        await late.task
        await ended(here, upload, "completed", data)

    async def test_a_sender_who_has_the_part_open_at_the_end_does_not_reach_the_file_either(
        self, here: World, replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, other, caller = os.urandom(2 * CHUNK), os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 1)
        opened, go, real = threading.Event(), threading.Event(), os.pwrite

        def pwrite(descriptor: int, piece: memoryview, offset: int) -> int:
            if piece == other[:CHUNK]:
                opened.set()
                assert go.wait(30)
            return real(descriptor, piece, offset)

        # What is written to what is open goes there, by whatever name it has by then.
        monkeypatch.setattr(os, "pwrite", pwrite)
        late = asyncio.create_task(chunk(replicas[0], upload, 0, other))
        assert await asyncio.to_thread(opened.wait, 30)
        await chunk(replicas[1], upload, 0, data)
        assert isinstance(await finalized(replicas[1], caller, upload), Receipt)
        go.set()
        assert await late is not None
        await ended(here, upload, "completed", data)


class TestAgainstTheEnd:
    @both_orders
    async def test_a_chunk_against_finalize(self, here: World, replicas: tuple[Replica, Replica], turned: bool) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0)
        doings = [lambda: chunk(replicas[0], upload, 1, data), lambda: finalized(replicas[1], caller, upload)]
        answers = await in_line(here, upload.id, *(reversed(doings) if turned else doings))
        sent, receipt = reversed(answers) if turned else answers
        assert sent.remaining == 0
        if not isinstance(receipt, Receipt):
            assert receipt is Reason.CHUNKS_MISSING, "it came before the chunk"
            receipt = await finalized(replicas[1], caller, upload)
        assert receipt.checksum == upload.file_hash
        await ended(here, upload, "completed", data)

    @both_orders
    async def test_a_chunk_that_is_sent_again_against_finalize_is_stored(
        self, here: World, replicas: tuple[Replica, Replica], turned: bool
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        doings = [lambda: chunk(replicas[0], upload, 1, data), lambda: finalized(replicas[1], caller, upload)]
        answers = await in_line(here, upload.id, *(reversed(doings) if turned else doings))
        sent, receipt = reversed(answers) if turned else answers
        assert (sent.remaining, receipt.file_size) == (0, len(data))
        again = await chunk(replicas[0], upload, 0, data)
        assert (again.remaining, again.percent) == (0, 100)
        await ended(here, upload, "completed", data)

    async def test_a_chunk_on_its_way_when_the_file_is_made_leaves_nothing_beside_it(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 1)
        slow = Actor("slow", chunk(replicas[0], upload, 0, data))
        await slow.until_still(here.db)
        await chunk(replicas[1], upload, 0, data)
        assert isinstance(await finalized(replicas[1], caller, upload), Receipt)
        slow.set_free()
        assert (await slow.task).remaining == 0
        await ended(here, upload, "completed", data)

    @pytest.mark.parametrize("elsewhere", [False, True], ids=["in one process", "in two"])
    async def test_two_finalizers_have_one_receipt_and_one_record(
        self, here: World, replicas: tuple[Replica, Replica], elsewhere: bool
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        if elsewhere:
            doings = [lambda one=one: finalized(one, caller, upload) for one in replicas]
            receipts = await in_line(here, upload.id, *doings)
        else:
            async with held(here, upload.id):
                finalizers = [asyncio.ensure_future(finalized(replicas[0], caller, upload)) for _ in range(2)]
                await waiting(here, 1)
            receipts = await asyncio.gather(*finalizers)
        assert isinstance(receipts[0], Receipt)
        assert receipts[0] == receipts[1] == await finalized(replicas[1], caller, upload)
        await ended(here, upload, "completed", data)

    async def test_two_finalizers_of_a_wrong_file_are_both_refused(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await replicas[0].uploads.start(caller, asked(data, file_hash=sha256(b"other")))
        for index in (0, 1):
            await chunk(replicas[0], upload, index, data)
        refusals = await in_line(here, upload.id, *(lambda one=one: finalized(one, caller, upload) for one in replicas))
        assert set(refusals) == {Reason.FILE_CHECKSUM, Reason.UPLOAD_NOT_FOUND}
        await ended(here, upload, "failed")

    @both_orders
    async def test_cancel_against_finalize(self, here: World, replicas: tuple[Replica, Replica], turned: bool) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        doings = [lambda: cancelled(replicas[0], caller, upload), lambda: finalized(replicas[1], caller, upload)]
        answers = await in_line(here, upload.id, *(reversed(doings) if turned else doings))
        left, receipt = reversed(answers) if turned else answers
        if isinstance(receipt, Receipt):
            assert left is Reason.UPLOAD_COMPLETED
            await ended(here, upload, "completed", data)
        else:
            assert (left, receipt) == (None, Reason.UPLOAD_NOT_FOUND)
            await ended(here, upload, "cancelled")

    async def test_cancel_while_the_file_is_being_made_waits_and_is_refused(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 1, 0)
        maker = Actor("maker", finalized(replicas[0], caller, upload))
        await maker.until_still(here.db)
        late = asyncio.ensure_future(cancelled(replicas[1], caller, upload))
        await waiting(here, 1)
        maker.set_free()
        assert await late is Reason.UPLOAD_COMPLETED
        assert isinstance(await maker.task, Receipt)
        await ended(here, upload, "completed", data)

    @both_orders
    async def test_cancel_against_a_chunk_leaves_no_bytes(
        self, here: World, replicas: tuple[Replica, Replica], turned: bool
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0)
        doings = [lambda: chunk(replicas[0], upload, 1, data), lambda: cancelled(replicas[1], caller, upload)]
        answers = await in_line(here, upload.id, *(reversed(doings) if turned else doings))
        sent, left = reversed(answers) if turned else answers
        assert left is None
        assert sent is Reason.UPLOAD_NOT_FOUND or sent.stored == 2
        await ended(here, upload, "cancelled")

    @pytest.mark.parametrize("steps", [0, 1], ids=["before its bytes", "after its bytes"])
    async def test_a_chunk_that_is_cancelled_on_its_way_leaves_no_bytes(
        self, here: World, replicas: tuple[Replica, Replica], steps: int
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        slow = Actor("slow", chunk(replicas[0], upload, 1, data))
        await slow.until_still(here.db)
        for _ in range(steps):
            slow.go_on()
            await slow.until_still(here.db)
        assert await cancelled(replicas[1], caller, upload) is None
        slow.set_free()
        assert await slow.task is Reason.UPLOAD_NOT_FOUND
        await ended(here, upload, "cancelled")

    async def test_a_stream_that_is_cancelled_on_its_way_leaves_no_bytes(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(4 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        slow = Actor("slow", outcome(replicas[0].streamed.content(upload, 0, pieces(data))))
        await slow.until_still(here.db)
        assert await cancelled(replicas[1], caller, upload) is None
        slow.set_free()
        assert await slow.task is Reason.UPLOAD_NOT_FOUND
        await ended(here, upload, "cancelled")

    @both_orders
    async def test_the_sweeper_against_finalize(
        self, here: World, replicas: tuple[Replica, Replica], turned: bool
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        if turned:  # it came in time, and takes longer
            maker = Actor("maker", finalized(replicas[1], caller, upload))
            await maker.until_still(here.db)
            here.clock.ahead = timedelta(seconds=LIMITS.expires_after_seconds + 1)
            assert await replicas[0].sweeps.expired() == 0, "what is being put together is nobody else's"
            maker.set_free()
            assert isinstance(await maker.task, Receipt)
            await ended(here, upload, "completed", data)
        else:
            here.clock.ahead = timedelta(seconds=LIMITS.expires_after_seconds + 1)
            sweeper = Actor("sweeper", replicas[0].sweeps.expired())
            await sweeper.until_still(here.db)
            assert await finalized(replicas[1], caller, upload) is Reason.UPLOAD_EXPIRED
            sweeper.set_free()
            assert await sweeper.task == 1
            await ended(here, upload, "expired")

    async def test_an_upload_whose_time_is_over_is_not_finalized_though_nobody_has_swept_it(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        here.clock.ahead = timedelta(seconds=LIMITS.expires_after_seconds + 1)
        assert await finalized(replicas[0], caller, upload) is Reason.UPLOAD_EXPIRED
        assert await asyncio.gather(*(replica.sweeps.expired() for replica in replicas)) in ([0, 1], [1, 0])
        await ended(here, upload, "expired")

    @pytest.mark.parametrize("steps", [0, 1], ids=["before its bytes", "after its bytes"])
    @pytest.mark.parametrize("streamed", [False, True], ids=["a chunk", "a stream"])
    async def test_the_sweeper_against_what_is_being_sent(
        self, here: World, replicas: tuple[Replica, Replica], streamed: bool, steps: int
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        sending = (
            outcome(replicas[0].streamed.content(upload, 0, pieces(data)))
            if streamed
            else chunk(replicas[0], upload, 1, data)
        )
        slow = Actor("slow", sending)
        await slow.until_still(here.db)
        for _ in range(steps):
            slow.go_on()
            await slow.until_still(here.db)
        here.clock.ahead = timedelta(seconds=LIMITS.expires_after_seconds + 1)
        assert await replicas[1].sweeps.expired() == 1
        slow.set_free()
        assert await slow.task is Reason.UPLOAD_EXPIRED
        await ended(here, upload, "expired")


class TestStreams:
    async def test_two_streams_of_an_upload_at_once_make_one_file(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(40 * CHUNK + 7), somebody()
        upload = await begun(replicas[0], data, caller)
        first = Actor("first", replicas[0].streamed.content(upload, 0, pieces(data)))
        await first.until_still(here.db)
        second = await replicas[1].streamed.content(upload, 0, pieces(data[:100], data[100:]))
        assert (second[0], second[1].remaining) == (len(data), 0)
        first.set_free()
        assert (await first.task)[0] == len(data)
        assert isinstance(await finalized(replicas[0], caller, upload), Receipt)
        await ended(here, upload, "completed", data)

    async def test_a_stream_against_chunks_makes_one_file(self, here: World, replicas: tuple[Replica, Replica]) -> None:
        data, caller = os.urandom(40 * CHUNK + 7), somebody()
        upload = await begun(replicas[0], data, caller)
        stream = replicas[0].streamed.content(upload, 0, pieces(data))
        answers = await asyncio.gather(
            outcome(stream), *(chunk(replicas[1], upload, index, data) for index in reversed(range(upload.chunks)))
        )
        # What was refused was being written by the stream at that moment; a phone comes again.
        again = [index for index, answer in enumerate(reversed(answers[1:])) if answer is Reason.UNAVAILABLE]
        for index in again:
            assert (await chunk(replicas[1], upload, index, data)).remaining >= 0
        assert (await replicas[0].uploads.status(caller, str(upload.id))).missing == []
        assert isinstance(await finalized(replicas[0], caller, upload), Receipt)
        await ended(here, upload, "completed", data)

    async def test_a_stream_against_finalize_tells_that_all_is_stored(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(3 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        slow = Actor("slow", replicas[0].streamed.content(upload, 0, pieces(data)))
        await slow.until_still(here.db)
        await replicas[1].streamed.content(upload, 0, pieces(data))
        assert isinstance(await finalized(replicas[1], caller, upload), Receipt)
        slow.set_free()
        offset, progress = await slow.task
        assert (offset, progress.remaining, progress.percent) == (len(data), 0, 100)
        await ended(here, upload, "completed", data)

    async def test_a_status_that_is_asked_for_while_the_file_is_made_never_misses_a_chunk(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(2 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1)
        assert isinstance(await finalized(replicas[1], caller, upload), Receipt)
        # As it was found before: its chunks are forgotten by now.
        status = await replicas[0].uploads.standing(upload)
        assert (status.upload.status, status.missing, status.offset) == ("completed", [], len(data))


class TestFiles:
    async def test_who_reads_a_file_while_it_is_deleted_gets_the_whole(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(QUOTA), somebody()
        upload = await begun(replicas[0], data, caller)
        await replicas[0].streamed.content(upload, 0, pieces(data))
        await finalized(replicas[0], caller, upload)
        name = f"{upload.id}.bin"
        file = await replicas[0].files.open(caller, name, "", "")
        reading = replicas[0].blobs.read(file.id, 0, QUOTA)
        reader = aiter(reading)
        first = await anext(reader)
        await replicas[1].files.delete(caller, str(file.id))
        assert first + b"".join([one async for one in reader]) == data
        assert await outcome(replicas[0].files.open(caller, name, "", "")) is Reason.NOT_FOUND
        await asyncio.gather(*(replica.files.delete(caller, str(file.id)) for replica in replicas))
        assert not here.file(upload.id).exists()


class TestStarts:
    async def test_the_same_words_twice_at_once_are_one_upload(self, replicas: tuple[Replica, Replica]) -> None:
        data, caller = os.urandom(CHUNK), somebody()
        started = await asyncio.gather(
            *(replicas[number % 2].uploads.start(caller, asked(data)) for number in range(8))
        )
        assert len({upload.id for upload in started}) == 1

    async def test_of_two_that_only_one_has_room_for_one_is_refused(self, replicas: tuple[Replica, Replica]) -> None:
        caller = somebody()
        starts = [
            outcome(replicas[number].uploads.start(caller, asked(os.urandom(QUOTA // 2 + 1)))) for number in range(2)
        ]
        answers = await asyncio.gather(*starts)
        assert sorted(isinstance(answer, Upload) for answer in answers) == [False, True]
        assert Reason.TIER_LIMIT in answers
        assert isinstance(await replicas[0].uploads.start(somebody(), asked(os.urandom(QUOTA))), Upload)

    async def test_a_start_against_cancel_names_an_upload_or_the_next_one(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        await in_line(
            here,
            upload.id,
            lambda: cancelled(replicas[0], caller, upload),
            lambda: replicas[1].uploads.start(caller, asked(data)),
        )
        again = await replicas[1].uploads.start(caller, asked(data))
        assert again.id != upload.id
        assert (await chunk(replicas[0], again, 0, data)).remaining == 0


class TestWholeHash:
    """How much of a file is read when it is finalized, beside the first bytes, which tell its type."""

    CHUNKS = 20

    async def hashed(self, replica: Replica, upload: Upload) -> None:
        """Returns when as much is hashed of the upload as can be."""
        running = replica.uploads._digests._running[upload.id]
        while running.task is not None and not running.task.done():
            await asyncio.wait({running.task})
        replica.blobs.read_chunks.clear()

    async def read_for(self, replica: Replica, caller: Principal, upload: Upload) -> list[int]:
        """What is read for the hash when the upload is finalized."""
        assert isinstance(await finalized(replica, caller, upload), Receipt)
        assert replica.blobs.read_chunks.pop() == 0
        return replica.blobs.read_chunks

    async def test_of_what_came_in_order_nothing_is_read(self, replicas: tuple[Replica, Replica]) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, *range(self.CHUNKS))
        await self.hashed(replicas[0], upload)
        assert await self.read_for(replicas[0], caller, upload) == []

    async def test_of_what_came_as_a_stream_nothing_is_read(self, replicas: tuple[Replica, Replica]) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        await replicas[0].streamed.content(upload, 0, pieces(data))
        await self.hashed(replicas[0], upload)
        assert await self.read_for(replicas[0], caller, upload) == []

    async def test_of_what_a_missing_chunk_kept_from_the_hash_only_that_is_read(
        self, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        gap = 12
        upload = await begun(replicas[0], data, caller, *(one for one in range(self.CHUNKS) if one != gap))
        await self.hashed(replicas[0], upload)
        # The last one comes by another process, as far as this one's memory goes: all from the gap on is to be read.
        await chunk(replicas[1], upload, gap, data)
        read = await self.read_for(replicas[0], caller, upload)
        assert read[0] == gap
        assert len(read) == len(set(read)) <= self.CHUNKS - gap, "some of those behind it may still be in memory"

    async def test_of_what_came_in_the_worst_order_each_chunk_is_read_once_at_most(
        self, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, *range(5), *reversed(range(5, self.CHUNKS)))
        read = await self.read_for(replicas[0], caller, upload)
        assert len(read) == len(set(read))
        assert set(read) <= set(range(9, self.CHUNKS)), "what was hashed before the gap, or held behind it"

    async def test_after_a_restart_everything_is_read(self, here: World, replicas: tuple[Replica, Replica]) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, *range(self.CHUNKS))
        async with here.replica() as fresh:
            assert await self.read_for(fresh, caller, upload) == list(range(self.CHUNKS))

    async def test_of_a_contested_upload_everything_is_read(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(self.CHUNKS * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, *range(self.CHUNKS - 1))
        wrong = Actor("wrong", chunk(replicas[1], upload, self.CHUNKS - 1, os.urandom(self.CHUNKS * CHUNK)))
        await wrong.until_still(here.db)
        await chunk(replicas[0], upload, self.CHUNKS - 1, data)
        assert isinstance(await finalized(replicas[0], caller, upload), Receipt)
        assert set(replicas[0].blobs.read_chunks) == set(range(self.CHUNKS))
        wrong.set_free()
        await wrong.task
        await ended(here, upload, "completed", data)


# What may happen to an upload of three chunks, of which the last is stored; by turns on one replica and the other.
KINDS = ("chunk 0", "chunk 1", "other 0", "stream", "other stream", "finalize", "cancel", "sweep")


@pytest.fixture(scope="module")
async def shared(
    new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[World, Replica, Replica]]:
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(world(new_database(), tmp_path_factory.mktemp("races") / "blobs"))
        yield opened, *[await stack.enter_async_context(opened.replica()) for _ in range(2)]


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
    turns=st.lists(st.integers(0, 3), max_size=16),
)
@settings(max_examples=80)
async def test_in_any_order_of_any_steps_there_is_one_outcome(
    shared: tuple[World, Replica, Replica], kinds: list[str], turns: list[int]
) -> None:
    here, *both = shared
    here.clock.ahead = timedelta()
    data, other, caller = os.urandom(3 * CHUNK), os.urandom(3 * CHUNK), somebody()
    upload = await begun(both[0], data, caller, 2)

    def doing(kind: str, replica: Replica) -> Awaitable[Any]:
        match kind.split():
            case ["chunk", index]:
                return chunk(replica, upload, int(index), data)
            case ["other", "0"]:
                return chunk(replica, upload, 0, other)
            case ["stream"]:
                return outcome(replica.streamed.content(upload, 0, pieces(data)))
            case ["other", "stream"]:
                return outcome(replica.streamed.content(upload, 0, pieces(other)))
            case ["finalize"]:
                return finalized(replica, caller, upload)
            case ["cancel"]:
                return cancelled(replica, caller, upload)
            case _:
                here.clock.ahead = timedelta(seconds=LIMITS.expires_after_seconds + 1)
                return outcome(replica.sweeps.expired())

    actors: list[Actor] = []
    remaining = [(kind, both[number % 2]) for number, kind in enumerate(kinds)]
    for turn in turns:
        # A turn is the next step of one that is on its way, or the beginning of the next one.
        if turn < len(actors):
            actor = actors[turn]
            actor.go_on()
        elif remaining:
            kind, replica = remaining.pop(0)
            actor = Actor(kind, doing(kind, replica))  # type: ignore[arg-type]  # coroutines, each of them
            actors.append(actor)
        else:
            continue
        await actor.until_still(here.db)
    for kind, replica in remaining:
        actors.append(Actor(kind, doing(kind, replica)))  # type: ignore[arg-type]
    for actor in actors:
        actor.set_free()
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*(actor.task for actor in actors))

    by_kind = [(actor.name, answer) for actor, answer in zip(actors, answers, strict=True)]
    receipts = {answer for _, answer in by_kind if isinstance(answer, Receipt)}
    left = any(name == "cancel" and answer is None for name, answer in by_kind)
    swept = any(name == "sweep" and answer for name, answer in by_kind)
    now = await here.store.find(upload.id)
    assert now is not None
    here.clock.ahead = timedelta()
    if now.status in ("active", "assembling"):
        assert not receipts | {left, swept} - {False}
        # The phone sends what is not stored, and it is a file; or other bytes were stored first, and it has failed.
        status = await both[0].uploads.status(caller, str(upload.id))
        for index in status.missing:
            assert (await chunk(both[1], now, index, data)).remaining >= 0
        last = await finalized(both[0], caller, upload)
        meant_otherwise = any(kind.startswith("other") for kind in kinds)
        assert isinstance(last, Receipt) or (last is Reason.FILE_CHECKSUM and meant_otherwise), last
        await ended(here, upload, "completed" if isinstance(last, Receipt) else "failed", data)
    else:
        assert [bool(receipts), left, swept].count(True) == (now.status != "failed"), (now.status, by_kind)
        assert len(receipts) <= 1
        await ended(here, upload, now.status, data)
    assert not [path for path in here.tree() if str(upload.id) in path and path.startswith("uploads/")]
    assert not list((here.root / "uploads").iterdir()), "a copy was left"


class TestLostClaims:
    async def test_a_chunk_whose_claim_was_given_back_is_not_acknowledged(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(3 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller)
        sender = Actor("chunk", chunk(replicas[0], upload, 1, data))
        await sender.until_still(here.db)  # claimed, and about to be written

        async def cut() -> AsyncIterator[bytes]:
            yield piece(data, 0)  # a stream claims the next chunks with this one, and breaks off
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await replicas[1].streamed.content(upload, 0, cut())
        sender.set_free()
        assert await sender.task is Reason.UNAVAILABLE
        assert await here.store.stored(upload.id) == [0]
        assert (await chunk(replicas[0], upload, 1, data)).stored == 2

    async def test_no_copy_of_a_contested_upload_stays_when_it_cannot_be_finalized(
        self, here: World, replicas: tuple[Replica, Replica]
    ) -> None:
        data, caller = os.urandom(3 * CHUNK), somebody()
        upload = await begun(replicas[0], data, caller, 0, 1, 2)
        async with here.db.statements() as statements:
            await statements.connection.execute("UPDATE uploads.uploads SET contested = true")
        with here.part(upload.id).open("r+b") as part:
            part.truncate(CHUNK)
        for _ in range(2):
            assert await finalized(replicas[0], caller, upload) in (Reason.FILE_CHECKSUM, Reason.UPLOAD_NOT_FOUND)
            assert here.tree() == set()
