"""Owns how the edge reaches a service: one cluster each, health-checked and bounded."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from runtime.breaking import MAX_TRAILERS
from runtime.readiness import ALIVE

Config = dict[str, Any]

# A connection stays with the replica that accepted it: small ones spread the load over all that share a port.
MAX_STREAMS_PER_CONNECTION: Final = 32
MAX_CONNECTIONS: Final = 64

_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def cluster(name: str, host: str, port: int) -> Config:
    """The cluster of the service `name`, whose replicas all answer at one address, or at all addresses of a name."""
    return {
        **_cluster(name, host, port),
        # Not whether it reaches the database: what it answers then is better than what the edge could say.
        "health_checks": [{**_HEALTH_CHECK, "grpc_health_check": {"service_name": ALIVE}}],
        "circuit_breakers": _bounds(MAX_CONNECTIONS, MAX_CONNECTIONS * MAX_STREAMS_PER_CONNECTION),
        **_protocol(
            # Connections end after a while, so that a replica that was restarted gets its share again.
            {"max_requests_per_connection": 10_000, "idle_timeout": "300s", "max_headers_count": MAX_TRAILERS},
            {
                "http2_protocol_options": {
                    "max_concurrent_streams": MAX_STREAMS_PER_CONNECTION,
                    # A replica that hangs, or vanished without a word, is noticed.
                    "connection_keepalive": {"interval": "15s", "timeout": "5s"},
                }
            },
        ),
    }


def websocket_cluster(name: str, host: str, port: int, *, health_path: str, max_connections: int) -> Config:
    """As `cluster`, for a service that takes WebSockets: a connection for each, for as long as it lives."""
    return {
        **_cluster(name, host, port),
        "health_checks": [{**_HEALTH_CHECK, "http_health_check": {"path": health_path}}],
        "circuit_breakers": _bounds(max_connections, max_connections),
        **_protocol({"max_requests_per_connection": 1}, {"http_protocol_options": {}}),
    }


def collector_cluster(name: str, host: str, port: int) -> Config:
    """The cluster of a collector of traces, which speaks gRPC; without it nothing but the traces is lost."""
    return {**_cluster(name, host, port), **_protocol({}, {"http2_protocol_options": {}})}


def _cluster(name: str, host: str, port: int) -> Config:
    return {
        "name": name,
        "type": "STATIC" if _is_address(host) else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}]}
            ],
        },
        # Panic mode would send calls to hosts known to be down; the caller waits for nothing.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 30, "keepalive_interval": 5}
        },
    }


def _bounds(connections: int, requests: int) -> Config:
    threshold = {
        "max_connections": connections,
        "max_pending_requests": 1024,
        "max_requests": requests,
        "max_retries": 64,
    }
    return {"thresholds": [threshold]}


def _protocol(common: Config, explicit: Config) -> Config:
    options = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "common_http_protocol_options": common,
        "explicit_http_config": explicit,
    }
    return {"typed_extension_protocol_options": {_HTTP_OPTIONS: options}}


_HEALTH_CHECK: Final = {
    "timeout": "1s",
    "interval": "1s",
    # Apart from "interval" until the first call, and 60 s when left out.
    "no_traffic_interval": "0.5s",
    "no_traffic_healthy_interval": "1s",
    "unhealthy_interval": "0.5s",
    "unhealthy_edge_interval": "0.5s",
    "healthy_edge_interval": "0.5s",
    # Two: one late answer of a busy replica, or one that says goodbye, is not the end of the service.
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    # A new connection each time reaches any of the replicas behind a port; a kept one would ask the same for ever.
    "reuse_connection": False,
}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
