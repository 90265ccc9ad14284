"""Owns how a synchronization is carried out: once through, whatever fails, stops or is killed on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from runtime.errors import Failure, Reason
from runtime.interceptors import failure_of
from runtime.telemetry import logger
from services.garmin.connect import (
    GarminAnswer,
    GarminAway,
    GarminRefused,
    GarminSession,
    RateLimited,
    SignInEnded,
)
from services.garmin.jobs_domain import Counts, ItemError, Job, JobType, Status

if TYPE_CHECKING:
    from uuid import UUID

T = TypeVar("T")

# What may pass is waited for, twice as long each time, until so much has failed in a row: about two hours.
GIVE_UP_AFTER: Final = 12
LONGEST_WAIT: Final = 900.0
_GARMIN_WAIT: Final = 15.0
_OWN_WAIT: Final = 1.0
_LOST_AFTER: Final = timedelta(minutes=1)
_KEPT: Final = timedelta(days=90)
_DUE_AT_ONCE: Final = 100

SIGN_IN_AGAIN: Final = "Garmin no longer accepts the linked account's sign-in. Link the account again."


class Ended(Exception):
    """The synchronization is over, or another process carries it out: this run has nothing more to do."""


class Interrupted(Exception):
    """The process is about to stop; another run goes on from here."""


class Again(Exception):
    """What failed may pass: the synchronization is to be tried again."""

    def __init__(self, seconds: float) -> None:
        """In so many seconds."""
        super().__init__(f"again in {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """A synchronization while it is carried out."""

    job: Job
    number: int
    """Counts the runs; only the last one's word is taken."""
    checkpoint: str
    """What earlier runs left to go on from; empty: nothing."""


class Store(Protocol):
    """services.garmin.jobs_store.JobStore, as far as carrying out goes."""

    async def take(self, job_id: UUID) -> Taken | None: ...
    async def count(self, run: Taken, total: int, counts: Counts) -> None: ...
    async def advance(
        self,
        run: Taken,
        counts: Counts,
        errors: Sequence[ItemError] = (),
        *,
        done: int | None = None,
        checkpoint: str | None = None,
    ) -> None: ...
    async def fail_once(self, run: Taken) -> int: ...
    async def end(
        self, run: Taken, status: Status, message: str | None, now: datetime, *, through: date | None = None
    ) -> None: ...
    async def cursor(self, user_id: UUID, type: JobType) -> date | None: ...
    async def begin_due(self, now: datetime, limit: int) -> int: ...
    async def queue_lost(self, before: datetime) -> int: ...
    async def forget_old(self, before: datetime) -> None: ...


Work = Callable[[Taken, GarminSession, Callable[[], None]], Awaitable[date | None]]
"""Carries a synchronization out; returns the day until which all is known, if it goes by days and left none out.

It calls the last argument before each item, which raises Interrupted when it should stop there.
"""
Sessions = Callable[["UUID"], AbstractAsyncContextManager[GarminSession]]


class Runs:
    """Carries synchronizations out."""

    def __init__(
        self, store: Store, sessions: Sessions, works: Mapping[JobType, Work], *, now: Callable[[], datetime]
    ) -> None:
        """`sessions`: LinkedSessions.session."""
        self._store = store
        self._sessions = sessions
        self._works = works
        self._now = now
        self._stopping = False

    def stop(self) -> None:
        """What runs here ends after the items that are under way."""
        self._stopping = True

    async def run(self, job_id: UUID) -> None:
        """Carries one out, or what is left of it. Raises Again, Interrupted."""
        run = await self._store.take(job_id)
        if run is not None:
            with suppress(Ended):
                await self._carry_out(run)

    async def _carry_out(self, run: Taken) -> None:
        try:
            self._check()
            async with self._sessions(run.job.user_id) as session:
                through = await self._works[run.job.type](run, session, self._check)
            await self._store.end(run, Status.COMPLETED, None, self._now(), through=through)
        except (Ended, Interrupted):
            raise
        except SignInEnded:
            await self._store.end(run, Status.FAILED, SIGN_IN_AGAIN, self._now())
        except Exception as error:
            await self._failed(run, error)

    async def begin_due(self) -> None:
        """Begins what the schedule wants."""
        await self._store.queue_lost(self._now() - _LOST_AFTER)
        await self._store.begin_due(self._now(), _DUE_AT_ONCE)

    async def forget(self) -> None:
        """Deletes what nobody asks for any more."""
        await self._store.forget_old(self._now() - _KEPT)

    def _check(self) -> None:
        if self._stopping:
            raise Interrupted

    async def _failed(self, run: Taken, error: Exception) -> None:
        failure = failure_of(error)
        log = logger().bind(job=run.job.id, user=run.job.user_id, type=run.job.type)
        if failure.reason is Reason.NOT_FOUND:  # unlinked meanwhile, or the account was deleted
            await self._store.end(run, Status.CANCELLED, None, self._now())
            return
        passing = _passing(error, failure)
        if passing is None:
            log.error("a synchronization failed", exc_info=error)
            await self._store.end(run, Status.FAILED, "Something went wrong on our side.", self._now())
            return
        shortest, message = passing
        failures = await self._store.fail_once(run)
        log.warning("a synchronization has to wait", error=repr(error), failures=failures)
        if failures >= GIVE_UP_AFTER:
            await self._store.end(run, Status.FAILED, message, self._now())
            return
        longest = max(LONGEST_WAIT, shortest if isinstance(error, RateLimited) else 0)
        raise Again(min(shortest * 2 ** (failures - 1), longest)) from error


def _passing(error: Exception, failure: Failure) -> tuple[float, str] | None:
    """Seconds to wait at least, and what to say when it does not pass; None: it will not."""
    if isinstance(error, RateLimited):
        return error.retry_after, "Garmin wants fewer calls. Try again later."
    if isinstance(error, GarminAway):
        return _GARMIN_WAIT, "Garmin does not answer. Try again later."
    if isinstance(error, GarminAnswer):
        return _GARMIN_WAIT, "Garmin answers with what cannot be read."
    if isinstance(error, GarminRefused):  # not of one item, or it would be told as the item's
        return _GARMIN_WAIT, "Garmin refuses what it was asked for. Try again later."
    if failure.reason in (Reason.UNAVAILABLE, Reason.RATE_LIMITED, Reason.DEADLINE_EXCEEDED):
        return failure.retry_after or _OWN_WAIT, "A part of the server is not available. Try again later."
    return None


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Does `work` on every item, so many at a time. Raises what the first one raises; then none is begun any more."""
    waiting = iter(items)

    async def work_on() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.create_task(work_on()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
