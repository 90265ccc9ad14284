"""Owns the shapes of the stream: its messages on one side, what was said and is told on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from satchel.options.v1 import options_pb2 as options
from satchel.sessions.v1 import sync_pb2 as pb

from runtime import contract
from runtime.clock import from_timestamp, to_timestamp
from runtime.documents import MAX_ITEMS, counted
from runtime.errors import Failure, missing
from runtime.idempotency import idempotency_key_of
from services.sessions import streams_domain as streams
from services.sessions import streams_messages as messages
from services.sessions import sync_convert as convert
from services.sessions.batches import capture
from services.sessions.conflicts_domain import LoggedConflict, Resolved
from services.sessions.schemas import MAX_RECORD_BYTES
from services.sessions.streams_messages import Event, Message
from services.sessions.sync_domain import Page


async def said_from_pb(requests: AsyncIterator[pb.SyncRequest]) -> AsyncIterator[tuple[str, Message | Failure]]:
    """What a phone says, message by message, each with its request id; one that cannot be read is its Failure."""
    async for request in requests:
        yield request.request_id, message_from_pb(request)


def message_from_pb(request: pb.SyncRequest) -> Message | Failure:
    """One thing that a phone says, or why it cannot be read."""
    kind = request.WhichOneof("message")
    if kind is None:
        return missing("message")
    try:
        return _READERS[kind](getattr(request, kind))
    except Failure as failure:
        return messages.Unread(items=0, failure=failure) if kind == "push" else failure


def event_to_pb(request_id: str, event: Event) -> pb.SyncResponse:
    """One thing that a phone is told."""
    field, write = _WRITERS[type(event)]
    return pb.SyncResponse(request_id=request_id, **{field: write(event)})


def _hello(message: pb.Hello) -> messages.Hello:
    return messages.Hello(
        device_id=message.device_id,
        app_version=message.app_version,
        platform=message.platform,
        os_version=message.os_version,
        network_type=message.network_type,
        schema_version=message.schema_version,
        client_time=_time(message),
        cursor=message.cursor if message.HasField("cursor") else None,
        domains=message.domains,
    )


def _push(message: pb.PushChangesRequest) -> messages.Push:
    group = message.atomic_group
    changes = capture(lambda one: convert.change_from_pb(one, group), counted(message.changes, "changes"))
    return messages.Push(changes=changes, key=idempotency_key_of({}, message))


def _resolve(message: pb.ResolveConflictRequest) -> messages.Resolve:
    return messages.Resolve(
        conflict_id=message.conflict_id,
        resolution=message.resolution,
        client_data=convert.client_data_from_pb(message),
    )


def _time(message: pb.Hello | pb.Heartbeat) -> datetime | None:
    if not message.HasField("client_time"):
        return None
    return from_timestamp("client_time", message.client_time)


def _welcome(event: messages.Welcome) -> pb.Welcome:
    limits = event.limits
    return pb.Welcome(
        server_time=to_timestamp(event.server_time),
        clock_offset=_duration(event.clock_offset),
        schema_version=streams.SCHEMA_VERSION,
        domains=event.domains,
        limits=pb.StreamLimits(
            max_changes=MAX_ITEMS,
            max_record_bytes=MAX_RECORD_BYTES,
            pushes_per_minute=_PUSHES_PER_MINUTE,
            max_unacknowledged=streams.MAX_UNACKNOWLEDGED,
            idle_timeout=_duration(timedelta(seconds=limits.idle)),
            lifetime=_duration(timedelta(seconds=limits.lifetime)),
        ),
        cursor=event.cursor,
        update_available=event.update_available,
        store_url=event.store_url,
    )


def _receipts(event: messages.Receipts) -> pb.Receipts:
    message = pb.Receipts(server_time=to_timestamp(event.answer.server_time), next_cursor=event.next_cursor)
    convert.add_receipts(message.receipts, event.answer)
    return message


def _changes(event: Page) -> pb.Changes:
    message = pb.Changes(next_cursor=event.next_cursor, has_more=event.has_more)
    convert.add_entries(message.changes, event)
    return message


def _refusal(event: Failure) -> pb.Refusal:
    return pb.Refusal(
        reason=event.reason.name,
        code=event.reason.code_in(options.DIALECT_MOBILE),
        field=event.violations[0].field if event.violations else "",
        message=event.message,
        retry_after=None if event.retry_after is None else _duration(timedelta(seconds=event.retry_after)),
    )


def _go_away(event: messages.Goodbye) -> pb.GoAway:
    cause = pb.GoAway.Cause.Value(f"CAUSE_{event.cause.name}")
    return pb.GoAway(cause=cause, reconnect_after=_duration(event.reconnect_after))


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


_READERS: Final[Mapping[str, Callable[[Any], Message]]] = {
    "hello": _hello,
    "push": _push,
    "ack": lambda message: messages.Ack(cursor=message.cursor),
    "heartbeat": lambda message: messages.Heartbeat(client_time=_time(message)),
    "resolve": _resolve,
    "unread": lambda message: messages.Unread(items=min(message.items, MAX_ITEMS), failure=None),
}

_WRITERS: Final[Mapping[type[Event], tuple[str, Callable[[Any], Any]]]] = {
    messages.Welcome: ("welcome", _welcome),
    messages.Receipts: ("receipts", _receipts),
    Page: ("changes", _changes),
    messages.Beat: ("heartbeat_ack", lambda event: pb.HeartbeatAck(server_time=to_timestamp(event.server_time))),
    LoggedConflict: ("conflict", convert.conflict_to_pb),
    Resolved: ("resolution", convert.resolve_response),
    Failure: ("refusal", _refusal),
    messages.Goodbye: ("go_away", _go_away),
}

_PUSHES_PER_MINUTE: Final = contract.policies()[streams.PUSH_METHOD].limits[0].count
