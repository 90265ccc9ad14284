"""Owns what is too old to keep: tombstones, the log of conflicts, counts of pushes, idempotency keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.telemetry import SWEEP_ERRORS, SWEPT, logger
from services.sessions.conflicts_domain import LOG_LIFETIME
from services.sessions.records_domain import KEY_LIFETIME

if TYPE_CHECKING:
    from services.sessions.sweeps_store import SweepStore

# Rows of one transaction: a writer who has to wait for it waits some milliseconds.
BATCH: Final = 500
TOMBSTONE_LIFETIME: Final = timedelta(days=90)
# Counts are there to be compared with the log of conflicts.
COUNT_LIFETIME: Final = LOG_LIFETIME


class Sweeps:
    """Sweeps batch by batch; any number of replicas may do it at once."""

    def __init__(self, store: SweepStore, *, now: Callable[[], datetime], batch: int = BATCH) -> None:
        self._store = store
        self._now = now
        self._batch = batch
        self._failing: set[str] = set()

    async def round(self) -> Counter[str]:
        """Sweeps all that is too old and that nobody else holds; returns how many rows of each kind went.

        What fails is logged and left to the next round; the other kinds are swept all the same.
        """
        swept: Counter[str] = Counter()
        for kind, batches in (
            ("tombstones", self._tombstones()),
            ("conflicts", self._rows(self._store.conflicts, LOG_LIFETIME)),
            ("push_counts", self._rows(self._store.push_counts, COUNT_LIFETIME)),
            ("idempotency_keys", self._rows(self._store.idempotency_keys, KEY_LIFETIME)),
        ):
            try:
                async for rows in batches:
                    swept[kind] += rows
                    SWEPT.labels(kind).inc(rows)
                self._failing.discard(kind)
            except Exception as error:  # whatever it was, the next round tries again
                SWEEP_ERRORS.labels(kind).inc()
                if kind not in self._failing:
                    logger().warning("cannot sweep", kind=kind, error=repr(error))
                self._failing.add(kind)
        return swept

    async def _tombstones(self) -> AsyncIterator[int]:
        """Users whose feed is being written are left to the next round, so that nobody waits for anybody."""
        before, busy = self._now() - TOMBSTONE_LIFETIME, set[UUID]()
        while True:
            batch = await self._store.tombstones(before, besides=busy, limit=self._batch)
            busy |= batch.busy
            yield batch.swept
            if batch.found < self._batch:
                return

    async def _rows(self, sweep: Callable[[datetime, int], Awaitable[int]], lifetime: timedelta) -> AsyncIterator[int]:
        before = self._now() - lifetime
        while True:
            swept = await sweep(before, self._batch)
            yield swept
            if swept < self._batch:
                return
