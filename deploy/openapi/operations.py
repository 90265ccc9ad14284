"""Owns the operation of each REST door: its parameters, its body, its answers and its policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from satchel.options.v1 import options_pb2 as options

from deploy.openapi.comments import Comments
from deploy.openapi.refusals import JSON, Refusals
from deploy.openapi.schemas import Schemas, is_required
from runtime.contract import HttpRule, Limit, Policy
from runtime.idempotency import MAX_KEY_CHARS

Json = dict[str, Any]

BEARER: Final = "bearer"
HTTP_BODY: Final = "google.api.HttpBody"
_EVENTS: Final = "text/event-stream"
_BINARY: Final[Json] = {"type": "string", "format": "binary"}
_VARIABLE: Final = re.compile(r"\{(\w+)\}")
_IDEMPOTENCY_KEY: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The caller's name for this call: for 24 hours the same call under the same name gets the first "
    "answer again. X-Idempotency-Key is heard too.",
    "schema": {"type": "string", "pattern": f"^[!-~]{{1,{MAX_KEY_CHARS}}}$"},
}
_STATUSES: Final = {
    200: "What was asked for.",
    201: "It was created.",
    206: "The part that was asked for.",
    304: "The caller has it already.",
}
_ACCESS_NAMES: Final[dict[int, str]] = {value: name.removeprefix("ACCESS_") for name, value in options.Access.items()}
_DIALECT_NAMES: Final[dict[int, str]] = {
    value: name.removeprefix("DIALECT_") for name, value in options.Dialect.items()
}
_SCOPE_NAMES: Final[dict[int, str]] = {value: name.removeprefix("SCOPE_") for name, value in options.Scope.items()}
_ACCESS: Final[dict[int, str]] = {
    options.ACCESS_ADMIN: "For administrators of the tenant.",
    options.ACCESS_SERVICE: "For other services of the mesh only.",
    options.ACCESS_OPERATOR: "For administrators and for other services of the mesh.",
}


class Operations:
    """Makes operations of rpcs; what they share is gathered in `schemas` and `refusals`."""

    def __init__(self, comments: Comments, schemas: Schemas, refusals: Refusals) -> None:
        self._comments = comments
        self._schemas = schemas
        self._refusals = refusals

    def of(self, method: MethodDescriptor, policy: Policy, name: str) -> Iterator[tuple[HttpRule, Json]]:
        """The operation of each door of an rpc; the first one is called `name`, the others after it."""
        doors = list(zip(policy.http, _bindings(method), strict=True))
        for number, (rule, binding) in enumerate(doors, start=1):
            same = "" if number == 1 else f"The same as {policy.http[0].verb} {policy.http[0].path}.\n\n"
            yield (
                rule,
                {
                    "operationId": name if number == 1 else f"{name}_{number}",
                    "tags": [method.containing_service.name],
                    "summary": self._comments.summary_of(_typed(method).full_name),
                    "description": same + self._description(method, policy),
                    **self._asked(method, policy, rule, binding),
                    "responses": self._responses(method, policy, rule, has_body=bool(binding.body)),
                    "security": _security(policy),
                    **_policy_of(policy),
                },
            )

    def _description(self, method: MethodDescriptor, policy: Policy) -> str:
        typed = _typed(method)
        # What the rpc of documents says, it says of the other one.
        before = "" if typed is method else self._comments.without_errors(typed.full_name)
        said = [before, self._comments.of(method.full_name), _ACCESS.get(policy.access, "")]
        return "\n\n".join(one for one in said if one)

    def _asked(self, method: MethodDescriptor, policy: Policy, rule: HttpRule, binding: http_pb2.HttpRule) -> Json:
        in_path = _VARIABLE.findall(rule.path)
        fields = method.input_type.fields_by_name
        parameters = [self._parameter(fields[name], policy, "path") for name in in_path]
        if binding.body != "*":
            others = (field for field in fields.values() if field.name not in (*in_path, binding.body))
            # Of a request with a body the rest is for gRPC callers, who have no headers.
            parameters += [self._parameter(one, policy, "query") for one in others if not binding.body]
        parameters += [_request_header(header) for header in method.GetOptions().Extensions[options.request_header]]
        if policy.takes_key:
            parameters.append(_IDEMPOTENCY_KEY)
        return {
            **({"parameters": parameters} if parameters else {}),
            **({"requestBody": self._body(method, policy, binding.body, in_path)} if binding.body else {}),
        }

    def _parameter(self, field: FieldDescriptor, policy: Policy, place: str) -> Json:
        schema = self._schemas.parameter(field)
        if place == "path" and schema == {"type": "string"}:
            schema = {**schema, "minLength": 1, "pattern": "^[^/]+$"}
        text = self._comments.of(field.full_name)
        return {
            "name": field.json_name if policy.camel_case else field.name,
            "in": place,
            **({"description": text} if text else {}),
            **({"required": True} if place == "path" or is_required(field) else {}),
            "schema": schema,
        }

    def _body(self, method: MethodDescriptor, policy: Policy, body: str, in_path: list[str]) -> Json:
        if body == "*":
            schema = self._schemas.asked(method.input_type, camel_case=policy.camel_case, without=in_path)
            return {"required": True, "content": {JSON: {"schema": schema}}}
        content = method.GetOptions().Extensions[options.request_content]
        if not content.media_type:
            raise ValueError(f"{method.full_name} has a body of bytes and does not say which (request_content)")
        description = self._comments.of(f"{method.input_type.full_name}.{body}")
        return {
            **({"description": description} if description else {}),
            "required": True,
            "content": self._content(method, content),
        }

    def _responses(self, method: MethodDescriptor, policy: Policy, rule: HttpRule, *, has_body: bool) -> Json:
        headers = _answer_headers(method, policy)
        answers: dict[int, Json] = {}
        said = method.GetOptions().Extensions[options.response_content]
        for content in said or [options.Content()]:
            status = content.status or policy.success_status
            body = self._content(method, content) if said else self._answer(method, policy)
            if rule.verb == "HEAD":
                body = {}
            text = _STATUSES.get(status, "The answer.")
            answers[status] = {"description": text, "headers": headers, **({"content": body} if body else {})}
        refusals = self._refusals.of(method, policy, rule, has_body=has_body)
        for status in answers.keys() & refusals.keys():
            # An answer that is none of the good ones: what it holds, or the refusal.
            refusal = self._refusals.found[refusals.pop(status)["$ref"].rpartition("/")[2]]
            schemas = [one["content"][JSON]["schema"] for one in (answers[status], refusal)]
            answers[status] = {**refusal, "content": {JSON: {"schema": {"anyOf": schemas}}}}
        return {str(status): one for status, one in sorted((answers | refusals).items())}

    def _answer(self, method: MethodDescriptor, policy: Policy) -> Json:
        if method.output_type.full_name == HTTP_BODY:
            return {"*/*": {"schema": _BINARY}}
        schema = self._schemas.answered(method.output_type, camel_case=policy.camel_case)
        if method.server_streaming:
            text = "Server-sent events; the data of each is a JSON object by the schema of x-satchel-event."
            return {_EVENTS: {"schema": {"type": "string", "description": text}, "x-satchel-event": schema}}
        return {JSON: {"schema": schema}}

    def _content(self, method: MethodDescriptor, content: options.Content) -> Json:
        if not content.media_type:
            return {}
        package = method.containing_service.file.package
        if content.document:
            schema = self._schemas.document(package, content.document)
        elif content.message:
            message = method.containing_service.file.message_types_by_name[content.message]
            schema = self._schemas.answered(message)
        else:
            schema = _BINARY if content.media_type.endswith(("octet-stream", "*/*")) else {"type": "string"}
        return {content.media_type: {"schema": schema}}


def _typed(method: MethodDescriptor) -> MethodDescriptor:
    """The rpc that a rpc of JSON documents has beside it for gRPC callers; any other one itself."""
    beside = method.containing_service.methods_by_name.get(method.name.removesuffix("Json"))
    return beside or method


def _bindings(method: MethodDescriptor) -> list[http_pb2.HttpRule]:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings] if rule.WhichOneof("pattern") else []


def _request_header(header: options.Header) -> Json:
    return {
        "name": header.name,
        "in": "header",
        "description": header.description,
        **({"required": True} if header.required else {}),
        "schema": {"type": "string", **({"pattern": header.pattern} if header.pattern else {})},
    }


def _answer_headers(method: MethodDescriptor, policy: Policy) -> Json:
    shared = ["X-Request-Id"]
    if policy.limits:
        shared += ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]
    own = method.GetOptions().Extensions[options.response_header]
    return {name: {"$ref": f"#/components/headers/{name}"} for name in shared} | {
        one.name: {"description": one.description, "schema": {"type": "string"}} for one in own
    }


def _security(policy: Policy) -> list[Json]:
    if policy.access == options.ACCESS_PUBLIC:
        return []
    if policy.access == options.ACCESS_OPTIONAL:
        return [{}, {BEARER: []}]
    return [{BEARER: []}]


def _policy_of(policy: Policy) -> Json:
    return {
        "x-satchel-rpc": policy.method,
        "x-satchel-access": _ACCESS_NAMES[policy.access],
        "x-satchel-errors": _DIALECT_NAMES[policy.dialect],
        "x-satchel-rate-limits": [_limit(limit) for limit in policy.limits],
        "x-satchel-delegable": policy.delegable,
    }


def _limit(limit: Limit) -> Json:
    return {
        "count": limit.count,
        "window_seconds": limit.window,
        "scope": _SCOPE_NAMES[limit.scope],
        **({"account_field": limit.account_field} if limit.account_field else {}),
    }
