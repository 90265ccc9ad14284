"""Owns what goes by itself: uploads whose time is over, what is left of ended ones, and bytes that nobody knows of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.telemetry import FOREIGN_BLOBS, SWEEP_ERRORS, SWEPT, logger
from services.uploads.uploads_domain import gone

if TYPE_CHECKING:
    from runtime.outcomes import Outcomes
    from services.uploads.blobs import Blobs
    from services.uploads.digests import Digests
    from services.uploads.uploads_store import UploadStore

BATCH: Final = 500
# An upload that was being put together when its time was over may still be finalized for so long.
ASSEMBLING_LIFETIME: Final = timedelta(days=1)
# So long it is told how an upload ended.
ENDED_LIFETIME: Final = timedelta(days=30)
# Bytes that no row knows may belong to a call that is about to write the row.
ORPHAN_AGE: Final = timedelta(hours=1)
# The store is looked through in one of so many rounds.
ORPHANS_EVERY: Final = 60

Blob = tuple[UUID, datetime]


class Sweeps:
    """Sweeps what is too old; any number of replicas may do it at once, and never two the same upload."""

    def __init__(
        self, store: UploadStore, blobs: Blobs, digests: Digests, *, outcomes: Outcomes, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._digests = digests
        self._outcomes = outcomes
        self._now = now
        self._rounds = count()
        self._failing: set[str] = set()

    async def round(self) -> None:
        """Sweeps all that is too old; what fails is logged and left to the next round."""
        await self._sweep("uploads", self.expired)
        await self._sweep("ended_uploads", self.ended)
        if next(self._rounds) % ORPHANS_EVERY == 0:
            await self._sweep("orphans", self.orphans)

    async def expired(self) -> int:
        """Ends the uploads whose time is over and removes their bytes; returns how many."""
        swept = 0
        while True:
            now = self._now()
            async with self._store.hold_expired(now, now - ASSEMBLING_LIFETIME) as held:
                if held.upload is None:
                    return swept
                await held.end("expired", now)
            self._outcomes.abandoned(held.upload)
            self._digests.forget(held.upload.id)
            await gone(self._blobs, held.upload.id)
            swept += 1

    async def ended(self) -> int:
        """Forgets the uploads that ended long ago without a file; returns how many."""
        swept = 0
        while rows := await self._store.forget_ended(self._now() - ENDED_LIFETIME, BATCH):
            swept += rows
        return swept

    async def orphans(self) -> int:
        """Removes bytes that belong to no upload and no file; returns of how many.

        None in a store of another installation, whose files no row here knows.
        """
        if not await self._ours():
            return 0
        uploads = await self._without(self._blobs.uploads(), ("active", "assembling"), self._blobs.discard)
        # A file is there before its row says so.
        return uploads + await self._without(self._blobs.files(), ("assembling", "completed"), self._blobs.remove)

    async def _ours(self) -> bool:
        """Whether the store is this installation's. Whoever looks first at one that is nobody's takes it."""
        installation = str(await self._store.installation())
        mark = await self._blobs.mark()
        if mark is None:
            await self._blobs.set_mark(installation)
            mark = await self._blobs.mark()
        FOREIGN_BLOBS.set(mark != installation)
        if mark != installation:
            logger().error("the stored bytes belong to another installation, and none is removed", installation=mark)
        return mark == installation

    async def _without(
        self, blobs: AsyncIterator[Blob], statuses: tuple[str, ...], remove: Callable[[UUID], Awaitable[None]]
    ) -> int:
        before, old, swept = self._now() - ORPHAN_AGE, list[UUID](), 0
        async for id, change_time in blobs:
            if change_time < before:
                old.append(id)
            if len(old) == BATCH:
                swept += await self._remove(old, statuses, remove)
                old = []
        return swept + await self._remove(old, statuses, remove)

    async def _remove(
        self, ids: list[UUID], statuses: tuple[str, ...], remove: Callable[[UUID], Awaitable[None]]
    ) -> int:
        orphans = set(ids) - await self._store.living(ids, statuses)
        for id in orphans:
            logger().warning("bytes that belong to nothing are removed", id=id)
            await remove(id)
        return len(orphans)

    async def _sweep(self, kind: str, sweep: Callable[[], Awaitable[int]]) -> None:
        try:
            SWEPT.labels(kind).inc(await sweep())
            self._failing.discard(kind)
        except Exception as error:  # whatever it was, the next round tries again
            SWEEP_ERRORS.labels(kind).inc()
            if kind not in self._failing:
                logger().warning("cannot sweep", kind=kind, error=repr(error))
            self._failing.add(kind)
