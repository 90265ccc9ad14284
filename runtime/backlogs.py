"""Owns how much waits in the tables that are gone through in rounds, and for how long, as metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from runtime.telemetry import BACKLOG, BACKLOG_AGE, BACKLOG_ERRORS

# Seconds between two looks; as often as somebody scrapes.
INTERVAL: Final = 5.0
# More than so many rows are not counted: that they are too many can be seen.
MAX_COUNTED: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What waits in a table."""

    items: int
    since: datetime | None
    """When the oldest of it was put there; None: nothing waits."""

    @classmethod
    def of(cls, row: Mapping[str, Any] | None) -> Backlog:
        """From a row with columns `items` and `since`."""
        return cls(items=row["items"], since=row["since"]) if row else cls(items=0, since=None)


@asynccontextmanager
async def measured(
    queue: str, look: Callable[[], Awaitable[Backlog]], *, now: Callable[[], datetime]
) -> AsyncIterator[None]:
    """Keeps the metrics of a queue for as long as the block runs; while the database is away, as they were."""

    async def measure() -> None:
        while True:
            try:
                found = await look()
                BACKLOG.labels(queue).set(found.items)
                BACKLOG_AGE.labels(queue).set(max(0.0, (now() - found.since).total_seconds()) if found.since else 0)
            except Exception:  # a figure that is missing must not end the service that it is about
                BACKLOG_ERRORS.labels(queue).inc()
            await asyncio.sleep(INTERVAL)

    task = asyncio.create_task(measure(), name=f"measure {queue}")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
