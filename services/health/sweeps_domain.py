"""Owns what becomes coarser with age, and what goes: minutes become hours, hours days, and nothing is kept for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from runtime.telemetry import SWEEP_ERRORS, SWEPT, logger
from services.health.sync_health_domain import start_of

if TYPE_CHECKING:
    from services.health.sweeps_store import SweepStore

# Rows of one transaction.
BATCH: Final = 1000
MINUTES_LIFETIME: Final = timedelta(days=2)
HOURS_LIFETIME: Final = timedelta(days=90)
DAYS_LIFETIME: Final = timedelta(days=730)
# Of a device that says nothing: a year of seasons, and some.
DEVICES_LIFETIME: Final = timedelta(days=400)
DEVICE_HOURS_LIFETIME: Final = timedelta(days=14)
# A report that was not taken by then is not sent any more.
REPORTERS_LIFETIME: Final = timedelta(days=1)
# As long as a window is at most.
DROPS_LIFETIME: Final = timedelta(days=90)

Sweep = Callable[[datetime, int], Awaitable[int]]


class Sweeps:
    """Sweeps batch by batch; any number of replicas may do it at once, and never two the same row."""

    def __init__(self, store: SweepStore, *, now: Callable[[], datetime], batch: int = BATCH) -> None:
        self._store = store
        self._now = now
        self._batch = batch
        self._failing: set[str] = set()

    async def round(self) -> Counter[str]:
        """Sweeps all that is too old and that nobody else holds; returns how many rows of each kind went.

        What fails is logged and left to the next round; the other kinds are swept all the same.
        """
        now, swept = self._now(), Counter[str]()
        kinds: tuple[tuple[str, Sweep, datetime], ...] = (
            # Whole hours and days, so that a window finds all of an hour in one place.
            ("health_minutes", self._store.minutes_to_hours, start_of(now - MINUTES_LIFETIME, "hour")),
            ("health_hours", self._store.hours_to_days, start_of(now - HOURS_LIFETIME, "day")),
            ("health_days", self._store.days, now - DAYS_LIFETIME),
            ("health_devices", self._store.devices, now - DEVICES_LIFETIME),
            ("health_device_hours", self._store.device_hours, now - DEVICE_HOURS_LIFETIME),
            ("health_reporters", self._store.reporters, now - REPORTERS_LIFETIME),
            ("health_drops", self._store.drops, now - DROPS_LIFETIME),
        )
        for kind, sweep, before in kinds:
            try:
                while rows := await sweep(before, self._batch):
                    swept[kind] += rows
                    SWEPT.labels(kind).inc(rows)
                self._failing.discard(kind)
            except Exception as error:  # whatever it was, the next round tries again
                SWEEP_ERRORS.labels(kind).inc()
                if kind not in self._failing:
                    logger().warning("cannot sweep", kind=kind, error=repr(error))
                self._failing.add(kind)
        return swept
