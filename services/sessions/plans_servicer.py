"""Owns the rpcs of training plans: unpack, call, pack."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from satchel.sessions.v1 import workout_plans_pb2 as pb
from satchel.sessions.v1 import workout_plans_pb2_grpc as pb_grpc

from runtime.call import idempotency_key, principal
from runtime.outcomes import syncs
from services.sessions import plans_convert as convert
from services.sessions.plans_domain import DOMAIN, WorkoutPlans

Context = ServicerContext[Any, Any]


class WorkoutPlanServicer(pb_grpc.WorkoutPlanServiceServicer):
    """satchel.sessions.v1.WorkoutPlanService."""

    def __init__(self, plans: WorkoutPlans) -> None:
        self._plans = plans

    @syncs(DOMAIN, items=1)
    async def CreateWorkoutPlan(
        self, request: pb.CreateWorkoutPlanRequest, context: Context
    ) -> pb.CreateWorkoutPlanResponse:
        plan = convert.plan_from_pb(request)
        return convert.create_response(await self._plans.save(principal(), plan, idempotency_key()))

    async def GetWorkoutPlan(self, request: pb.GetWorkoutPlanRequest, context: Context) -> pb.GetWorkoutPlanResponse:
        return convert.get_response(await self._plans.get(principal(), request.workout_id))
