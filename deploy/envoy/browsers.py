"""Owns what an app in a browser, loaded from another origin, may send to the edge and read of its answers (CORS)."""

from __future__ import annotations

from typing import Any, Final

# By who reads them.
MAY_SEND: Final = (
    *("authorization", "content-type"),
    # runtime/idempotency.py
    *("idempotency-key", "x-idempotency-key"),
    # runtime/caching.py, and downloads: a browser asks first even for ranges that are not simple ones
    *("range", "if-range", "if-none-match"),
    # uploads
    *("upload-offset", "x-chunk-checksum"),
    # sync, and what a phone says of itself
    *("x-client-time", "x-device-id", "x-app-version", "x-os-version", "x-network-type", "x-platform"),
    # gRPC-Web
    *("x-grpc-web", "x-user-agent", "grpc-timeout"),
)

# Beside what browsers show of any answer: Cache-Control, Content-Length, Content-Type, Last-Modified.
MAY_READ: Final = (
    "x-request-id",
    # runtime/limits.py
    *("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "retry-after"),
    "etag",
    # downloads and exports
    *("accept-ranges", "content-disposition", "content-range"),
    # uploads: where a PUT goes on
    "upload-offset",
    # gRPC-Web, when a call failed before its answer began
    *("grpc-status", "grpc-message", "grpc-status-details-bin"),
)

POLICY: Final[dict[str, Any]] = {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
    # Tokens travel in a header that no browser adds by itself: a foreign page gains nothing, so any origin may call.
    "allow_origin_string_match": [{"safe_regex": {"regex": ".*"}}],
    "allow_credentials": False,
    "allow_methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
    "allow_headers": ", ".join(MAY_SEND),
    "expose_headers": ", ".join(MAY_READ),
    "max_age": "86400",
}
