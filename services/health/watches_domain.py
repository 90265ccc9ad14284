"""Owns who watches a tenant's figures: one reader for each window, however many watch it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from runtime.call import Principal, Watch
from runtime.errors import Failure, Reason
from runtime.hints import Hints, hints
from runtime.telemetry import logger
from services.health.access import tenant_of
from services.health.sync_health_domain import SyncHealth, SyncHealthReport, SyncPoint, hours_of

CHANNEL: Final = "satchel:health"
PER_USER: Final = 5
# Seconds between two readings of a window at least.
READ_INTERVAL: Final = 1.0
# Seconds after which a watcher hears though nothing was reported. Also how often a window is read though no other
# replica has hinted: a hint may be lost.
LONGEST_SILENCE: Final = 14.0
# Seconds between two looks at whether a watcher may go on.
RECHECK_INTERVAL: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A tenant's figures as they were at a moment."""

    report: SyncHealthReport
    points: Sequence[SyncPoint]
    """Of the current minute and the one before."""
    time: datetime

    @property
    def content(self) -> tuple[object, ...]:
        """What tells whether something has happened: all but what changes with time alone."""
        metrics = self.report.metrics
        return metrics.total_syncs, metrics.active_devices, metrics.dropped_outcomes, tuple(self.points)


class Watches:
    """The watchers of this process, and the words between replicas that make them look."""

    def __init__(
        self,
        health: SyncHealth,
        *,
        lifetime: float,
        now: Callable[[], datetime],
        per_user: int = PER_USER,
        interval: float = READ_INTERVAL,
    ) -> None:
        """`lifetime`: seconds after which a stream ends, for its watcher to come again."""
        self._health = health
        self._lifetime = lifetime
        self._now = now
        self._per_user = per_user
        self._interval = interval
        self._streams: Counter[UUID] = Counter()
        self._windows: dict[tuple[int, int], _Window] = {}
        self._hints: Hints | None = None

    async def watch(self, caller: Principal, tenant_id: int, hours: int, watched: Watch) -> AsyncGenerator[Snapshot]:
        """The figures of a window at once, and then whenever they have changed, until the stream is to end.

        Raises Failure: FIELD_INVALID, FORBIDDEN, RATE_LIMITED, UNAVAILABLE, and the token's when it ends.
        """
        key = tenant_of(caller, tenant_id), hours_of(hours)
        if watched.draining.is_set():
            raise Failure(Reason.UNAVAILABLE, retry_after=1)
        until, seen = time.monotonic() + self._lifetime, 0
        with self._counted(caller.user_id):
            async with self._joined(key) as window:
                while not watched.draining.is_set() and time.monotonic() < until:
                    await watched.recheck()
                    if window.snapshot is not None and window.version > seen:
                        seen = window.version
                        yield window.snapshot
                    elif window.snapshot is None and window.error is not None:
                        raise window.error
                    else:
                        await window.changed(RECHECK_INTERVAL)

    def reported(self, tenant_ids: Collection[int]) -> None:
        """The figures of these tenants have changed here."""
        for tenant_id in tenant_ids:
            self._look(tenant_id)
            if self._hints is not None:
                self._hints.tell(str(tenant_id))

    @asynccontextmanager
    async def running(self, redis_url: str) -> AsyncIterator[None]:
        """Hears of other replicas' reports for as long as the block runs; `redis_url` as Config.redis_url."""
        async with hints(redis_url, self._hear, self._turned, channel=CHANNEL) as self._hints:
            yield

    def _hear(self, word: str) -> None:
        if word.isdecimal():
            self._look(int(word))

    def _turned(self) -> None:
        for window in self._windows.values():
            window.look()

    def _look(self, tenant_id: int) -> None:
        for (tenant, _), window in self._windows.items():
            if tenant == tenant_id:
                window.look()

    @contextmanager
    def _counted(self, user_id: UUID) -> Iterator[None]:
        if self._streams[user_id] >= self._per_user:
            why = f"You have {self._per_user} streams open already."
            raise Failure(Reason.RATE_LIMITED, why, retry_after=LONGEST_SILENCE)
        self._streams[user_id] += 1
        try:
            yield
        finally:
            self._streams[user_id] -= 1
            if not self._streams[user_id]:
                del self._streams[user_id]

    @asynccontextmanager
    async def _joined(self, key: tuple[int, int]) -> AsyncIterator[_Window]:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(lambda: self._read(*key), self._heard, self._interval)
        window.watchers += 1
        try:
            yield window
        finally:
            window.watchers -= 1
            if not window.watchers:
                del self._windows[key]
                window.close()

    def _heard(self) -> bool:
        return self._hints is not None and self._hints.connected

    async def _read(self, tenant_id: int, hours: int) -> Snapshot:
        report = await self._health.report(tenant_id, hours)
        return Snapshot(report=report, points=await self._health.latest_points(tenant_id), time=self._now())


class _Window:
    """A window that somebody watches; it is read by a task of its own."""

    def __init__(
        self, read: Callable[[], Coroutine[None, None, Snapshot]], heard: Callable[[], bool], interval: float
    ) -> None:
        """`heard`: whether reports to other replicas are hinted here."""
        self.watchers = 0
        self.snapshot: Snapshot | None = None
        self.version = 0
        """Counts up with each snapshot that is to be shown."""
        self.error: Exception | None = None
        """Why the last reading has failed."""
        self._read = read
        self._heard = heard
        self._interval = interval
        self._shown_at = 0.0
        self._dirty = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="watch sync health")

    def look(self) -> None:
        """Something was reported."""
        self._dirty.set()

    async def changed(self, seconds: float) -> None:
        """Waits until there is another snapshot, or none could be read, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def close(self) -> None:
        """Nobody watches any more."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._dirty.clear()
            try:
                self._take(await self._read())
            except Exception as error:  # whoever watches already goes on, and sees more when it can be read again
                if self.error is None:
                    logger().warning("sync health cannot be read", error=repr(error))
                self.error = error
                self._tell()
            await asyncio.sleep(self._interval)
            if self._heard() and self.error is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_SILENCE - self._interval):
                        await self._dirty.wait()

    def _take(self, snapshot: Snapshot) -> None:
        self.error = None
        silent = time.monotonic() - self._shown_at >= LONGEST_SILENCE - self._interval
        if self.snapshot is None or silent or snapshot.content != self.snapshot.content:
            self.snapshot = snapshot
            self.version += 1
            self._shown_at = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
