"""Owns the rpcs of synchronizations: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.garmin.v1 import garmin_pb2 as pb

from runtime.call import principal
from services.garmin import jobs_convert as convert
from services.garmin.jobs_domain import Jobs, JobType

Context = ServicerContext[Any, Any]


class JobRpcs:
    """The part of satchel.garmin.v1.GarminService that is about synchronizations."""

    _jobs: Jobs

    async def SyncActivities(self, request: pb.SyncActivitiesRequest, context: Context) -> pb.SyncActivitiesResponse:
        id = await self._jobs.start(principal(), JobType.ACTIVITIES, force=request.force, since=request.since)
        return pb.SyncActivitiesResponse(message="Activity synchronization initiated successfully.", job_id=str(id))

    async def SyncHealth(self, request: pb.SyncHealthRequest, context: Context) -> pb.SyncHealthResponse:
        id = await self._jobs.start(principal(), JobType.HEALTH, since=request.since)
        message = "Health metrics synchronization initiated successfully."
        return pb.SyncHealthResponse(message=message, job_id=str(id))

    async def SyncWorkouts(self, request: pb.SyncWorkoutsRequest, context: Context) -> pb.SyncWorkoutsResponse:
        id = await self._jobs.start(principal(), JobType.WORKOUTS, force=request.force)
        return pb.SyncWorkoutsResponse(message="Workout synchronization initiated successfully.", job_id=str(id))

    async def GetSyncStatus(self, request: pb.GetSyncStatusRequest, context: Context) -> pb.GetSyncStatusResponse:
        return convert.status_response(await self._jobs.current(principal()))

    async def CancelSync(self, request: pb.CancelSyncRequest, context: Context) -> pb.CancelSyncResponse:
        return pb.CancelSyncResponse(cancelled=await self._jobs.cancel(principal().user_id))

    async def ListSyncs(self, request: pb.ListSyncsRequest, context: Context) -> pb.ListSyncsResponse:
        return convert.list_response(await self._jobs.page(principal(), request.page_size, request.page_token))

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Context) -> pb.UpdateScheduleResponse:
        return convert.schedule_response(await self._jobs.schedule(principal(), request.interval_hours))
