"""Owns the shapes of synchronizations: messages and domain values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from satchel.garmin.v1 import garmin_pb2 as pb

from runtime.clock import to_timestamp
from services.garmin.jobs_domain import Job, Page, Schedule, Status

IDLE: Final = "idle"
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
# What is running or over, in the words of the published API: there, what was cancelled has failed.
_CANCELLED: Final = "The synchronization was cancelled."


def status_response(job: Job | None) -> pb.GetSyncStatusResponse:
    """The one that runs, or the last one."""
    if job is None:
        return pb.GetSyncStatusResponse(status=IDLE, start_time=to_timestamp(_NEVER))
    cancelled = job.status is Status.CANCELLED
    return pb.GetSyncStatusResponse(
        status=Status.FAILED if cancelled else job.status,
        progress=job.progress,
        start_time=to_timestamp(job.start_time),
        end_time=to_timestamp(job.end_time) if job.end_time else None,
        error_message=_CANCELLED if cancelled else job.error_message,
        job_type=job.type,
        job_id=str(job.id),
        created=job.counts.created,
        duplicates=job.counts.duplicates,
        failed=job.counts.failed,
    )


def list_response(page: Page) -> pb.ListSyncsResponse:
    """A page of earlier ones."""
    return pb.ListSyncsResponse(syncs=[sync_to_pb(job) for job in page.jobs], next_page_token=page.next_token)


def sync_to_pb(job: Job) -> pb.Sync:
    """One of them, with the items that failed."""
    return pb.Sync(
        job_id=str(job.id),
        job_type=job.type,
        status=job.status,
        progress=job.progress,
        start_time=to_timestamp(job.start_time),
        end_time=to_timestamp(job.end_time) if job.end_time else None,
        error_message=job.error_message or "",
        created=job.counts.created,
        duplicates=job.counts.duplicates,
        failed=job.counts.failed,
        errors=[pb.SyncError(item_id=one.item_id, message=one.message) for one in job.errors],
        scheduled=job.scheduled,
    )


def schedule_response(schedule: Schedule) -> pb.UpdateScheduleResponse:
    """When everything is synchronized from now on."""
    due = schedule.next_sync_at
    return pb.UpdateScheduleResponse(
        interval_hours=schedule.interval_hours, next_sync_at=to_timestamp(due) if due else None
    )
