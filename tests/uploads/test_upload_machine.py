"""Any order of chunks, streams, mistakes and restarts: what is told is what is stored, and the file is the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from runtime.errors import Failure, Reason
from services.uploads.finalizing_domain import Receipt
from tests.uploads.replicas import CHUNK, QUOTA, Replica, World, asked, piece, pieces, sha256, somebody, world

T = TypeVar("T")
# Runs that hash more chunks than are held or read ahead, and files of one byte.
SIZES = st.one_of(st.integers(1, 3 * CHUNK), st.integers(1, 12 * CHUNK))


class Upload(RuleBasedStateMachine):
    """One upload after the other, by one phone, to a process that may die."""

    url: str
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.outer, self.inner = AsyncExitStack(), AsyncExitStack()
        self.caller = somebody()
        self.here: World = self.run(self.outer.enter_async_context(world(self.url, self.root)))
        self.replica: Replica = self.run(self.inner.enter_async_context(self.here.replica()))

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    def outcome(self, doing: Coroutine[Any, Any, Any]) -> Any:
        try:
            return self.run(doing)
        except Failure as failure:
            return failure.reason

    def teardown(self) -> None:
        async def close() -> None:
            await self.inner.aclose()
            await self.outer.aclose()

        self.run(close())
        self.runner.close()

    @initialize(size=SIZES, honest=st.sampled_from([True, True, True, False]))
    def start(self, size: int, honest: bool) -> None:
        """`honest`: whether the hash that is announced is the file's."""
        self.data = uuid4().bytes * (QUOTA // 16)
        self.data = bytes(one ^ (number % 251) for number, one in enumerate(self.data))[:size]
        self.honest = honest
        words = asked(self.data, **({} if honest else {"file_hash": sha256(b"something else")}))
        self.upload = self.run(self.replica.uploads.start(self.caller, words))
        self.words = words
        self.stored: set[int] = set()
        self.ending = ""
        """How the upload has ended: completed, failed or cancelled."""

    def told(self, stored: int, progress: Any) -> None:
        """Asserts that an answer tells of so many chunks."""
        chunks = self.upload.chunks
        assert (progress.stored, progress.remaining) == (stored, chunks - stored)
        assert (progress.percent == 100) == (stored == chunks)

    @property
    def count(self) -> int:
        """How many chunks an answer must tell of."""
        return self.upload.chunks if self.ending == "completed" else len(self.stored)

    def refused_for_its_end(self, answer: Any) -> bool:
        if self.ending in ("failed", "cancelled"):
            assert answer is Reason.UPLOAD_NOT_FOUND
            return True
        return False

    async def _sent(self, index: int, data: bytes, checksum: str) -> Any:
        upload = await self.replica.uploads.find(self.caller, str(self.upload.id))
        return await self.replica.uploads.chunk(upload, index, data, checksum)

    @rule(place=st.integers(0, 100))
    def send(self, place: int) -> None:
        """A chunk, new or once more."""
        index = place % self.upload.chunks
        data = piece(self.data, index)
        answer = self.outcome(self._sent(index, data, sha256(data)))
        if not self.refused_for_its_end(answer):
            self.stored.add(index)
            self.told(self.count, answer)

    @rule(place=st.integers(0, 100))
    def send_with_a_wrong_checksum(self, place: int) -> None:
        index = place % self.upload.chunks
        answer = self.outcome(self._sent(index, piece(self.data, index), sha256(b"other")))
        if not self.refused_for_its_end(answer):
            assert answer is Reason.CHUNK_CHECKSUM

    @rule(place=st.integers(0, 100))
    def send_other_bytes_for_a_stored_chunk(self, place: int) -> None:
        """Where the chunk came by itself it is known which bytes it has; of a stream's nobody has told."""
        if not self.stored or self.ending:
            return
        index = sorted(self.stored)[place % len(self.stored)]
        data = bytes(255 - one for one in piece(self.data, index))
        answer = self.outcome(self._sent(index, data, sha256(data)))
        if answer is not Reason.CHUNK_CHECKSUM:
            self.told(self.count, answer)

    @rule(place=st.integers(0, 100), change=st.sampled_from([-CHUNK, -1, 1, CHUNK]))
    def send_a_wrong_length(self, place: int, change: int) -> None:
        index = place % self.upload.chunks
        data = (piece(self.data, index) + bytes(CHUNK))[: max(0, len(piece(self.data, index)) + change)]
        answer = self.outcome(self._sent(index, data, sha256(data)))
        if not self.refused_for_its_end(answer):
            assert answer is Reason.FIELD_INVALID

    @rule(index=st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]))
    def send_a_chunk_that_there_is_not(self, index: int) -> None:
        index = index if index < 0 or index > 1 else self.upload.chunks + index
        answer = self.outcome(self._sent(index, bytes(CHUNK), sha256(bytes(CHUNK))))
        if not self.refused_for_its_end(answer):
            assert answer is Reason.FIELD_INVALID

    async def _streamed(self, offset: int, *parts: bytes) -> Any:
        upload = await self.replica.uploads.find(self.caller, str(self.upload.id))
        return await self.replica.streamed.content(upload, offset, pieces(*parts))

    @rule(place=st.integers(0, 100), length=st.integers(0, 13 * CHUNK), cut=st.integers(1, 3 * CHUNK))
    def stream(self, place: int, length: int, cut: int) -> None:
        """From the beginning of a chunk on, in parts that end anywhere; it may break off in the middle of a chunk."""
        first = place % self.upload.chunks
        sent = self.data[first * CHUNK :][:length]
        answer = self.outcome(
            self._streamed(first * CHUNK, *(sent[at : at + cut] for at in range(0, len(sent), cut)), b"")
        )
        if self.refused_for_its_end(answer):
            return
        end = first * CHUNK + len(sent)
        whole = self.upload.chunks if end == len(self.data) else end // CHUNK
        if not self.ending:
            self.stored |= set(range(first, whole))
        offset, progress = answer
        assert offset == (len(self.data) if self.ending else self.offset)
        self.told(self.count, progress)

    @rule(place=st.integers(0, 100), more=st.integers(1, 2 * CHUNK))
    def stream_too_much(self, place: int, more: int) -> None:
        first = place % self.upload.chunks
        answer = self.outcome(self._streamed(first * CHUNK, self.data[first * CHUNK :] + bytes(more)))
        if not self.refused_for_its_end(answer) and not self.ending:
            assert answer is Reason.FIELD_INVALID
            self.stored |= set(range(first, self.upload.chunks))

    @rule(offset=st.integers(-CHUNK, 13 * CHUNK))
    def stream_from_nowhere(self, offset: int) -> None:
        if offset == len(self.data) or (0 <= offset < len(self.data) and offset % CHUNK == 0):
            return
        answer = self.outcome(self._streamed(offset, b"x"))
        if not self.refused_for_its_end(answer):
            assert answer is Reason.FIELD_INVALID

    @rule()
    def restart(self) -> None:
        """The process dies, and with it what it had in memory."""

        async def renewed() -> Replica:
            await self.inner.aclose()
            self.inner = AsyncExitStack()
            return await self.inner.enter_async_context(self.here.replica())

        self.replica = self.run(renewed())

    @rule()
    def start_again(self) -> None:
        """The same words name the same upload, and the file when there is one."""
        if self.ending in ("failed", "cancelled"):
            return
        again = self.run(self.replica.uploads.start(self.caller, self.words))
        assert again.id == self.upload.id
        assert again.status == (self.ending or "active")

    @rule()
    def finalize(self) -> None:
        answer = self.outcome(self.replica.finalizer.finalize(self.caller, str(self.upload.id)))
        if self.refused_for_its_end(answer):
            return
        if not self.ending and len(self.stored) < self.upload.chunks:
            assert answer is Reason.CHUNKS_MISSING
        elif not self.honest:
            assert answer is Reason.FILE_CHECKSUM
            self.ending = "failed"
        else:
            assert isinstance(answer, Receipt)
            assert (answer.file_size, answer.checksum.hex()) == (len(self.data), sha256(self.data))
            self.ending = "completed"

    @rule(sure=st.sampled_from([False, False, False, True]))
    def cancel(self, sure: bool) -> None:
        if not sure:
            return
        answer = self.outcome(self.replica.uploads.cancel(self.caller, str(self.upload.id)))
        if self.ending == "completed":
            assert answer is Reason.UPLOAD_COMPLETED
        elif self.ending == "failed":
            assert answer is Reason.UPLOAD_NOT_FOUND
        else:
            assert answer is None
            self.ending = "cancelled"

    @property
    def offset(self) -> int:
        gap = next((index for index in range(self.upload.chunks) if index not in self.stored), self.upload.chunks)
        return min(gap * CHUNK, len(self.data))

    @invariant()
    def the_status_tells_what_is_stored(self) -> None:
        if not hasattr(self, "upload"):
            return
        status = self.outcome(self.replica.uploads.status(self.caller, str(self.upload.id)))
        part, file = self.here.part(self.upload.id), self.here.file(self.upload.id)
        if self.ending in ("failed", "cancelled"):
            assert status is Reason.UPLOAD_NOT_FOUND
            assert not part.exists()
            assert not file.exists()
        elif self.ending:
            assert (status.upload.status, status.missing, status.offset) == ("completed", [], len(self.data))
            assert file.read_bytes() == self.data
            assert not part.exists()
        else:
            assert list(status.stored) == sorted(self.stored)
            assert status.missing == sorted(set(range(self.upload.chunks)) - self.stored)
            assert status.offset == self.offset
            self.told(len(self.stored), status.progress)
            written = part.read_bytes() if part.exists() else b""
            for index in self.stored:
                assert piece(written, index) == piece(self.data, index)
            assert not file.exists()


def test_an_upload_in_any_order_is_what_it_says(new_database: Callable[[], str], tmp_path: Path) -> None:
    class Here(Upload):
        url, root = new_database(), tmp_path / "blobs"

    run_state_machine_as_test(Here, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
