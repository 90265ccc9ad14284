"""Owns what a phone says by connecting: who it is, and from where on it wants the feed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import parse_qs

from satchel.sessions.v1 import sync_pb2 as pb

from runtime.clock import parse_time, to_timestamp
from runtime.errors import Failure, Reason, invalid, missing

PATHS: Final = ("/ws/mobile/sync/", "/ws/mobile/sync")
# Browsers cannot set headers on a WebSocket: they offer this word as a subprotocol, and behind it the token.
SUBPROTOCOL: Final = "bearer"

_MAX_FIELDS: Final = 64
_DEVICE: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")
# What gRPC lets into a header.
_CREDENTIALS: Final = re.compile(r"[\x20-\x7e]*")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOLD_BY_HEADER: Final = {
    "app_version": "X-App-Version",
    "os_version": "X-OS-Version",
    "network_type": "X-Network-Type",
    "platform": "X-Platform",
}

Query = Mapping[str, Sequence[str]]


class Headers(Protocol):
    """The headers of a request."""

    def get_all(self, key: str) -> list[str]:
        """Every value of a header, whatever the case of its name."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A request to connect, read."""

    hello: pb.Hello
    metadata: tuple[tuple[str, str], ...]
    """What goes along to the Sync stream; holds the token, so it is never printed."""
    wants_welcome: bool
    """Whether the phone asked for the frame that seed 003 does not know."""


def opening_of(path: str, headers: Headers, peer: str) -> Opening:
    """Reads a request. `peer` is the address of a caller that came past the edge.

    Raises Failure: FIELD_MISSING or FIELD_INVALID for the device, INVALID_TOKEN for what can't be one.
    """
    query = _query(path)
    hello = pb.Hello(
        device_id=_device(query), domains=[name for text in query.get("domains", ()) for name in _list(text)]
    )
    for field, header in _TOLD_BY_HEADER.items():
        setattr(hello, field, _first(query, field) or _text(_header(headers, header)))
    if time := _first(query, "client_time") or _header(headers, "X-Client-Time"):
        with suppress(Failure):  # a clock that cannot be read is as good as none
            hello.client_time.CopyFrom(to_timestamp(parse_time("client_time", time)))
    if "cursor" in query:
        hello.cursor = _first(query, "cursor")
    return Opening(
        hello=hello,
        metadata=_metadata(query, headers, peer),
        wants_welcome=_first(query, "hello") == "1",
    )


def request_id_of(headers: Headers) -> str:
    """The id that the edge gave the request, which the logs of every service know it by; empty: it has none."""
    told = _header(headers, "x-request-id")
    return told if _REQUEST_ID.fullmatch(told) else ""


def client_of(headers: Headers, peer: str) -> str:
    """The phone's address."""
    return _header(headers, "x-envoy-external-address") or peer


def _query(path: str) -> Query:
    try:
        return parse_qs(path.partition("?")[2], keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise invalid("", f"The query has more than {_MAX_FIELDS} parameters.", "TOO_MANY") from None


def _device(query: Query) -> str:
    device = _first(query, "device_id")
    if not device:
        raise missing("device_id")
    if not _DEVICE.fullmatch(device):
        raise invalid("device_id", "must be 1 to 255 letters, digits, hyphens and underscores", "INVALID_FORMAT")
    return device


def _metadata(query: Query, headers: Headers, peer: str) -> tuple[tuple[str, str], ...]:
    credentials = _header(headers, "Authorization") or _bearer(_offered(headers) or _token(query))
    if not _CREDENTIALS.fullmatch(credentials):
        raise Failure(Reason.INVALID_TOKEN)
    told = {
        "authorization": credentials,
        "x-request-id": request_id_of(headers),
        "x-envoy-external-address": client_of(headers, peer),
    }
    return tuple((name, value) for name, value in told.items() if value)


def _offered(headers: Headers) -> str:
    """The token in an offer of subprotocols: what follows the word."""
    offers = [name for text in headers.get_all("Sec-WebSocket-Protocol") for name in _list(text)]
    place = offers.index(SUBPROTOCOL) + 1 if SUBPROTOCOL in offers else len(offers)
    return offers[place] if place < len(offers) else ""


def _token(query: Query) -> str:
    return _first(query, "token") or _first(query, "access_token")


def _bearer(token: str) -> str:
    return f"Bearer {token}" if token else ""


def _header(headers: Headers, name: str) -> str:
    return next(iter(headers.get_all(name)), "")


def _text(value: str) -> str:
    """A header's value as the phone meant it: HTTP reads bytes as ISO 8859-1, and phones send UTF-8."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def _first(query: Query, name: str) -> str:
    return next(iter(query.get(name, ())), "")


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
