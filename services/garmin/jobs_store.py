"""Owns the table of synchronizations, what each of them notes while it runs, and which links are due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from runtime.database import Connection, Database, Row
from services.garmin.jobs_domain import (
    MAX_ERRORS,
    Beginning,
    Counts,
    ItemError,
    Job,
    JobType,
    NewJob,
    Options,
    Schedule,
    Status,
    next_sync,
    scheduled_job,
)
from services.garmin.runs_domain import Ended, Taken

_JOB: Final = """
    id, user_id, tenant_id, type, status, scheduled, force, since, total, done, created, duplicates, failed, errors,
    error_message, start_time, end_time"""
_BEGIN: Final = """
    INSERT INTO garmin.jobs (
        id, user_id, tenant_id, type, status, scheduled, force, since, followers, runs, failures, checkpoint,
        total, done, created, duplicates, failed, errors, start_time)
    VALUES (%b, %b, %b, %b, 'in_progress', %b, %b, %b, %b, 0, 0, '', 0, 0, 0, 0, 0, '[]', %b)
    ON CONFLICT (user_id) WHERE status = 'in_progress' DO NOTHING RETURNING id"""
_QUEUED: Final = "UPDATE garmin.jobs SET queue_id = %b WHERE id = %b"
_CURRENT: Final = f"""
    SELECT {_JOB} FROM garmin.jobs WHERE user_id = %b ORDER BY start_time DESC, id DESC LIMIT 1"""  # noqa: S608  # of constants
_PAGE: Final = f"""
    SELECT {_JOB} FROM garmin.jobs
    WHERE user_id = %b AND (start_time, id) < (coalesce(%b::timestamptz, 'infinity'), %b::uuid)
    ORDER BY start_time DESC, id DESC LIMIT %b"""  # noqa: S608  # of constants
_CANCEL: Final = """
    UPDATE garmin.jobs SET status = 'cancelled', end_time = %b
    WHERE user_id = %b AND status = 'in_progress' RETURNING queue_id"""
_TAKE: Final = f"""
    UPDATE garmin.jobs SET runs = runs + 1 WHERE id = %b AND status = 'in_progress'
    RETURNING runs, checkpoint, {_JOB}"""  # noqa: S608  # of constants
_COUNT: Final = """
    UPDATE garmin.jobs SET total = %b, created = %b, duplicates = %b, failed = %b, done = %b
    WHERE id = %b AND runs = %b AND status = 'in_progress'"""
# How a run goes on; touches nothing once it is not the run that counts.
ADVANCE: Final = f"""
    UPDATE garmin.jobs SET
        done = done + %(done)s, created = created + %(created)s, duplicates = duplicates + %(duplicates)s,
        failed = failed + %(failed)s, failures = 0, checkpoint = coalesce(%(checkpoint)s, checkpoint),
        errors = CASE WHEN jsonb_array_length(errors) < {MAX_ERRORS} THEN errors || %(errors)s::jsonb ELSE errors END
    WHERE id = %(job_id)s AND runs = %(number)s AND status = 'in_progress' RETURNING user_id"""  # noqa: S608  # of constants
_FAILURES: Final = """
    UPDATE garmin.jobs SET failures = failures + 1 WHERE id = %b AND runs = %b AND status = 'in_progress'
    RETURNING failures"""
_END: Final = """
    UPDATE garmin.jobs SET status = %b, error_message = %b, end_time = %b, done = CASE WHEN %b THEN total ELSE done END
    WHERE id = %b AND runs = %b AND status = 'in_progress' RETURNING tenant_id, scheduled, followers"""
_CURSOR: Final = "SELECT day FROM garmin.cursors WHERE user_id = %b AND type = %b"
_MOVE_CURSOR: Final = """
    INSERT INTO garmin.cursors (user_id, type, day) VALUES (%b, %b, %b)
    ON CONFLICT (user_id, type) DO UPDATE SET day = greatest(cursors.day, excluded.day)"""
# Held, so that none is begun of a link, or an account, that has just ended.
_LINKED: Final = "SELECT FROM garmin.links WHERE user_id = %b FOR KEY SHARE"
_SCHEDULE: Final = "UPDATE garmin.links SET interval_hours = %b, next_sync_at = %b WHERE user_id = %b"
_DUE: Final = """
    SELECT user_id, tenant_id, interval_hours FROM garmin.links
    WHERE next_sync_at <= %b AND interval_hours > 0 AND NOT needs_sign_in AND NOT EXISTS (
        SELECT FROM garmin.jobs WHERE jobs.user_id = links.user_id AND jobs.status = 'in_progress')
    ORDER BY next_sync_at LIMIT %b FOR UPDATE OF links SKIP LOCKED"""
_NEXT: Final = "UPDATE garmin.links SET next_sync_at = %b WHERE user_id = %b"
# A synchronization that is in no queue any more, by whatever accident, would keep its user waiting for ever.
_LOST: Final = """
    SELECT id, user_id, tenant_id, type, scheduled, force, since, followers FROM garmin.jobs
    WHERE status = 'in_progress' AND start_time < %b AND NOT EXISTS (
        SELECT FROM garmin.procrastinate_jobs AS queued
        WHERE queued.id = jobs.queue_id AND queued.status IN ('todo', 'doing'))
    FOR UPDATE OF jobs SKIP LOCKED"""
# The last one of a user stays: it is how things stand.
_FORGET_OLD: Final = """
    DELETE FROM garmin.jobs WHERE end_time < %b AND EXISTS (
        SELECT FROM garmin.jobs AS later WHERE later.user_id = jobs.user_id AND later.start_time > jobs.start_time)"""

_ERASE: Final = (
    "DELETE FROM garmin.jobs WHERE user_id = %b RETURNING queue_id",
    "DELETE FROM garmin.activities WHERE user_id = %b",
    "DELETE FROM garmin.workouts WHERE user_id = %b",
    "DELETE FROM garmin.cursors WHERE user_id = %b",
    "DELETE FROM garmin.accounts WHERE user_id = %b",
)

Defer = Callable[[Connection, NewJob], Awaitable[int]]
CancelQueued = Callable[[Connection, int], Awaitable[None]]


class JobStore:
    """Synchronizations in PostgreSQL."""

    def __init__(self, database: Database, defer: Defer, cancel_queued: CancelQueued) -> None:
        """`defer`, `cancel_queued`: those of services.garmin.jobs_queue.Queue."""
        self._database = database
        self._defer = defer
        self._cancel_queued = cancel_queued

    async def begin(self, new: NewJob, now: datetime) -> Beginning:
        """Begins one, queued in the same transaction, unless it cannot be."""
        async with self._database.transaction() as transaction:
            if not (await transaction.connection.execute(_LINKED, [new.user_id], prepare=True)).rowcount:
                return Beginning.NOT_LINKED
            begun = await self._begin(transaction.connection, new, now)
        return Beginning.BEGUN if begun else Beginning.ANOTHER_RUNS

    async def set_schedule(self, user_id: UUID, schedule: Schedule) -> bool:
        """Sets when links are due; False: there is none."""
        values = [schedule.interval_hours, schedule.next_sync_at, user_id]
        async with self._database.statements() as statements:
            return bool((await statements.connection.execute(_SCHEDULE, values)).rowcount)

    async def current(self, user_id: UUID) -> Job | None:
        """The latest, which is the one that runs if one does."""
        async with self._database.statements() as statements:
            found = await statements.connection.execute(_CURRENT, [user_id], prepare=True)
            row = await found.fetchone()
        return _job(row) if row else None

    async def page(self, user_id: UUID, limit: int, before: tuple[datetime, str] | None) -> list[Job]:
        """Latest first, below `before`."""
        time, id = (before[0], _uuid(before[1])) if before else (None, UUID(int=2**128 - 1))
        async with self._database.statements() as statements:
            found = await statements.connection.execute(_PAGE, [user_id, time, id, limit], prepare=True)
            return [_job(row) for row in await found.fetchall()]

    async def cancel(self, user_id: UUID, now: datetime) -> bool:
        """Ends the one that runs; whether there was one."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            row = await (await connection.execute(_CANCEL, [now, user_id])).fetchone()
            if row is not None and row["queue_id"] is not None:
                await self._cancel_queued(connection, row["queue_id"])
        return row is not None

    async def take(self, job_id: UUID) -> Taken | None:
        """A new run of it, which from now on is the only one that counts; None: it is over."""
        async with self._database.statements() as statements:
            row = await (await statements.connection.execute(_TAKE, [job_id], prepare=True)).fetchone()
        return Taken(job=_job(row), number=row["runs"], checkpoint=row["checkpoint"]) if row else None

    async def count(self, run: Taken, total: int, counts: Counts) -> None:
        """Notes how much there is to do, and what of it was done before. Raises Ended."""
        values = [total, counts.created, counts.duplicates, counts.failed, counts.done, run.job.id, run.number]
        async with self._database.statements() as statements:
            if not (await statements.connection.execute(_COUNT, values, prepare=True)).rowcount:
                raise Ended

    async def advance(
        self,
        run: Taken,
        counts: Counts,
        errors: Sequence[ItemError] = (),
        *,
        done: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        """Adds items that are done: `done` of them, where they are counted in something else. Raises Ended."""
        values = advance_values(run, counts, errors, done=done, checkpoint=checkpoint)
        async with self._database.statements() as statements:
            if not (await statements.connection.execute(ADVANCE, values, prepare=True)).rowcount:
                raise Ended

    async def fail_once(self, run: Taken) -> int:
        """Notes that a run met what may pass; returns how many did since an item was last done. Raises Ended."""
        async with self._database.statements() as statements:
            row = await (await statements.connection.execute(_FAILURES, [run.job.id, run.number])).fetchone()
        if row is None:
            raise Ended
        return int(row["failures"])

    async def end(
        self, run: Taken, status: Status, message: str | None, now: datetime, *, through: date | None = None
    ) -> None:
        """Ends it, and begins what follows unless it was cancelled. `through`: the day it has got to.

        Does nothing when it is over already.
        """
        job = run.job
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            values = [status, message, now, status is Status.COMPLETED, job.id, run.number]
            row = await (await connection.execute(_END, values)).fetchone()
            if row is None:
                return
            if through is not None:
                await connection.execute(_MOVE_CURSOR, [job.user_id, job.type, through])
            if row["followers"] and status is not Status.CANCELLED:
                first, *rest = map(JobType, row["followers"])
                follower = NewJob(
                    id=uuid4(),
                    user_id=job.user_id,
                    tenant_id=row["tenant_id"],
                    type=first,
                    options=Options(),
                    scheduled=row["scheduled"],
                    followers=tuple(rest),
                )
                await self._begin(connection, follower, now)

    async def cursor(self, user_id: UUID, type: JobType) -> date | None:
        """The day that the last one has got to; None: there was none."""
        async with self._database.statements() as statements:
            row = await (await statements.connection.execute(_CURSOR, [user_id, type], prepare=True)).fetchone()
        return row["day"] if row else None

    async def begin_due(self, now: datetime, limit: int) -> int:
        """Begins those that the schedule wants, each link for one process alone; how many, at most `limit`."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            due = await (await connection.execute(_DUE, [now, limit])).fetchall()
            for row in due:
                await self._begin(connection, scheduled_job(row["user_id"], row["tenant_id"]), now)
                await connection.execute(_NEXT, [next_sync(row["interval_hours"], now), row["user_id"]])
        return len(due)

    async def queue_lost(self, before: datetime) -> int:
        """Queues again those from before a moment that are in no queue; how many."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            lost = await (await connection.execute(_LOST, [before])).fetchall()
            for row in lost:
                number = await self._defer(connection, _new(row))
                await connection.execute(_QUEUED, [number, row["id"]])
        return len(lost)

    async def erase(self, user_id: UUID) -> None:
        """Forgets all that is known of a user's synchronizations; one that runs finds that it is over."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            # First what runs: whoever writes of an item looks at its row.
            for statement in _ERASE:
                found = await connection.execute(statement, [user_id])
                for row in await found.fetchall() if found.description else ():
                    if row["queue_id"] is not None:
                        await self._cancel_queued(connection, row["queue_id"])

    async def forget_old(self, before: datetime) -> None:
        """Deletes those that ended before a moment, but not a user's last one."""
        async with self._database.statements() as statements:
            await statements.connection.execute(_FORGET_OLD, [before])

    async def _begin(self, connection: Connection, new: NewJob, now: datetime) -> bool:
        values = [
            *(new.id, new.user_id, new.tenant_id, new.type, new.scheduled, new.options.force, new.options.since),
            *([str(one) for one in new.followers], now),
        ]
        if not await (await connection.execute(_BEGIN, values)).fetchone():
            return False
        number = await self._defer(connection, new)
        await connection.execute(_QUEUED, [number, new.id])
        return True


def advance_values(
    run: Taken,
    counts: Counts,
    errors: Sequence[ItemError] = (),
    *,
    done: int | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """What ADVANCE is given."""
    return {
        **asdict(counts),
        "done": counts.done if done is None else done,
        "checkpoint": checkpoint,
        "errors": Jsonb([[one.item_id, one.message] for one in errors[:MAX_ERRORS]]),
        "job_id": run.job.id,
        "number": run.number,
    }


def _job(row: Row) -> Job:
    status = Status(row["status"])
    completed = status is Status.COMPLETED
    progress = 1.0 if completed else min(row["done"] / row["total"], 1.0) if row["total"] else 0.0
    return Job(
        id=row["id"],
        user_id=row["user_id"],
        tenant_id=row["tenant_id"],
        type=JobType(row["type"]),
        status=status,
        options=Options(force=row["force"], since=row["since"]),
        scheduled=row["scheduled"],
        progress=round(progress, 4),
        counts=Counts(created=row["created"], duplicates=row["duplicates"], failed=row["failed"]),
        errors=tuple(ItemError(*one) for one in row["errors"][:MAX_ERRORS]),
        error_message=row["error_message"],
        start_time=row["start_time"],
        end_time=row["end_time"],
    )


def _new(row: Row) -> NewJob:
    return NewJob(
        id=row["id"],
        user_id=row["user_id"],
        tenant_id=row["tenant_id"],
        type=JobType(row["type"]),
        options=Options(force=row["force"], since=row["since"]),
        scheduled=row["scheduled"],
        followers=tuple(map(JobType, row["followers"])),
    )


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:  # a token of another list
        return UUID(int=0)
