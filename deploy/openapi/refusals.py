"""Owns which refusals a REST caller of an rpc may read: by status, with their codes and bodies in its dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from satchel.options.v1 import options_pb2 as options

from deploy.openapi.comments import Comments
from runtime.contract import HttpRule, Policy
from runtime.errors import Failure, Reason, rest_body

Json = dict[str, Any]

JSON: Final = "application/json"
ENVELOPE: Final[Json] = {
    "type": "object",
    "description": "A refusal.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "details", "requestId", "timestamp"],
            "properties": {
                "code": {"type": "string", "description": "What went wrong, for programs; it never changes."},
                "message": {"type": "string", "description": "The same for people."},
                "details": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["field", "reason"],
                        "properties": {
                            "field": {"type": "string", "description": "Such as sessions[3].duration."},
                            "reason": {"type": "string", "description": "Such as OUT_OF_RANGE."},
                        },
                    },
                },
                "requestId": {"type": "string", "description": "req_ and the request_id of the logs."},
                "timestamp": {"type": "string", "format": "date-time"},
            },
        }
    },
}
DETAIL: Final[Json] = {
    "type": "object",
    "description": "A refusal.",
    "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "What went wrong, for people."}},
}

_DIALECTS: Final[dict[int, str]] = {
    options.DIALECT_CORE: "core",
    options.DIALECT_FLOW: "flow",
    options.DIALECT_MOBILE: "mobile",
    options.DIALECT_DETAIL: "detail",
}
_TOKENS: Final = (Reason.MISSING_BEARER_TOKEN, Reason.INVALID_TOKEN, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED)
_ALWAYS: Final = (
    Reason.MALFORMED_REQUEST,
    Reason.FIELD_INVALID,
    Reason.INTERNAL,
    Reason.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED,
)
_WAITING_HELPS: Final = (429, 503)
# A caller that has gone away reads nothing.
_UNREAD: Final = 499
_REASON: Final = re.compile(r"[A-Z][A-Z_]{3,}")
_LIKE: Final = re.compile(r"\bas (?:of )?([A-Z][a-z]\w+)")
# What comments call by the name that gRPC has for it.
_ALSO: Final = {"PERMISSION_DENIED": Reason.FORBIDDEN}
_SOME_TIME: Final = datetime(2026, 2, 26, 10, tzinfo=UTC)
_SOME_ID: Final = "74b42e6c-70c2-4c13-804e-2254fe9a315c"


class Refusals:
    """The refusals that operations share, gathered as they are asked for."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        self._found: dict[str, Json] = {}

    @property
    def found(self) -> dict[str, Json]:
        """All that was asked for, by its name."""
        return dict(sorted(self._found.items()))

    def of(self, method: MethodDescriptor, policy: Policy, rule: HttpRule, *, has_body: bool) -> dict[int, Json]:
        """The refusals of one REST door of an rpc, by their statuses."""
        reasons = dict.fromkeys(
            (*_implied(policy, rule, has_body=has_body), *self._said(method)),
        )
        by_status: dict[int, list[Reason]] = {}
        for reason in sorted(reasons, key=list(Reason).index):
            if reason.row.http != _UNREAD:
                by_status.setdefault(reason.row.http, []).append(reason)
        silent = rule.verb == "HEAD"
        return {
            status: self._response(policy.dialect, status, found, routed="{" not in rule.path, silent=silent)
            for status, found in sorted(by_status.items())
        }

    def _said(self, method: MethodDescriptor, seen: tuple[str, ...] = ()) -> Iterable[Reason]:
        text = self._comments.errors_of(method.full_name)
        for word in _REASON.findall(text):
            if word in Reason.__members__:
                yield Reason[word]
            elif word in _ALSO:
                yield _ALSO[word]
        for name in _LIKE.findall(text):
            other = method.containing_service.methods_by_name.get(name)
            if other is not None and name not in seen:
                yield from self._said(other, (*seen, method.name))

    def _response(self, dialect: int, status: int, reasons: list[Reason], *, routed: bool, silent: bool) -> Json:
        # Which rpc a path with a broken escape was meant for, the edge does not know: it says so in the core dialect.
        dialects = [dialect] if routed or status != 400 else list(dict.fromkeys((dialect, options.DIALECT_CORE)))
        marks = [*(["path"] if dialects[1:] else []), *(["head"] if silent else [])]
        name = ".".join((_DIALECTS[dialect], *marks, *(one.name for one in reasons)))
        if name not in self._found:
            headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
            if status in _WAITING_HELPS:
                headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
            body = {} if silent else {"content": {JSON: _body(dialects, reasons)}}
            description = " ".join(dict.fromkeys(one.row.message for one in reasons))
            self._found[name] = {"description": description, "headers": headers, **body}
        return {"$ref": f"#/components/responses/{name}"}


def _implied(policy: Policy, rule: HttpRule, *, has_body: bool) -> Iterable[Reason]:
    """What the edge and the interceptors refuse, whatever the rpc is."""
    yield from _ALWAYS
    if policy.access != options.ACCESS_PUBLIC:
        yield from _TOKENS
        yield Reason.FORBIDDEN
    if "{" in rule.path:
        yield Reason.NOT_FOUND
    if has_body:
        yield Reason.TOO_LARGE
    if policy.takes_key:
        yield Reason.IDEMPOTENCY_CONFLICT
    if policy.limits:
        yield Reason.RATE_LIMITED


def _body(dialects: list[int], reasons: list[Reason]) -> Json:
    schemas = [_schema(dialect, reasons) for dialect in dialects]
    return {
        "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
        "examples": {one.name: {"summary": one.row.message, "value": _example(one, dialects[0])} for one in reasons},
    }


def _schema(dialect: int, reasons: list[Reason]) -> Json:
    if dialect == options.DIALECT_DETAIL:
        return {"$ref": "#/components/schemas/Detail"}
    codes = list(dict.fromkeys(one.code_in(dialect) for one in reasons))
    return {
        "allOf": [{"$ref": "#/components/schemas/Error"}],
        "properties": {"error": {"properties": {"code": {"enum": codes}}}},
    }


def _example(reason: Reason, dialect: int) -> Json:
    text = rest_body(Failure(reason), dialect, camel_case=False, request_id=_SOME_ID, now=_SOME_TIME)
    found: Json = json.loads(text)
    return found
