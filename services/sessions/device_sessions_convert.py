"""Owns the shapes of recorded sessions: JSON items and messages on one side, domain values on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import device_sessions_pb2 as pb

from runtime.clock import text_of, to_timestamp
from runtime.documents import list_to_json, struct_to_json
from runtime.errors import Failure, invalid
from services.sessions.device_sessions_domain import Recording, Result, Uploaded

_NUMBERS: Final = (
    "total_duration_seconds",
    "total_distance_meters",
    "total_calories",
    "avg_heart_rate",
    "max_heart_rate",
    "xp_earned",
)
_TIMES: Final = ("started_at", "ended_at")
_FIELDS: Final = ("device_type", "training_id", *_TIMES, *_NUMBERS, "device_metrics", "samples")


def recording_from_json(item: Any) -> Recording:
    """An item of a JSON document; null counts as not sent. Raises Failure(FIELD_INVALID) for what is no object."""
    if not isinstance(item, dict):
        raise invalid("", "must be an object", "INVALID_TYPE")
    data = {name: item[name] for name in _FIELDS if item.get(name) is not None}
    id = item.get("client_session_id")
    return Recording(id=item.get("client_session_uuid") if id is None else id, data=data)


def recording_from_pb(message: pb.DeviceSession) -> Recording:
    """A message of a batch. Raises Failure(FIELD_INVALID) for a time out of range."""
    data: dict[str, Any] = {}
    if message.device_type:
        data["device_type"] = message.device_type
    if message.training_id:
        data["training_id"] = message.training_id
    has: Callable[[str], bool] = message.HasField  # type: ignore[assignment]  # the names are the message's own
    for name in _TIMES:
        if has(name):
            data[name] = text_of(name, getattr(message, name))
    for name in _NUMBERS:
        if has(name):
            data[name] = getattr(message, name)
    if has("device_metrics"):
        data["device_metrics"] = struct_to_json(message.device_metrics)
    if has("samples"):
        data["samples"] = list_to_json(message.samples)
    return Recording(id=message.client_session_id, data=data)


def upload_response(uploaded: Uploaded) -> pb.BatchUploadResponse:
    """The answer to a batch."""
    return pb.BatchUploadResponse(
        results=[_result(result) for result in uploaded.results],
        created=uploaded.counts["created"],
        duplicates=uploaded.counts["duplicate"],
        failed=uploaded.counts["error"],
        server_time=to_timestamp(uploaded.server_time),
    )


def _result(result: Result) -> pb.DeviceSessionResult:
    failure = result.failure
    return pb.DeviceSessionResult(
        client_session_id=result.client_session_id,
        status=result.status,
        session_id=result.session_id,
        error=None if failure is None else _error(failure),
    )


def _error(failure: Failure) -> pb.ItemError:
    return pb.ItemError(
        code=failure.reason.code_in(options.DIALECT_CORE),
        field=failure.violations[0].field if failure.violations else "",
        message=failure.message,
    )
