"""Owns where a request goes: one route per rpc and per REST door, generated from the contract."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from satchel.options.v1 import options_pb2 as options

from deploy.envoy import browsers, replies
from deploy.envoy.replies import DIALECT_NAMES
from runtime import contract
from runtime.contract import HttpRule, Policy

Config = dict[str, Any]

BUFFER: Final = "envoy.filters.http.buffer"
CORS: Final = "envoy.filters.http.cors"
LUA: Final = "envoy.filters.http.lua"
TRANSCODER: Final = "envoy.filters.http.grpc_json_transcoder"

UNARY_TIMEOUT: Final = "30s"
# From the first byte of a request to the last one of its answer: a chunk of 1 MiB on the worst of networks.
UNARY_DURATION: Final = "600s"
UNARY_IDLE_TIMEOUT: Final = "60s"
# Longer than a phone may say nothing: the service that knows why a stream ends gets to say so.
STREAM_IDLE_TIMEOUT: Final = "330s"
# Longer than a phone's stream may live, for the same reason; it ends those whose phone takes nothing any more.
STREAM_DURATION: Final = "3900s"
WEBSOCKET_CLUSTER: Final = "websocket"
WEBSOCKET_PATHS: Final = ("/ws/mobile/sync/", "/ws/mobile/sync")
WEBSOCKET_HEALTH_PATH: Final = "/healthz"
# Where gRPC's own services (reflection, health checks) are answered for the whole mesh.
INFRASTRUCTURE_CLUSTER: Final = "health"

# Whose errors a caller reads on a path that no rpc has; the first match counts, and anything else is CORE.
PREFIX_DIALECTS: Final = (
    ("/users/me/", options.DIALECT_CORE),
    ("/v1/", options.DIALECT_FLOW),
    ("/api/garmin", options.DIALECT_DETAIL),
    ("/api/v1/", options.DIALECT_MOBILE),
    ("/ws/", options.DIALECT_MOBILE),
    ("/users", options.DIALECT_DETAIL),
    ("/garmin_credentials", options.DIALECT_DETAIL),
    ("/tokens", options.DIALECT_DETAIL),
    ("/activities", options.DIALECT_DETAIL),
    ("/health_metrics", options.DIALECT_DETAIL),
    ("/workout_plans", options.DIALECT_DETAIL),
    ("/", options.DIALECT_CORE),
)

# What a published API writes with a slash at the end: a template of the transcoder cannot have one, and its matcher
# overlooks that of a request.
_ALSO_WITH_SLASH: Final = ("/tokens",)

_NOWHERE: Final = "nowhere"

_BACK_OFF: Final = {"base_interval": "0.05s", "max_interval": "0.25s"}
# Whatever became of the first try, another one is harmless.
_RETRY_READS: Final = {
    "retry_on": "unavailable,reset,connect-failure,refused-stream",
    "num_retries": 2,
    "retry_back_off": _BACK_OFF,
}
# Only when the first try certainly never reached a handler.
_RETRY_WRITES: Final = {"retry_on": "connect-failure,refused-stream", "num_retries": 2, "retry_back_off": _BACK_OFF}


def virtual_host(*, camel_transcoder: Config) -> Config:
    """Every route; `camel_transcoder` is the transcoder's configuration for the rpcs with camelCase names."""
    known = _ours()
    doors = sorted(((rule, policy) for policy in known for rule in policy.http), key=lambda door: _specificity(door[0]))
    return {
        "name": "satchel",
        "domains": ["*"],
        "typed_per_filter_config": {CORS: browsers.POLICY},
        "routes": [
            *(_websocket(path) for path in WEBSOCKET_PATHS),
            *(_no_websocket(prefix, dialect) for prefix, dialect in PREFIX_DIALECTS),
            *(_door(rule, policy, camel_transcoder) for rule, policy in doors),
            *(_rpc(policy) for policy in known),
            *(_infrastructure(service) for service in contract.INFRASTRUCTURE),
            *(_websocket_only(path) for path in WEBSOCKET_PATHS),
            # A known path with another verb, in the dialect of the rpc that is there.
            *_once(_nothing(_path_match(rule), policy.dialect, policy.camel_case) for rule, policy in doors),
            *(_nothing({"prefix": prefix}, dialect, False) for prefix, dialect in PREFIX_DIALECTS),
            _nothing({"connect_matcher": {}}, options.DIALECT_CORE, False),
        ],
    }


def clusters() -> frozenset[str]:
    """Every cluster that a route leads to."""
    return frozenset({INFRASTRUCTURE_CLUSTER, WEBSOCKET_CLUSTER, *(cluster_of(policy) for policy in _ours())})


def cluster_of(policy: Policy) -> str:
    """The cluster that serves an rpc: package satchel.<name>.v1 is served by <name>."""
    return policy.service.split(".")[1]


def _ours() -> list[Policy]:
    return [policy for policy in contract.policies().values() if policy.service not in contract.INFRASTRUCTURE]


def streaming(method: str) -> bool:
    """Whether either side of an rpc of ours, named as on the wire, is a stream."""
    return method in _STREAMING


def conversing(method: str) -> bool:
    """Whether both sides are."""
    return method in _CONVERSING


_STREAMING: Final = frozenset(
    f"/{service.full_name}/{method.name}"
    for service in contract.services()
    for method in service.methods
    if method.client_streaming or method.server_streaming
)

