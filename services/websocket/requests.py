"""Owns what a phone's JSON frames mean as messages of the Sync stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.message import DecodeError
from satchel.sessions.v1 import sync_pb2 as pb

from runtime.clock import parse_time, to_timestamp
from runtime.documents import MAX_ITEMS, parse_json, struct_from_json
from runtime.errors import Failure, Reason, invalid, missing

MAX_NAME_CHARS: Final = 64

# Lists of a `sync` payload whose items are the data itself, under an id of their own name.
_NAMED_LISTS: Final = {
    "voice_data": ("voice_verification", "verification_id"),
    "behavioral_data": ("behavioral_session", "session_id"),
}
# Its general form: each item names its domain.
_RECORDS: Final = "records"
# What the product promises to take by name; any other list is taken, too, if the server knows a domain of its name.
_DOMAINS: Final = ("journal", "task", "attendance", "ticket", "work_order")
_LISTS: Final = (*_NAMED_LISTS, _RECORDS, *_DOMAINS)

_IDS: Final = ("mobile_id", "id")
_VERSIONS: Final = ("client_version", "base_version")
_TIMES: Final = ("client_timestamp", "client_time")
_OPERATION: Final = "operation"
# What an item says about itself, where its other members are its data.
_ABOUT: Final = frozenset((*_IDS, *_VERSIONS, *_TIMES, _OPERATION))

_OPERATIONS: Final = {"CREATE": "UPSERT", "UPDATE": "UPSERT"}


class Envelope(NamedTuple):
    """A frame, opened."""

    kind: Any
    payload: Any
    name: str
    """The phone's name for the frame; what answers it bears the same. Empty: it gave none."""


class Item(NamedTuple):
    """A change, as the phone knows it."""

    id: str
    place: str
    """Such as voice_data[3]."""
    id_field: str
    is_data: bool
    """Whether its members are the record's data, rather than under `data`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What has to be remembered of a request until its answer comes."""

    name: str = ""
    items: list[Item] = field(default_factory=list)
    """One per change of the message."""
    refused: list[tuple[Item, Failure]] = field(default_factory=list)
    """Items that never became a change."""


class Request(NamedTuple):
    """A frame as a message; None where there is nothing left to ask."""

    message: pb.SyncRequest | None
    asked: Asked


def opened(frame: str | bytes) -> Envelope:
    """Opens a frame. Raises Failure(MALFORMED_REQUEST) for one that is not a JSON object."""
    if isinstance(frame, bytes):
        raise Failure(Reason.MALFORMED_REQUEST, "Frames are text that holds JSON; this one is binary.")
    try:
        found = parse_json(frame.encode())
    except Failure:
        raise Failure(Reason.MALFORMED_REQUEST, "The frame is not valid JSON.") from None
    if not isinstance(found, dict):
        raise Failure(Reason.MALFORMED_REQUEST, "The frame must be a JSON object.")
    name = found.get("request_id")
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARS or not _is_text(name):
        name = ""
    return Envelope(found.get("type"), found.get("payload"), name)


