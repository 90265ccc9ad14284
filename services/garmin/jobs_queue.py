"""Owns the queue that synchronizations wait in: procrastinate's, in this service's own schema."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final
from uuid import UUID

import procrastinate
from procrastinate.exceptions import JobAborted, ProcrastinateException
from procrastinate.job_context import AbortReason, JobContext
from procrastinate.jobs import Job as QueuedJob
from procrastinate.jobs import Status
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from psycopg_pool import AsyncConnectionPool

from runtime.database import Connection
from runtime.telemetry import logger
from services.garmin.jobs_domain import NewJob
from services.garmin.queue_schema import SCHEMA
from services.garmin.runs_domain import Again, Interrupted

_TASK: Final = "synchronize"
_HOUSEKEEPING: Final = "housekeeping"
# How often a worker says that it lives, and after how much silence another takes its jobs up, in seconds.
HEARTBEAT: Final = 3.0
STALLED: Final = 15.0
# Every ten seconds: croniter's sixth field.
_OFTEN: Final = "* * * * * */10"
_HOURLY: Final = "17 * * * *"
_POLL: Final = 2.0
# Seconds that running jobs get to come to the end of an item when the process stops.
_GRACE: Final = 4.0
# Seconds for what a worker does when it has nothing to carry out any more.
_UNTIL_ENDED: Final = 3.0
_RESTART: Final = 1.0
_KEPT_HOURS: Final = 24
_SEARCH_PATH: Final = f"SELECT set_config('search_path', '{SCHEMA}', true)"
_OPTIONS: Final = f"-c search_path={SCHEMA} -c statement_timeout=10000 -c lock_timeout=5000 -c timezone=UTC"

Round = Callable[[], Awaitable[object]]


class Queue:
    """Takes jobs in the transactions that are the reason for them, and hands each to one worker at a time."""

    def __init__(self, database_url: str, *, concurrency: int) -> None:
        """`concurrency`: jobs that this process carries out at the same time."""
        self._concurrency = concurrency
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            database_url,
            min_size=1,
            max_size=3,
            timeout=3.0,
            reconnect_timeout=0,
            kwargs={"application_name": "satchel-garmin-queue", "options": _OPTIONS, "connect_timeout": 3},
            check=AsyncConnectionPool.check_connection,
            open=False,
        )
        connector = procrastinate.PsycopgConnector()
        self._jobs = procrastinate.App(connector=connector)
        self._housekeeping = procrastinate.App(connector=connector)

    async def defer(self, connection: Connection, job: NewJob) -> int:
        """Adds a job to the transaction that is under way on `connection`; returns its number."""
        await connection.execute(_SEARCH_PATH)
        return await self._jobs.configure_task(
            _TASK, queue=_TASK, lock=str(job.user_id), queueing_lock=str(job.id), connection=connection
        ).defer_async(job_id=str(job.id))

    async def cancel(self, connection: Connection, number: int) -> None:
        """Adds the end of a job to the transaction; a worker that is busy with it is told."""
        await connection.execute(_SEARCH_PATH)
        await self._jobs.job_manager.cancel_job_by_id_async(number, abort=True, delete_job=True, connection=connection)

    @asynccontextmanager
    async def working(
        self, run: Callable[[UUID], Awaitable[None]], *, begin_due: Round, forget: Round, stop: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Carries jobs out for as long as the block runs: `run` is given the id of each, and may be given it again.

        `begin_due` and `forget` are called now and then, by one process of all. `stop` is called when jobs should come
        to the end of an item.
        """
        # Each step of each job is a line of its own there.
        logging.getLogger("procrastinate").setLevel(logging.WARNING)
        self._add_tasks(run, begin_due, forget)
        async with AsyncExitStack() as stack:
            await self._pool.open()
            stack.push_async_callback(self._pool.close)
            await self._jobs.open_async(self._pool)
            for app, queue, options in (
                (self._jobs, _TASK, {"concurrency": self._concurrency}),
                (self._housekeeping, _HOUSEKEEPING, {"concurrency": 1, "listen_notify": False}),
            ):
                task = asyncio.create_task(_worked(app, queue, options), name=f"work on {queue}")
                stack.push_async_callback(_ended, task)
            stack.callback(stop)
            yield

    def _add_tasks(self, run: Callable[[UUID], Awaitable[None]], begin_due: Round, forget: Round) -> None:
        async def synchronize(context: JobContext, job_id: str) -> None:
            try:
                await run(UUID(job_id))
            except asyncio.CancelledError:
                if context.abort_reason() is AbortReason.USER_REQUEST:
                    raise JobAborted from None
                raise

        async def look(timestamp: int) -> None:
            await self._take_up_stalled()
            await begin_due()

        async def clean(timestamp: int) -> None:
            await self._jobs.job_manager.delete_old_jobs(
                _KEPT_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
            )
            await forget()

        self._jobs.task(name=_TASK, queue=_TASK, retry=_Patience(), pass_context=True)(synchronize)
        for function, cron in ((look, _OFTEN), (clean, _HOURLY)):
            name = function.__name__
            task = self._housekeeping.task(name=name, queue=_HOUSEKEEPING, queueing_lock=name)(function)
            self._housekeeping.periodic(cron=cron)(task)

    async def _take_up_stalled(self) -> None:
        """Puts jobs back whose worker has fallen silent. Should it live after all, its next write finds that out."""
        manager = self._jobs.job_manager
        for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED):
            with suppress(ProcrastinateException):  # another process was quicker
                if job.task_name == _TASK:
                    logger().warning("a job is taken up again", job=job.task_kwargs.get("job_id"))
                    await manager.retry_job(job)
                else:  # the next tick brings another
                    await manager.finish_job(job, Status.FAILED, delete_job=True)


class _Patience(BaseRetryStrategy):
    """A job is only ever given up by what carries it out, which then returns."""

    def get_retry_decision(self, *, exception: BaseException, job: QueuedJob) -> RetryDecision:
        if isinstance(exception, Interrupted | asyncio.CancelledError):
            return RetryDecision()
        seconds = exception.seconds if isinstance(exception, Again) else _POLL
        return RetryDecision(retry_in={"seconds": int(seconds)})


async def _worked(app: procrastinate.App, queue: str, options: Any) -> None:
    """Works until it is cancelled. A worker ends by itself when the database is away; then there is another."""
    failing = False
    while True:
        try:
            await app.run_worker_async(
                queues=[queue],
                name=queue,
                install_signal_handlers=False,
                delete_jobs="always",
                fetch_job_polling_interval=_POLL,
                update_heartbeat_interval=HEARTBEAT,
                stalled_worker_timeout=STALLED,
                shutdown_graceful_timeout=_GRACE,
                **options,
            )
            failing = False
        except Exception as error:  # the jobs will be there when the database is
            if not failing:
                logger().warning("cannot work on the queue", queue=queue, error=repr(error))
            failing = True
        await asyncio.sleep(_RESTART)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    # Not for ever: where the database has just been away, the library may miss that it is to stop. What it could not
    # finish, another process takes up.
    _, late = await asyncio.wait({task}, timeout=_GRACE + _UNTIL_ENDED)
    if late:
        logger().warning("a worker of the queue does not end", worker=task.get_name())
