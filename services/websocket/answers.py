"""Owns what the Sync stream's messages look like as a phone's JSON frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import sync_pb2 as pb

from runtime.clock import format_time, from_timestamp
from runtime.errors import Failure, Reason
from services.websocket.requests import Asked, Item

_DONE: Final = ("APPLIED", "DUPLICATE")
_INVALID: Final = (Reason.FIELD_MISSING.name, Reason.FIELD_INVALID.name, Reason.MALFORMED_REQUEST.name)


def frame_of(message: pb.SyncResponse, asked: Asked, now: datetime) -> bytes | None:
    """The frame that tells a phone of `message`, the answer to `asked`; None where it need not know."""
    kind = message.WhichOneof("message")
    if kind not in _WRITERS:
        return None
    name, write = _WRITERS[kind]
    payload = write(getattr(message, kind), asked)
    return None if payload is None else _frame(name, payload, asked.name, now)


def error_frame(failure: Failure, now: datetime, name: str = "") -> bytes:
    """The frame that tells a phone of a refusal."""
    payload: dict[str, Any] = {"code": failure.reason.code_in(options.DIALECT_MOBILE), "message": failure.message}
    if failure.violations:
        payload["field"] = failure.violations[0].field
    if failure.retry_after is not None:
        payload["retry_after"] = round(failure.retry_after, 3)
    return _frame("error", payload, name, now)


def refused_frame(asked: Asked, now: datetime) -> bytes:
    """The answer to a `sync` of which nothing was left to push."""
    return _frame("sync_response", _synced(pb.Receipts(), asked), asked.name, now)


def welcome_frame(welcome: pb.Welcome, now: datetime) -> bytes:
    """The server's half of the handshake, for phones that ask for it."""
    limits = welcome.limits
    payload = {
        "server_time": _millis(welcome.server_time),
        "clock_offset_ms": round(_seconds(welcome.clock_offset) * 1000),
        "schema_version": welcome.schema_version,
        "domains": dict(welcome.domains),
        "cursor": welcome.cursor,
        "update_available": welcome.update_available,
        "store_url": welcome.store_url,
        "limits": {
            "max_changes": limits.max_changes,
            "max_record_bytes": limits.max_record_bytes,
            "pushes_per_minute": limits.pushes_per_minute,
            "idle_timeout": _seconds(limits.idle_timeout),
            "lifetime": _seconds(limits.lifetime),
        },
    }
    return _frame("welcome", payload, "", now)


def _frame(kind: str, payload: dict[str, Any], name: str, now: datetime) -> bytes:
    content = {"type": kind, "payload": payload, "timestamp": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    if name:
        content["request_id"] = name
    return orjson.dumps(content)


def _synced(receipts: pb.Receipts, asked: Asked) -> dict[str, Any]:
    """Every item of the request is counted once: synced, failed, or among the conflicts."""
    known = list(zip(asked.items, receipts.receipts, strict=False))
    errors = [
        *(_error(item, failure) for item, failure in asked.refused),
        *(_rejected(index, *one) for index, one in enumerate(known) if one[1].status == "REJECTED"),
    ]
    payload: dict[str, Any] = {
        "synced_items": sum(receipt.status in _DONE for _, receipt in known),
        "failed_items": len(errors),
        "conflicts": [_conflict(receipt.conflict) for _, receipt in known if receipt.status == "CONFLICT"],
        "errors": errors,
        # The versions that the phone's next changes are based on.
        "receipts": [
            {
                "domain": receipt.domain,
                "mobile_id": item.id,
                "status": receipt.status.lower(),
                "version": receipt.version,
            }
            for item, receipt in known
        ],
    }
    if receipts.next_cursor:
        payload["next_cursor"] = receipts.next_cursor
    return payload


def _error(item: Item, failure: Failure) -> dict[str, Any]:
    placed = failure.within(item.place)
    return {
        "item_id": item.id,
        "error": _error_name(failure.reason.name),
        "message": placed.message,
        "field": placed.violations[0].field if placed.violations else item.place,
    }


def _rejected(index: int, item: Item, receipt: pb.Receipt) -> dict[str, Any]:
    """A refusal with its field as the phone knows it: changes[0].data.verified is its voice_data[3].verified."""
    theirs = _phones_name(receipt.field, f"changes[{index}]", item)
    message = receipt.message
    if receipt.field:
        message = message.replace(receipt.field, theirs, 1)
    return {"item_id": item.id, "error": _error_name(receipt.reason), "message": message, "field": theirs}


def _phones_name(field: str, place: str, item: Item) -> str:
    if not field.startswith(place):
        return field
    member = field.removeprefix(place).removeprefix(".")
    if member == "id":
        member = item.id_field
    elif item.is_data and member in ("data", "data."):
        member = ""
    elif item.is_data:
        member = member.removeprefix("data.")
    return f"{item.place}.{member}" if member else item.place


def _error_name(reason: str) -> str:
    return "validation_failed" if reason in _INVALID else reason.lower()


def _conflict(notice: pb.ConflictNotice) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "conflict_id": notice.conflict_id,
        "domain": notice.domain,
        "mobile_id": notice.mobile_id,
        "server_version": notice.server_version,
        "client_version": notice.client_version,
        # As it was stored, unread.
        "server_data": orjson.Fragment(notice.server_data) if notice.server_data else None,
        "resolution_options": list(notice.resolution_options),
    }
    if notice.server_data_omitted:
        payload["server_data_omitted"] = True  # it is in the feed
    return payload


def _pushed(changes: pb.Changes) -> dict[str, Any] | None:
    if not changes.changes:
        return None
    return {
        "updates": list(_updates(changes.changes)),
        "next_cursor": changes.next_cursor,
        "has_more": changes.has_more,
    }


def _updates(entries: Iterable[pb.FeedEntry]) -> Iterable[dict[str, Any]]:
    for entry in entries:
        yield {
            "entity_type": entry.domain,
            "entity_id": entry.id,
            "operation": "delete" if entry.deleted else "create" if entry.version == 1 else "update",
            "data": orjson.Fragment(entry.data or "{}"),
            "version": entry.version,
            "updated_at": format_time(from_timestamp("update_time", entry.update_time)),
        }


def _resolved(resolution: pb.ResolveConflictResponse) -> dict[str, Any]:
    return {
        "conflict_id": resolution.conflict_id,
        "resolution_result": resolution.resolution_result,
        "winning_version": resolution.winning_version,
        "version": resolution.version,
    }


def _refusal(refusal: pb.Refusal) -> dict[str, Any]:
    payload: dict[str, Any] = {"code": refusal.code, "message": refusal.message}
    if refusal.field:
        payload["field"] = refusal.field
    if refusal.HasField("retry_after"):
        payload["retry_after"] = _seconds(refusal.retry_after)
    return payload


_WRITERS: Final[dict[str, tuple[str, Callable[[Any, Asked], dict[str, Any] | None]]]] = {
    "receipts": ("sync_response", _synced),
    "heartbeat_ack": ("heartbeat_ack", lambda ack, _: {"server_time": _millis(ack.server_time)}),
    "changes": ("server_push", lambda changes, _: _pushed(changes)),
    "conflict": ("conflict", lambda notice, _: _conflict(notice)),
    "resolution": ("conflict_resolved", lambda resolution, _: _resolved(resolution)),
    "refusal": ("error", lambda refusal, _: _refusal(refusal)),
}


def _millis(message: Timestamp) -> str:
    """With milliseconds always, as seed 003 shows it."""
    return from_timestamp("server_time", message).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9
