"""Owns the document as a whole: every REST door of every rpc, and what they have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from deploy.envoy.routes import WEBSOCKET_PATHS
from deploy.openapi.comments import Comments
from deploy.openapi.files import Files
from deploy.openapi.operations import BEARER, Operations
from deploy.openapi.refusals import DETAIL, ENVELOPE, JSON, Refusals
from deploy.openapi.schemas import Schemas
from runtime import contract

Json = dict[str, Any]

OPENAPI: Final = "3.1.0"
_DESCRIPTION: Final = """\
The backend that an offline-first mobile app signs in to, syncs with and uploads to. This document is made of the protos
that the server runs on; the same rpcs are there over gRPC on the same port.

**Signing in.** `POST /v1/auth/signup` or `/v1/auth/signin` answers an access token, which goes with every other call as
`Authorization: Bearer …`.

**Retrying is harmless.** Items have names that the phone chooses; calls that have none take an `Idempotency-Key`.

**Errors** have a stable `code` in one of three dialects, by the published API that a path belongs to (CORE, FLOW,
MOBILE), or are `{"detail": "…"}` (DETAIL); `x-satchel-errors` tells which. What is no proper HTTP, such as a header
with an underscore in its name, is refused in CORE before anybody knows which path was meant.

**Headers that every call hears.** A phone may say of itself `X-Device-Id`, `X-App-Version`, `X-OS-Version`,
`X-Network-Type` and `X-Platform`.
"""
_WEBSOCKET_TAG: Final = "WebSocket"
_HEADERS: Final = {
    "X-Request-Id": ("The request's id, as in the logs.", {"type": "string"}),
    "Retry-After": ("Seconds after which the same call may do.", {"type": "string", "pattern": "^[0-9]+$"}),
    "RateLimit-Limit": ("Calls in a window.", {"type": "string", "pattern": "^[0-9]+$"}),
    "RateLimit-Remaining": ("Calls that are left of them.", {"type": "string", "pattern": "^[0-9]+$"}),
    "RateLimit-Reset": ("Seconds until a call is allowed again.", {"type": "string", "pattern": "^[0-9]+$"}),
}


def document(comments: Comments, files: Files) -> Json:
    """The OpenAPI document of all services."""
    schemas, refusals = Schemas(comments, files), Refusals(comments)
    operations = Operations(comments, schemas, refusals)
    services = contract.services()
    paths = _paths(services, operations)
    return {
        "openapi": OPENAPI,
        "info": {"title": "Satchel", "version": "1", "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": _tags(services, comments),
        "paths": {**paths, **{path: {"get": _websocket(path)} for path in WEBSOCKET_PATHS}},
        "components": {
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "headers": {
                name: {"description": description, "schema": schema} for name, (description, schema) in _HEADERS.items()
            },
            "responses": refusals.found,
            "schemas": {"Error": ENVELOPE, "Detail": DETAIL, **schemas.found},
        },
    }


def _paths(services: Iterable[ServiceDescriptor], operations: Operations) -> Json:
    policies = contract.policies()
    methods = [method for service in services for method in service.methods]
    called = Counter(method.name for method in methods)
    paths: dict[str, Json] = {}
    for method in methods:
        service = method.containing_service
        policy = policies[f"/{service.full_name}/{method.name}"]
        name = method.name if called[method.name] == 1 else f"{service.name}_{method.name}"
        for rule, operation in operations.of(method, policy, name):
            paths.setdefault(rule.path, {})[rule.verb.lower()] = operation
    return dict(sorted(paths.items()))


def _tags(services: Iterable[ServiceDescriptor], comments: Comments) -> list[Json]:
    rest = [service for service in services if any(_has_door(service.full_name, one.name) for one in service.methods)]
    return [
        *({"name": service.name, "description": comments.of(service.full_name)} for service in rest),
        {"name": _WEBSOCKET_TAG, "description": "Sync as JSON frames over a WebSocket."},
    ]


def _has_door(service: str, method: str) -> bool:
    return bool(contract.policies()[f"/{service}/{method}"].http)


def _websocket(path: str) -> Json:
    """No rpc, but the door that the others are measured by; its frames are beyond what OpenAPI can say."""
    return {
        "operationId": "SyncOverWebSocket" if path.endswith("/") else "SyncOverWebSocket_2",
        "tags": [_WEBSOCKET_TAG],
        "summary": "Opens a WebSocket for sync",
        "description": "Speaks WebSocket only: records, receipts, conflicts and pushes as JSON frames. A caller that "
        "can set no header says its token in Sec-WebSocket-Protocol (bearer, then the token) or in the query.",
        "parameters": [
            {
                "name": "device_id",
                "in": "query",
                "required": True,
                "schema": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,255}$"},
            },
            {"name": "token", "in": "query", "schema": {"type": "string"}},
        ],
        "responses": {
            "101": {"description": "Frames follow."},
            "400": {
                "description": "It is no request for a WebSocket.",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
        "security": [{}, {BEARER: []}],
        "x-satchel-websocket": True,
    }
