"""Owns the edge's configuration: the Envoy bootstrap, generated from the contract and the error table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from deploy.envoy import replies, routes
from deploy.envoy.clusters import cluster, websocket_cluster
from runtime import contract

Config = dict[str, Any]

MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024
MAX_RESPONSE_BYTES: Final = 32 * 1024 * 1024
MAX_HEADER_KIB: Final = 32
MAX_CONNECTIONS: Final = 10_000

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_FILTERS: Final = f"{_EXTENSIONS}.filters.http"
_MONITORS: Final = f"{_EXTENSIONS}.resource_monitors"

# Headers by which the edge and the services talk: a client's own ones are dropped before anything reads them.
_RESERVED_HEADERS: Final = ("x-request-id", "x-error-body", "x-http-status")
_RESERVED_PREFIX: Final = "x-envoy-"
# As what stands before the edge, where something does, says who called it.
_CALLERS: Final = "x-forwarded-for"

# Neither header values nor the query: both carry tokens.
_ACCESS_LOG: Final = {
    "time": "%START_TIME%",
    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
    "path": "%PATH(NQ:ORIG_OR_PATH)%",
    "rpc": "%ROUTE_NAME%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "request_id": "%RESP(X-REQUEST-ID)%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "user_agent": "%REQ(USER-AGENT):200%",
}


def bootstrap(
    *,
    listen: tuple[str, int],
    admin_path: str,
    services: dict[str, tuple[str, int]],
    descriptor_set: Path,
    log_path: str = "/dev/stdout",
    trusted_hops: int = 0,
) -> Config:
    """The whole configuration of an Envoy that serves `services` (name to address) on `listen`.

    Addresses are those of gRPC, but for the WebSocket door the one where it takes connections. `admin_path` is the
    socket file of Envoy's admin page; `descriptor_set` the protos with everything they import. So many proxies before
    this one are believed (`trusted_hops`) about who called them.
    """
    if missing := routes.clusters() - services.keys():
        raise ValueError(f"no address for {', '.join(sorted(missing))}")
    return {
        "node": {"id": "edge", "cluster": "satchel"},
        "admin": {"address": {"pipe": {"path": admin_path}}},
        "static_resources": {
            "listeners": [_listener(listen, _connection_manager(descriptor_set, log_path, trusted_hops))],
            "clusters": [_cluster(name, host, port) for name, (host, port) in services.items()],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_MONITORS}.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _cluster(name: str, host: str, port: int) -> Config:
    if name != routes.WEBSOCKET_CLUSTER:
        return cluster(name, host, port)
    path = routes.WEBSOCKET_HEALTH_PATH
    return websocket_cluster(name, host, port, health_path=path, max_connections=MAX_CONNECTIONS)


def _listener(listen: tuple[str, int], connection_manager: Config) -> Config:
    host, port = listen
    return {
        "name": "edge",
        "address": {"socket_address": {"address": host, "port_value": port}},
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}]}
        ],
    }


def _connection_manager(descriptor_set: Path, log_path: str, trusted_hops: int) -> Config:
    return {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "server_name": "satchel",
        "codec_type": "AUTO",
        **_trust(trusted_hops),
        **_limits(),
        # Off but on the routes that lead to the door.
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}],
        "http_filters": _filters(descriptor_set),
        "route_config": {
            "name": "edge",
            # Off for the routes that lead nowhere; `bootstrap` has checked the others.
            "validate_clusters": False,
            "virtual_hosts": [routes.virtual_host(camel_transcoder=_transcoder(descriptor_set, camel_case=True))],
        },
        "local_reply_config": replies.LOCAL_REPLY_CONFIG,
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
                    "path": log_path,
                    "log_format": {"json_format": _ACCESS_LOG},
                },
            }
        ],
    }


def _trust(hops: int) -> Config:
    """What is believed of a request: its peer's address, or whom so many proxies saw, and nothing it says of itself."""
    # Each proxy adds the address of who called it at the end: what stands before theirs is the caller's own word.
    removed = _RESERVED_HEADERS if hops else (*_RESERVED_HEADERS, _CALLERS)
    return {
        # With internal_address_config unset no address is trusted: a client on this network is like any other.
        "use_remote_address": True,
        "xff_num_trusted_hops": hops,
        "generate_request_id": True,
        "early_header_mutation_extensions": [
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    "mutations": [
                        *({"remove": name} for name in removed),
                        {"remove_on_match": {"key_matcher": {"prefix": _RESERVED_PREFIX}}},
                    ],
                },
            }
        ],
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _limits() -> Config:
    return {
        "max_request_headers_kb": MAX_HEADER_KIB,
        "request_headers_timeout": "10s",
        # How long a whole request may take is the route's to say: a file in one go takes as long as it takes.
        "request_timeout": "0s",
        "stream_idle_timeout": "300s",
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_headers_count": 100,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "http_protocol_options": {
            "accept_http_10": True,
            "default_host_for_http_10": "localhost",
            # An offer to speak something else is declined by an answer in HTTP, not by an error. WebSocket is too,
            # where it does not lead anywhere: see routes.py.
            "ignore_http_11_upgrade": [{"safe_regex": {"regex": _any_but("websocket")}}],
        },
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            # What one client can make the edge hold in memory, per stream and per connection.
            "initial_stream_window_size": 256 * 1024,
            "initial_connection_window_size": 1024 * 1024,
        },
    }


def _any_but(word: str) -> str:
    """A regular expression for every text but `word` in any case; this kind of expressions cannot simply say so."""
    if not word:
        return ".+"
    first = f"{word[0].lower()}{word[0].upper()}"
    return f"(|[^{first}].*|[{first}]{_any_but(word[1:])})"


def _filters(descriptor_set: Path) -> list[Config]:
    """In the order of a request; an answer passes them backwards."""
    configs = {
        # Around everything that answers, so that it sees every answer as it would leave.
        routes.LUA: {
            "@type": f"{_FILTERS}.lua.v3.Lua",
            "default_source_code": {"inline_string": replies.lua_source(max_request_bytes=MAX_REQUEST_BYTES)},
        },
        routes.CORS: {"@type": f"{_FILTERS}.cors.v3.Cors"},
        "envoy.filters.http.grpc_web": {"@type": f"{_FILTERS}.grpc_web.v3.GrpcWeb"},
        # The transcoder reads JSON as it arrives and so never sees that a body is too large.
        routes.BUFFER: {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": MAX_REQUEST_BYTES},
        routes.TRANSCODER: _transcoder(descriptor_set, camel_case=False),
        "envoy.filters.http.router": {"@type": f"{_FILTERS}.router.v3.Router", "suppress_envoy_headers": True},
    }
    return [{"name": name, "typed_config": config} for name, config in configs.items()]


def _transcoder(descriptor_set: Path, *, camel_case: bool) -> Config:
    return {
        "@type": f"{_FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptor_set),
        "services": [service.full_name for service in contract.services()],
        "convert_grpc_status": True,
        # The route of the REST path stays, with the timeout, retries and dialect of its rpc.
        "match_incoming_request_route": True,
        # With query_param_unescape_plus unset a plus stays one: e-mails and time zones have them, nothing has spaces.
        "print_options": {
            "always_print_primitive_fields": True,
            "preserve_proto_field_names": not camel_case,
            # A stream of messages is read as server-sent events.
            "stream_sse_style_delimited": True,
        },
        "request_validation_options": {"reject_unknown_method": True, "reject_unknown_query_parameters": True},
        "max_request_body_size": MAX_REQUEST_BYTES,
        "max_response_body_size": MAX_RESPONSE_BYTES,
    }