def request_of(envelope: Envelope) -> Request:
    """The message that a frame asks for. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if envelope.kind is None:
        raise missing("type")
    read = _READERS.get(envelope.kind) if isinstance(envelope.kind, str) else None
    if read is None:
        raise invalid("type", f"must be one of {', '.join(_READERS)}", "UNKNOWN_VALUE")
    if envelope.payload is None:
        raise missing("payload")
    if not isinstance(envelope.payload, dict):
        raise invalid("payload", "must be an object", "INVALID_TYPE")
    return read(envelope.payload, envelope.name)


def acknowledgement(cursor: str) -> pb.SyncRequest:
    """The word that every page up to `cursor` is on its way to the phone."""
    return pb.SyncRequest(ack=pb.Ack(cursor=cursor))


def unread(asked: Asked) -> pb.SyncRequest:
    """The word that a frame was refused here, with all that it held."""
    return pb.SyncRequest(unread=pb.Unread(items=len(asked.refused)))


def _sync(payload: Mapping[str, Any], name: str) -> Request:
    lists = {key: value for key, value in payload.items() if key in _LISTS or isinstance(value, list)}
    for key, value in lists.items():
        if len(key) > MAX_NAME_CHARS or not _is_text(key):
            raise invalid("payload", "holds a list that has no domain's name", "UNKNOWN_VALUE")
        if value is not None and not isinstance(value, list):
            raise invalid(key, "must be a list", "INVALID_TYPE")
    if (count := sum(len(value or ()) for value in lists.values())) > MAX_ITEMS:
        raise invalid("payload", f"has {count} items, more than {MAX_ITEMS}", "TOO_MANY")
    push = pb.PushChangesRequest(
        idempotency_key=_optional_text(payload, "idempotency_key"),
        atomic_group=_optional_text(payload, "atomic_group"),
    )
    asked = Asked(name=name)
    for domain, item, value in _items(lists):
        try:
            push.changes.append(_change(domain, item, value))
            asked.items.append(item)
        except Failure as failure:
            asked.refused.append((item, failure))
    return Request(pb.SyncRequest(push=push) if push.changes else None, asked)


def _items(lists: Mapping[str, list[Any] | None]) -> Iterator[tuple[str, Item, Any]]:
    """Every item of a payload with its domain: empty where the item has to name it."""
    for key, values in lists.items():
        domain, named = _NAMED_LISTS.get(key, ("" if key == _RECORDS else key, ""))
        for index, value in enumerate(values or ()):
            found = value if isinstance(value, dict) else {}
            id_field = named or next((one for one in _IDS if one in found), _IDS[0])
            is_data = key != _RECORDS and (bool(named) or not isinstance(found.get("data"), dict))
            told = found.get(id_field)
            item_id = told if isinstance(told, str) and _is_text(told) else ""
            yield domain, Item(item_id[:255], f"{key}[{index}]", id_field, is_data), value


def _change(domain: str, item: Item, value: Any) -> pb.Change:
    """The change that an item is. Raises Failure for what no message can hold; the rest is for others to judge."""
    if not isinstance(value, dict):
        raise invalid("", "must be an object", "INVALID_TYPE")
    if not domain and value.get("domain") is None:
        raise missing("domain")
    if value.get(item.id_field) is None:
        raise missing(item.id_field)
    operation = _optional_text(value, _OPERATION).upper() or "UPSERT"
    change = pb.Change(
        domain=domain or _optional_text(value, "domain"),
        id=_optional_text(value, item.id_field),
        operation=_OPERATIONS.get(operation, operation),
        data="" if operation == "DELETE" else _data(item, value),
    )
    if version := _told(value, _VERSIONS):
        change.base_version = _int32(*version)
    if time := _told(value, _TIMES):
        change.client_time.CopyFrom(_timestamp(*time))
    if not item.is_data:
        change.atomic_group = _optional_text(value, "atomic_group")
    return change


def _data(item: Item, value: Mapping[str, Any]) -> str:
    """The record's content as JSON; empty when there is none."""
    if not item.is_data:
        found = value.get("data")
        return "" if found is None else _json("data", found)
    if item.id_field in _IDS:
        return _json("", {name: member for name, member in value.items() if name not in _ABOUT})
    return _json("", value)


def _heartbeat(payload: Mapping[str, Any], name: str) -> Request:
    heartbeat = pb.Heartbeat()
    if time := _told(payload, ("client_time",)):
        heartbeat.client_time.CopyFrom(_timestamp(*time))
    return Request(pb.SyncRequest(heartbeat=heartbeat), Asked(name=name))


def _resolve(payload: Mapping[str, Any], name: str) -> Request:
    for key in ("conflict_id", "resolution"):
        if payload.get(key) is None:
            raise missing(key)
    request = pb.ResolveConflictRequest(
        conflict_id=_optional_text(payload, "conflict_id"), resolution=_optional_text(payload, "resolution")
    )
    data = payload.get("client_data")
    if data is not None and not isinstance(data, dict):
        raise invalid("client_data", "must be an object", "INVALID_TYPE")
    message = pb.SyncRequest(resolve=request)
    if data is not None:
        try:
            message.resolve.client_data.CopyFrom(struct_from_json(data))
            # A message that is nested too deeply to be read would end the whole stream.
            pb.SyncRequest.FromString(message.SerializeToString())
        except (ValueError, OverflowError, RecursionError, DecodeError):
            raise invalid("client_data", "cannot be stored", "INVALID_FORMAT") from None
    return Request(message, Asked(name=name))


_READERS: Final[dict[str, Callable[[Mapping[str, Any], str], Request]]] = {
    "sync": _sync,
    "heartbeat": _heartbeat,
    "resolve_conflict": _resolve,
}


def _told(value: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first of `names` that has a value, with it."""
    return next(((name, value[name]) for name in names if value.get(name) is not None), None)


def _optional_text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise invalid(name, "must be a string", "INVALID_TYPE")
    if not _is_text(text):
        raise invalid(name, "is not valid Unicode", "INVALID_FORMAT")
    return text


def _int32(name: str, value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise invalid(name, "must be a whole number of 32 bits", "INVALID_TYPE")
    return value


def _timestamp(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise invalid(name, "must be an ISO 8601 time such as 2026-02-26T10:00:00Z", "INVALID_TYPE")
    return to_timestamp(parse_time(name, value))


def _json(name: str, value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a surrogate pair, a number past 64 bits, or nested too deeply
        raise invalid(name, "holds something that cannot be stored", "INVALID_FORMAT") from None


def _is_text(text: str) -> bool:
    """Whether no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
