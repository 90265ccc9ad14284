"""Owns the shapes of measurements: JSON items and messages on one side, domain values on the other."""

from __future__ import annotations

from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from satchel.sessions.v1 import health_metrics_pb2 as pb

from runtime.clock import parse_time, text_of, to_timestamp
from runtime.documents import struct_from_json, value_from_json, value_to_json
from runtime.errors import Failure, invalid
from services.sessions.metrics_domain import Page
from services.sessions.typed_domain import Result, Stored, Submitted, counts

_TEXTS: Final = ("type", "unit", "calendar_date", "source")
_FIELDS: Final = (*_TEXTS, "value", "timestamp", "zone_offset_minutes", "detail")
JSON: Final = "application/json"


def metric_from_json(item: Any) -> Submitted:
    """An item of a JSON document; null counts as not sent. Raises Failure(FIELD_INVALID) for what is no object."""
    if not isinstance(item, dict):
        raise invalid("", "must be an object", "INVALID_TYPE")
    return Submitted(id=item.get("id"), data={name: item[name] for name in _FIELDS if item.get(name) is not None})


def metric_from_pb(message: pb.HealthMetric) -> Submitted:
    """A message of a batch. Pairs with metric_to_pb."""
    data: dict[str, Any] = {name: getattr(message, name) for name in _TEXTS if getattr(message, name)}
    if message.HasField("value"):
        value = value_to_json(message.value)
        if value is not None:
            data["value"] = value
    if message.HasField("timestamp"):
        data["timestamp"] = text_of("timestamp", message.timestamp)
    if message.HasField("zone_offset_minutes"):
        data["zone_offset_minutes"] = message.zone_offset_minutes
    if message.HasField("detail"):
        data["detail"] = value_to_json(struct_pb2.Value(struct_value=message.detail))
    return Submitted(id=message.id, data=data)


def metric_to_pb(id: str, data: dict[str, Any]) -> pb.HealthMetric:
    """A stored measurement. Pairs with metric_from_pb."""
    return pb.HealthMetric(
        id=id,
        value=value_from_json(data["value"]),
        timestamp=to_timestamp(parse_time("timestamp", data["timestamp"])) if "timestamp" in data else None,
        zone_offset_minutes=int(data["zone_offset_minutes"]) if "zone_offset_minutes" in data else None,
        detail=struct_from_json(data["detail"]) if "detail" in data else None,
        **{name: data[name] for name in _TEXTS if name in data},
    )


def create_response(results: list[Result]) -> pb.CreateHealthMetricsResponse:
    """The answer to a batch."""
    count = counts(results)
    return pb.CreateHealthMetricsResponse(
        results=[_result(result) for result in results],
        created=count["created"],
        updated=count["updated"],
        duplicates=count["duplicate"],
        conflicts=count["conflict"],
        failed=count["error"],
    )


def create_document(results: list[Result]) -> HttpBody:
    """The answer to a batch as a JSON document."""
    return _document(create_response(results))


def metric_document(stored: Stored) -> HttpBody:
    """One measurement as a JSON document."""
    return _document(metric_to_pb(stored.id, stored.data))


def list_response(page: Page) -> pb.ListHealthMetricsResponse:
    """The answer to a list."""
    return pb.ListHealthMetricsResponse(
        health_metrics=[metric_to_pb(record.key.id, record.data) for record in page.records],
        next_page_token=page.next_token,
    )


def _result(result: Result) -> pb.HealthMetricResult:
    failure = result.failure
    return pb.HealthMetricResult(id=result.id, status=result.status, error=None if failure is None else _error(failure))


def _error(failure: Failure) -> pb.HealthMetricError:
    return pb.HealthMetricError(
        field=failure.violations[0].field if failure.violations else "", message=failure.message
    )


def _document(message: Message) -> HttpBody:
    """As the edge prints a message."""
    text = MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    )
    return HttpBody(content_type=JSON, data=text.encode())
