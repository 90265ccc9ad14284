"""Owns what the edge answers by itself: the bodies for envelope.lua, generated from the error table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from satchel.options.v1 import options_pb2 as options

from runtime.errors import Failure, Reason, Violation, rest_body

Config = dict[str, Any]

DIALECT_NAMES: Final[dict[int, str]] = {number: name for name, number in options.Dialect.items() if number}

# A caller is told 400: with 426 goes a header that names the protocol, and Envoy lets none through.
UPGRADE_REQUIRED: Final = 426

# What became of a call whose process stopped in the middle; a caller that has gone away itself reads nothing.
CANCELLED: Final = 499

# What each status means that Envoy, or a service without a body of ours, answers with; any other one of its class
# means what 400 and 500 mean.
REASONS: Final = {
    400: Reason.MALFORMED_REQUEST,
    401: Reason.INVALID_TOKEN,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    408: Reason.DEADLINE_EXCEEDED,
    413: Reason.TOO_LARGE,
    UPGRADE_REQUIRED: Reason.MALFORMED_REQUEST,
    429: Reason.RATE_LIMITED,
    431: Reason.TOO_LARGE,
    CANCELLED: Reason.UNAVAILABLE,
    500: Reason.INTERNAL,
    501: Reason.UNIMPLEMENTED,
    502: Reason.INTERNAL,
    503: Reason.UNAVAILABLE,
    504: Reason.DEADLINE_EXCEEDED,
}
# What to say where the reason's own message would be too general.
_MESSAGES: Final = {
    404: "There is nothing at this path for this method.",
    408: "The request took too long to arrive.",
    UPGRADE_REQUIRED: "This path speaks WebSocket; ask for the upgrade.",
    431: "The headers of the request are too large.",
}
# Seconds after which the same call may do; only where waiting helps.
_RETRY_AFTER: Final = {503: 1, CANCELLED: 1}

# Faults that the transcoder names a field with, or that are worth more than "cannot be read", by their keys in the Lua.
_FAULTS: Final = {
    "wrong_type": Failure(
        Reason.FIELD_INVALID,
        "$field: has the wrong type or is out of its type's range",
        violations=[Violation("$field", "INVALID_TYPE")],
    ),
    "unknown_parameter": Failure(
        Reason.FIELD_INVALID, "$field: is no parameter of this call", violations=[Violation("$field", "UNKNOWN")]
    ),
    "unexpected_list": Failure(Reason.MALFORMED_REQUEST, "A field that takes a single value holds a list."),
    "not_an_object": Failure(Reason.MALFORMED_REQUEST, "The body must be a JSON object."),
    "not_utf8": Failure(Reason.MALFORMED_REQUEST, "The body is not valid UTF-8."),
    "too_deep": Failure(Reason.MALFORMED_REQUEST, "The body is nested too deeply."),
    "not_json": Failure(Reason.MALFORMED_REQUEST, "The body is not valid JSON."),
}

# Placeholders that the Lua replaces.
_REQUEST_ID: Final = "$request_id"
_TIMESTAMP: Final = "$timestamp"
_SOME_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)

# Tells the Lua which answers are Envoy's own, and gives a request that failed before it had an id one.
LOCAL_REPLY_CONFIG: Final[Config] = {
    "mappers": [
        {
            "filter": {
                "status_code_filter": {
                    "comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "satchel.local_reply"}}
                }
            },
            "headers_to_add": [
                {
                    "header": {"key": key, "value": value},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
                for key, value in (("x-edge-status", "%RESPONSE_CODE%"), ("x-edge-id", "%UNIQUE_ID%"))
            ],
        }
    ]
}


def lua_source(*, max_request_bytes: int) -> str:
    """The script of the edge's Lua filter: the table it reads from, then envelope.lua."""
    edge = {
        "max_request_bytes": max_request_bytes,
        "default_dialect": DIALECT_NAMES[options.DIALECT_CORE],
        "dialects": {name: _answers(number) for number, name in DIALECT_NAMES.items()},
    }
    script = Path(__file__).with_name("envelope.lua").read_text(encoding="utf-8")
    return f"local edge = {_lua(edge)}\n{script}"


def _answers(dialect: int) -> Config:
    return {
        "statuses": {
            status: {
                # A refusal keeps its status; a failure of ours has the one in the error table.
                **({"status": reason.row.http} if status >= 500 or status in (UPGRADE_REQUIRED, CANCELLED) else {}),
                "body": _body(Failure(reason, _MESSAGES.get(status, "")), dialect),
                **({"retry_after": _RETRY_AFTER[status]} if status in _RETRY_AFTER else {}),
            }
            for status, reason in REASONS.items()
        },
        "faults": {name: _body(failure, dialect) for name, failure in _FAULTS.items()},
    }


def _body(failure: Failure, dialect: int) -> str:
    body = rest_body(failure, dialect, camel_case=False, request_id=_REQUEST_ID, now=_SOME_TIME)
    return body.replace(_SOME_TIME.strftime("%Y-%m-%dT%H:%M:%SZ"), _TIMESTAMP)


def _lua(value: object) -> str:
    """`value` as a Lua expression; a JSON string is one too as long as it has no escapes but those of quotes."""
    if isinstance(value, dict):
        pairs = (f"[{_lua(key)}] = {_lua(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)
