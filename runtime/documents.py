"""Owns reading JSON from phones item by item, so that a bad one is refused alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from typing import Any, Final, NoReturn, TypeVar

import orjson
from google.protobuf import struct_pb2

from runtime.errors import Failure, Reason, invalid, missing

MAX_ITEMS: Final = 1000

Items = TypeVar("Items", bound=Sized)


def items(document: bytes, field: str) -> list[Any]:
    """The items under `field` of a JSON object, 1 to 1000 of whatever type. Raises as items_and_more."""
    return items_and_more(document, field)[0]


def items_and_more(document: bytes, field: str) -> tuple[list[Any], dict[str, Any]]:
    """The items under `field` of a JSON object, 1 to 1000 of whatever type, and the whole object.

    Raises Failure: MALFORMED_REQUEST for what is no JSON object, FIELD_MISSING and FIELD_INVALID for the list.
    """
    parsed = parse(document)
    return _listed(parsed, field), parsed


def one_or_items(document: bytes, field: str) -> tuple[dict[str, Any] | None, list[Any]]:
    """A JSON object that has no `field` by itself; otherwise None and the 1 to 1000 items there, or of a bare list.

    Raises Failure as items_and_more.
    """
    parsed = parse(document)
    if isinstance(parsed, list):
        return None, counted(parsed, field)
    if isinstance(parsed, dict) and field not in parsed:
        return parsed, []
    return None, _listed(parsed, field)


def counted(found: Items, field: str) -> Items:
    """`found` again. Raises Failure: FIELD_MISSING when it is empty, FIELD_INVALID when it has more than 1000."""
    if not found:
        raise missing(field)
    if len(found) > MAX_ITEMS:
        raise invalid(field, f"has {len(found)} items, more than {MAX_ITEMS}", "TOO_MANY")
    return found


def struct_to_json(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as a dict; whole numbers as int, as JSON prints them. Pairs with struct_from_json."""
    fields = struct.fields
    return {name: value_to_json(fields[name]) for name in fields}


def list_to_json(values: struct_pb2.ListValue) -> list[Any]:
    """A ListValue as a list; whole numbers as int, as JSON prints them."""
    return [value_to_json(value) for value in values.values]


def struct_from_json(data: Mapping[str, Any]) -> struct_pb2.Struct:
    """A dict as a Struct. Pairs with struct_to_json."""
    struct = struct_pb2.Struct()
    struct.update(dict(data))
    return struct


def value_from_json(value: Any) -> struct_pb2.Value:
    """A JSON value as a Value. Pairs with value_to_json."""
    values = struct_pb2.ListValue()
    values.append(value)
    return values.values[0]


def value_to_json(value: struct_pb2.Value) -> Any:
    """A Value as JSON; whole numbers as int, as JSON prints them. Pairs with value_from_json."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= 2**53 else number
    if kind == "struct_value":
        return struct_to_json(value.struct_value)
    if kind == "list_value":
        return list_to_json(value.list_value)
    return None if kind is None or kind == "null_value" else getattr(value, kind)


def _listed(parsed: Any, field: str) -> list[Any]:
    if not isinstance(parsed, dict):
        raise Failure(Reason.MALFORMED_REQUEST, "The body must be a JSON object.")
    if parsed.get(field) is None:
        raise missing(field)
    if not isinstance(parsed[field], list):
        raise invalid(field, "must be a list", "INVALID_TYPE")
    found: list[Any] = parsed[field]
    return counted(found, field)


def parse(document: bytes) -> Any:
    """A JSON document. Raises Failure(MALFORMED_REQUEST) for what is none."""
    if not document.strip():
        raise Failure(Reason.MALFORMED_REQUEST, "The body is empty.")
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError:
        pass
    try:
        # A phone that cut a text in the middle of an emoji sends half of a surrogate pair. The standard library reads
        # that, so that only the item that holds it is refused.
        return json.loads(document.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Failure(Reason.MALFORMED_REQUEST, "The body is not valid JSON.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
