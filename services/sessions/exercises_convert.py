"""Owns the two shapes of exercise sessions: domain values and messages."""

from __future__ import annotations

from typing import Any, Final

from satchel.sessions.v1 import exercise_sessions_pb2 as pb

from runtime.clock import to_timestamp
from services.sessions.exercises_domain import ExerciseSession, Page

_FIELDS: Final = ("exercise_id", "start_time", "duration", "repetition_count", "is_completed")


def data_from_pb(message: pb.CreateExerciseSessionRequest) -> dict[str, Any]:
    """A request as data of domain `exercise`; a field that was not sent is not there."""
    return {name: getattr(message, name) for name in _FIELDS if message.HasField(name)}


def session_to_pb(session: ExerciseSession) -> pb.ExerciseSession:
    """A session in a list."""
    return pb.ExerciseSession(**_values(session))


def create_response(session: ExerciseSession) -> pb.CreateExerciseSessionResponse:
    """The answer to a create."""
    return pb.CreateExerciseSessionResponse(**_values(session))


def get_response(session: ExerciseSession) -> pb.GetExerciseSessionResponse:
    """The answer to a get."""
    return pb.GetExerciseSessionResponse(**_values(session))


def list_response(page: Page) -> pb.ListExerciseSessionsResponse:
    """The answer to a list."""
    return pb.ListExerciseSessionsResponse(
        sessions=[session_to_pb(session) for session in page.sessions], next_page_token=page.next_token
    )


def _values(session: ExerciseSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "exercise_id": session.exercise_id,
        "start_time": to_timestamp(session.start_time),
        "duration": session.duration,
        "repetition_count": session.repetition_count,
        "is_completed": session.is_completed,
        "points_awarded": session.points_awarded,
    }
