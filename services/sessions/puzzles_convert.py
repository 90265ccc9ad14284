"""Owns the shapes of puzzle sessions: JSON items and messages on one side, domain values on the other."""

from __future__ import annotations

from typing import Any, Final

from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import puzzle_sessions_pb2 as pb

from runtime.clock import parse_time, text_of, to_timestamp
from runtime.errors import Failure, invalid
from services.sessions.puzzles_domain import Page, Submitted, Uploaded
from services.sessions.records_domain import Record

_FIELDS: Final = (
    "timestamp",
    "duration",
    "difficulty",
    "declutter_text",
    "mistake_count",
    "is_completed",
    "puzzle_id",
)


def session_from_json(item: Any) -> Submitted:
    """An item of a JSON document; null counts as not sent. Raises Failure(FIELD_INVALID) for what is no object."""
    if not isinstance(item, dict):
        raise invalid("", "must be an object", "INVALID_TYPE")
    data = {name: item[name] for name in _FIELDS if item.get(name) is not None}
    return Submitted(id=item.get("id"), data=data)


def session_from_pb(message: pb.PuzzleSession) -> Submitted:
    """A message of a batch. Pairs with session_to_pb. Raises Failure(FIELD_INVALID) for a time out of range."""
    data: dict[str, Any] = {
        "declutter_text": message.declutter_text,
        "mistake_count": message.mistake_count,
        "is_completed": message.is_completed,
        "puzzle_id": message.puzzle_id,
    }
    if message.difficulty:
        data["difficulty"] = message.difficulty
    if message.HasField("duration"):
        data["duration"] = message.duration
    if message.HasField("timestamp"):
        data["timestamp"] = text_of("timestamp", message.timestamp)
    return Submitted(id=message.id, data=data)


def session_to_pb(record: Record) -> pb.PuzzleSession:
    """A stored session. Pairs with session_from_pb."""
    data = record.data
    return pb.PuzzleSession(
        id=record.key.id,
        timestamp=to_timestamp(parse_time("timestamp", data["timestamp"])),
        duration=data["duration"],
        difficulty=data["difficulty"],
        declutter_text=data["declutter_text"],
        mistake_count=data["mistake_count"],
        is_completed=data["is_completed"],
        puzzle_id=data["puzzle_id"],
    )


def upload_response(uploaded: Uploaded) -> pb.UploadPuzzleSessionsResponse:
    """The answer to a batch."""
    return pb.UploadPuzzleSessionsResponse(
        synced=uploaded.synced,
        conflicts=uploaded.conflicts,
        rejected=[_rejected(one.id, one.failure) for one in uploaded.rejected],
    )


def list_response(page: Page) -> pb.ListPuzzleSessionsResponse:
    """The answer to a list."""
    return pb.ListPuzzleSessionsResponse(
        sessions=[session_to_pb(record) for record in page.records],
        total=page.total,
        next_page_token=page.next_token,
    )


def _rejected(id: str, failure: Failure) -> pb.RejectedPuzzleSession:
    return pb.RejectedPuzzleSession(
        id=id,
        code=failure.reason.code_in(options.DIALECT_FLOW),
        field=failure.violations[0].field if failure.violations else "",
        message=failure.message,
    )
