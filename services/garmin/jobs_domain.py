"""Owns synchronizations as users see them: one at a time each, begun, watched, cancelled, and begun by the schedule."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum, StrEnum, auto
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

from runtime import paging
from runtime.errors import Failure, Reason, invalid

if TYPE_CHECKING:
    from runtime.call import Principal

MAX_INTERVAL_HOURS: Final = 168
MAX_ERRORS: Final = 100
# Links that were made in the same minute must not ask Garmin in the same minute for ever.
JITTER: Final = 0.1
EARLIEST: Final = date(2000, 1, 1)


class JobType(StrEnum):
    """What is synchronized."""

    ACTIVITIES = "activities"
    HEALTH = "health"
    WORKOUTS = "workouts"


EVERYTHING: Final = (JobType.ACTIVITIES, JobType.HEALTH, JobType.WORKOUTS)


class Status(StrEnum):
    """How a synchronization stands."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Beginning(Enum):
    """What asking for one has come to."""

    BEGUN = auto()
    ANOTHER_RUNS = auto()
    NOT_LINKED = auto()


class ItemError(NamedTuple):
    """An item that could not be brought or sent."""

    item_id: str
    """At Garmin, or of the plan, or a calendar date."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What was asked for."""

    force: bool = False
    """Known items too."""
    since: date | None = None
    """From this day on; None: since the last time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of the items so far."""

    created: int = 0
    """Brought or sent, for the first time or in a new version."""
    duplicates: int = 0
    """Known already."""
    failed: int = 0

    @property
    def done(self) -> int:
        """All of them."""
        return self.created + self.duplicates + self.failed


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A synchronization that is to begin."""

    id: UUID
    user_id: UUID
    tenant_id: int
    type: JobType
    options: Options
    scheduled: bool
    followers: tuple[JobType, ...] = ()
    """What is to be synchronized after it, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A synchronization."""

    id: UUID
    user_id: UUID
    tenant_id: int
    type: JobType
    status: Status
    options: Options
    scheduled: bool
    progress: float
    """0 to 1."""
    counts: Counts
    errors: tuple[ItemError, ...]
    """The first hundred."""
    error_message: str | None
    """Why it failed, for people."""
    start_time: datetime
    end_time: datetime | None


class Page(NamedTuple):
    """A stretch of the list."""

    jobs: Sequence[Job]
    next_token: str
    """Empty on the last page."""


class Schedule(NamedTuple):
    """When everything is synchronized by itself."""

    interval_hours: int
    """0: never."""
    next_sync_at: datetime | None


class Store(Protocol):
    """services.garmin.jobs_store.JobStore."""

    async def begin(self, new: NewJob, now: datetime) -> Beginning: ...
    async def current(self, user_id: UUID) -> Job | None: ...
    async def cancel(self, user_id: UUID, now: datetime) -> bool: ...
    async def page(self, user_id: UUID, limit: int, before: tuple[datetime, str] | None) -> list[Job]: ...
    async def set_schedule(self, user_id: UUID, schedule: Schedule) -> bool: ...


class Jobs:
    """Begins and shows them; what carries them out is elsewhere."""

    def __init__(self, store: Store, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def start(self, caller: Principal, type: JobType, *, force: bool = False, since: str = "") -> UUID:
        """Begins one; returns its id. Raises Failure: FIELD_INVALID (since), NOT_FOUND, SYNC_IN_PROGRESS."""
        options = Options(force=force, since=parse_since(since, self._now()))
        new = NewJob(
            id=uuid4(),
            user_id=caller.user_id,
            tenant_id=caller.tenant_id,
            type=type,
            options=options,
            scheduled=False,
        )
        beginning = await self._store.begin(new, self._now())
        if beginning is Beginning.NOT_LINKED:
            raise not_linked()
        if beginning is Beginning.ANOTHER_RUNS:
            raise Failure(Reason.SYNC_IN_PROGRESS)
        return new.id

    async def current(self, caller: Principal) -> Job | None:
        """The one that runs, or the last one; None: there has been none."""
        return await self._store.current(caller.user_id)

    async def cancel(self, user_id: UUID) -> bool:
        """Ends the one that runs, after the item that is under way; whether there was one."""
        return await self._store.cancel(user_id, self._now())

    async def end(self, user_id: UUID) -> None:
        """The user's account there is linked no more."""
        await self.cancel(user_id)

    async def page(self, caller: Principal, size: int, token: str) -> Page:
        """The caller's, latest first. Raises Failure(FIELD_INVALID)."""
        limit, before = paging.page_size(size), paging.decode_token(token)
        found = await self._store.page(caller.user_id, limit + 1, before)
        return Page(found[:limit], paging.next_token(found, limit, lambda job: (job.start_time, str(job.id))))

    async def schedule(self, caller: Principal, interval_hours: int) -> Schedule:
        """Sets how often. Raises Failure: FIELD_INVALID, NOT_FOUND (nothing is linked)."""
        if not 0 <= interval_hours <= MAX_INTERVAL_HOURS:
            raise invalid("interval_hours", f"must be 0 to {MAX_INTERVAL_HOURS}")
        schedule = Schedule(interval_hours, next_sync(interval_hours, self._now()))
        if not await self._store.set_schedule(caller.user_id, schedule):
            raise not_linked()
        return schedule


def next_sync(interval_hours: int, now: datetime) -> datetime | None:
    """When the next one is due by itself; None: never."""
    if not interval_hours:
        return None
    return now + timedelta(hours=interval_hours) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # spreads load


def scheduled_job(user_id: UUID, tenant_id: int) -> NewJob:
    """Everything, one after the other."""
    first, *rest = EVERYTHING
    return NewJob(
        id=uuid4(),
        user_id=user_id,
        tenant_id=tenant_id,
        type=first,
        options=Options(),
        scheduled=True,
        followers=tuple(rest),
    )


def parse_since(text: str, now: datetime) -> date | None:
    """A calendar date; None for an empty text. Raises Failure(FIELD_INVALID)."""
    if not text:
        return None
    try:
        if len(text) != len("2026-01-31"):
            raise ValueError(text)
        since = date.fromisoformat(text)
    except ValueError:
        raise invalid("since", "must be a date such as 2026-01-31", "INVALID_FORMAT") from None
    if not EARLIEST <= since <= last_day(now):
        raise invalid("since", f"must be from {EARLIEST} to today")
    return since


def last_day(now: datetime) -> date:
    """The latest day that it is anywhere on earth."""
    return (now + timedelta(hours=14)).date()


def not_linked() -> Failure:
    """The refusal of whoever has no account there."""
    return Failure(Reason.NOT_FOUND, "No Garmin account is linked. Link one with POST /api/garmin/login first.")
