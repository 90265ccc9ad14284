"""Owns the two shapes of a deletion's receipt."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from satchel.auth.v1 import deletions_pb2

from runtime.clock import format_time, to_timestamp
from services.auth.deletions_domain import Deletion


def deletion_response(deletion: Deletion) -> deletions_pb2.GetDeletionResponse:
    """A receipt."""
    removed = deletion.removed
    return deletions_pb2.GetDeletionResponse(
        state="in_progress" if deletion.done_time is None else "done",
        deleted_at=to_timestamp(deletion.delete_time),
        completed_at=_time_or_null(deletion.done_time),
        removed=deletions_pb2.Removed(
            account=removed.get("account", {}),
            records=removed.get("records", {}),
            files=removed.get("files", 0),
            uploads=removed.get("uploads", 0),
            bytes=removed.get("bytes", 0),
            devices=removed.get("devices", 0),
        ),
        merged=deletion.merged,
    )


def _time_or_null(time: datetime | None) -> Value:
    return Value(null_value=NULL_VALUE) if time is None else Value(string_value=format_time(time))
