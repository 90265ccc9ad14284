"""Owns the shapes of training plans: messages and domain values."""

from __future__ import annotations

from typing import Any, Final

from satchel.sessions.v1 import workout_plans_pb2 as pb

from runtime.documents import struct_from_json, struct_to_json
from services.sessions.typed_domain import Stored, Submitted

_TEXTS: Final = ("name", "sport", "scheduled_date")


def plan_from_pb(message: pb.CreateWorkoutPlanRequest) -> Submitted:
    """A plan as it was sent; what is empty counts as not sent. Pairs with create_response."""
    data: dict[str, Any] = {name: getattr(message, name) for name in _TEXTS if getattr(message, name)}
    if message.steps:
        data["steps"] = [struct_to_json(step) for step in message.steps]
    return Submitted(id=message.id, data=data)


def create_response(plan: Stored) -> pb.CreateWorkoutPlanResponse:
    """A plan that was stored."""
    return pb.CreateWorkoutPlanResponse(**_values(plan))


def get_response(plan: Stored) -> pb.GetWorkoutPlanResponse:
    """A plan that was asked for."""
    return pb.GetWorkoutPlanResponse(**_values(plan))


def _values(plan: Stored) -> dict[str, Any]:
    texts: dict[str, Any] = {name: plan.data[name] for name in _TEXTS if name in plan.data}
    return {"id": plan.id, **texts, "steps": [struct_from_json(step) for step in plan.data["steps"]]}
