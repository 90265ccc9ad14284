"""Owns sha256: of chunks, and of whole files while their chunks arrive."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

from runtime.telemetry import logger
from runtime.threads import step_back
from services.uploads.blobs import BlobError

if TYPE_CHECKING:
    from services.uploads.blobs import Blobs
    from services.uploads.uploads_domain import Upload

THREADS: Final = 4
# Beside chunks that somebody waits for, the hash of the whole is computed when there is nothing else to do.
NICE: Final = 19
# Uploads whose hash is kept as far as it goes; of others the file is read when it is finalized.
MAX_RUNNING: Final = 1000
# Chunks that wait in memory for those before them; others are read from the store when it is their turn.
MAX_HELD: Final = 16
MAX_AHEAD: Final = 4
# Chunks that are hashed at once, or read from the store for it, for wholes that somebody waits for.
MAX_HASHED: Final = 8

T = TypeVar("T")


class _Running:
    """The hash of one upload's first chunks."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.next = 0
        """The first chunk that is not in it."""
        self.ready: set[int] = set()
        """Chunks that are stored, from `next` on, as far as this process knows."""
        self.held: dict[int, bytes | memoryview] = {}
        self.task: asyncio.Task[None] | None = None
        self.hurry = asyncio.Event()
        """Set once somebody waits for it; until then its turn comes when there is nothing else to do."""
        self.advanced = asyncio.Event()
        """Set, and forgotten, whenever `next` moves or the task ends."""

    def move(self) -> None:
        """Wakes whoever waits for it to advance."""
        self.advanced.set()
        self.advanced = asyncio.Event()


class Digests:
    """Hashes off the event loop.

    What is kept of an upload's hash is in the memory of this process alone, and of bytes that it has stored itself:
    after a crash nothing of it is believed, because nothing of it is there.
    """

    def __init__(self, blobs: Blobs, pool: ThreadPoolExecutor, idle_pool: ThreadPoolExecutor) -> None:
        """`idle_pool` has threads that step back behind all others."""
        self._blobs = blobs
        self._pool = pool
        self._idle_pool = idle_pool
        self._running: OrderedDict[UUID, _Running] = OrderedDict()
        self._room = asyncio.Semaphore(MAX_HASHED)
        self._checking = 0
        """Chunks whose senders wait for their hash."""
        self._quiet = asyncio.Event()
        """Set while there are none."""
        self._quiet.set()

    async def of(self, data: bytes | memoryview) -> bytes:
        """The sha256 of some bytes."""
        self._checking += 1
        self._quiet.clear()
        try:
            return await self._run(self._pool, lambda: hashlib.sha256(data).digest())
        finally:
            self._checking -= 1
            if not self._checking:
                self._quiet.set()

    def stored(self, upload: Upload, index: int, data: bytes | memoryview, *, checked: bool = True) -> None:
        """The bytes of a chunk are in the store; goes on with the hash of the whole as far as it can.

        `checked`: they were compared with a hash of their own, so that the one of the whole may wait.
        """
        running = self._running.get(upload.id)
        if running is None:
            running = self._running[upload.id] = _Running()
            self._make_room()
        self._running.move_to_end(upload.id)
        if index < running.next:
            return
        if not checked:
            running.hurry.set()
        running.ready.add(index)
        if index < running.next + MAX_AHEAD and sum(len(one.held) for one in self._busy()) < MAX_HELD:
            running.held[index] = data
        if running.next in running.ready and (running.task is None or running.task.done()):
            running.task = asyncio.create_task(self._go_on(upload, running), name="hash an upload")

    async def caught_up(self, upload: Upload) -> None:
        """Waits until not much is left to hash of what was stored in order."""
        running = self._running.get(upload.id)
        while running is not None and running.task is not None and len(running.ready) > MAX_AHEAD:
            if running.task.done():
                return
            running.hurry.set()
            await running.advanced.wait()

    async def whole(self, upload: Upload) -> bytes:
        """The sha256 of an upload that is all there; what was not hashed on its way is read from the store.

        Raises BlobError.
        """
        running = self._running.pop(upload.id, None)
        if running is not None and running.task is not None:
            running.hurry.set()
            await asyncio.wait({running.task})
        if running is None or upload.contested:
            running = _Running()
        running.ready = set(range(running.next, upload.chunks))
        running.hurry.set()
        await self._advance(upload, running)
        return running.sha256.digest()

    def forget(self, upload_id: UUID) -> None:
        """Drops what is kept of an upload."""
        running = self._running.pop(upload_id, None)
        if running is not None and running.task is not None:
            running.task.cancel()

    def _busy(self) -> Iterator[_Running]:
        return (one for one in self._running.values() if one.held)

    def _make_room(self) -> None:
        while len(self._running) > MAX_RUNNING:
            self.forget(next(iter(self._running)))

    async def _go_on(self, upload: Upload, running: _Running) -> None:
        try:
            await self._advance(upload, running)
        except BlobError as error:
            logger().warning("a hash is left to the end of its upload", upload=upload.id, error=str(error))
            self._running.pop(upload.id, None)
        finally:
            running.move()

    async def _advance(self, upload: Upload, running: _Running) -> None:
        while running.next in running.ready:
            if not running.hurry.is_set() and not self._quiet.is_set():
                await _either(self._quiet, running.hurry)
            hurried = running.hurry.is_set()
            # Who hurries does not wait for those who step back: these have a chunk each, and one thread between them.
            async with self._room if hurried else nullcontext():
                index = running.next
                data = running.held.pop(index, None) or await self._read(upload, index)
                pool = self._pool if hurried else self._idle_pool
                await self._run(pool, partial(running.sha256.update, data))
                del data  # before it waits for its next turn
            running.ready.discard(index)
            running.next += 1
            running.move()

    async def _read(self, upload: Upload, index: int) -> bytes:
        return await self._blobs.read_chunk(upload.id, index, index * upload.chunk_size, upload.size_of(index))

    async def _run(self, pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function)


@contextmanager
def hashing(blobs: Blobs) -> Iterator[Digests]:
    """Digests for as long as the block runs."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hash")
    idle_pool = ThreadPoolExecutor(1, thread_name_prefix="hash-idle", initializer=step_back, initargs=(NICE,))
    digests = Digests(blobs, pool, idle_pool)
    try:
        yield digests
    finally:
        for upload_id in list(digests._running):
            digests.forget(upload_id)
        for one in (pool, idle_pool):
            one.shutdown(wait=True, cancel_futures=True)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    """Waits until one of them is set."""
    waiting = {asyncio.create_task(event.wait()) for event in (one, other)}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