_CONVERSING: Final = frozenset(
    f"/{service.full_name}/{method.name}"
    for service in contract.services()
    for method in service.methods
    if method.client_streaming and method.server_streaming
)


def _door(rule: HttpRule, policy: Policy, camel_transcoder: Config) -> Config:
    route = {
        "name": policy.method,
        "match": {
            **_path_match(rule),
            "headers": [{"name": ":method", "string_match": {"exact": rule.verb}}],
        },
        "route": _action(policy),
        "metadata": _metadata(policy.dialect, policy.camel_case, streamed=streaming(policy.method)),
    }
    overrides = {}
    if policy.camel_case:
        overrides[TRANSCODER] = camel_transcoder
    if streaming(policy.method):
        overrides[BUFFER] = _UNBUFFERED
    return {**route, "typed_per_filter_config": overrides} if overrides else route


def _rpc(policy: Policy) -> Config:
    return {
        "name": policy.method,
        "match": {"path": policy.method},
        "route": _action(policy),
        "metadata": _metadata(policy.dialect, False),
        "typed_per_filter_config": {BUFFER: _UNBUFFERED},
    }


def _infrastructure(service: str) -> Config:
    return {
        "name": service,
        "match": {"prefix": f"/{service}/"},
        "route": {"cluster": INFRASTRUCTURE_CLUSTER, "timeout": "0s"},
        "typed_per_filter_config": {BUFFER: _UNBUFFERED},
    }


def _websocket(path: str) -> Config:
    return {
        "name": WEBSOCKET_CLUSTER,
        "match": {
            "path": path,
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}, _ASKS_FOR_WEBSOCKET],
        },
        "route": {
            "cluster": WEBSOCKET_CLUSTER,
            "timeout": "0s",
            "idle_timeout": STREAM_IDLE_TIMEOUT,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
        },
        "metadata": _metadata(options.DIALECT_MOBILE, False, streamed=True),
        "typed_per_filter_config": {BUFFER: _UNBUFFERED, TRANSCODER: _OFF},
    }


def _no_websocket(prefix: str, dialect: int) -> Config:
    """What a request for the upgrade gets everywhere else."""
    route = _nothing({"prefix": prefix, "headers": [_ASKS_FOR_WEBSOCKET]}, dialect, False)
    # Refused by the router like any other path that is not there, rather than as forbidden.
    return {**route, "route": {**route["route"], "upgrade_configs": [{"upgrade_type": "websocket"}]}}


def _websocket_only(path: str) -> Config:
    """What a request without the upgrade gets there."""
    return {
        "match": {"path": path},
        "direct_response": {"status": replies.UPGRADE_REQUIRED},
        "metadata": _metadata(options.DIALECT_MOBILE, False),
        "typed_per_filter_config": {BUFFER: _UNBUFFERED, TRANSCODER: _OFF},
    }


def _nothing(match: Config, dialect: int, camel_case: bool) -> Config:
    # A cluster that does not exist rather than a direct response, which the CORS filter would leave without headers.
    action = {"cluster": _NOWHERE, "cluster_not_found_response_code": "NOT_FOUND"}
    return {
        "match": match,
        "route": action,
        "metadata": _metadata(dialect, camel_case),
        # Refused at once; for a CONNECT there is no end to wait for.
        "typed_per_filter_config": {BUFFER: _UNBUFFERED},
    }


def _action(policy: Policy) -> Config:
    streamed: Config = {"timeout": "0s", "idle_timeout": STREAM_IDLE_TIMEOUT}
    if conversing(policy.method) or policy.events:
        streamed["max_stream_duration"] = {"max_stream_duration": STREAM_DURATION}
    unary = {
        "timeout": UNARY_TIMEOUT,
        "idle_timeout": UNARY_IDLE_TIMEOUT,
        "max_stream_duration": {"max_stream_duration": UNARY_DURATION},
    }
    return {
        "cluster": cluster_of(policy),
        **(streamed if streaming(policy.method) else unary),
        "retry_policy": _RETRY_READS if policy.read_only else _RETRY_WRITES,
    }


# gRPC frames a message itself and services bound its size; only REST bodies have to be whole before they are read.
_UNBUFFERED: Final = {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    "disabled": True,
}


_ASKS_FOR_WEBSOCKET: Final = {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}

_OFF: Final = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}


def _metadata(dialect: int, camel_case: bool, *, streamed: bool = False) -> Config:
    """What envelope.lua knows of a route."""
    known = {
        "dialect": DIALECT_NAMES[dialect],
        "names": "camel" if camel_case else "snake",
        "streamed": streamed,
    }
    return {"filter_metadata": {LUA: known}}


def _path_match(rule: HttpRule) -> Config:
    if rule.path in _ALSO_WITH_SLASH:
        return {"safe_regex": {"regex": f"{re.escape(rule.path)}/?"}}
    if "{" not in rule.path:
        return {"path": rule.path}
    pieces = re.split(r"\{[^}]*\}", rule.path)
    return {"safe_regex": {"regex": "[^/]+".join(re.escape(piece) for piece in pieces)}}


def _specificity(rule: HttpRule) -> tuple[int, str]:
    """Literal paths before those with variables: /sessions/batch_upload is no session."""
    return rule.path.count("{"), rule.path


def _once(routes: Iterable[Config]) -> Iterator[Config]:
    seen = []
    for route in routes:
        if route["match"] not in seen:
            seen.append(route["match"])
            yield route
