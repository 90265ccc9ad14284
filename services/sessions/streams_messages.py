"""Owns what a phone and the server say to each other on a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from runtime.call import IdempotencyKey
from runtime.errors import Failure
from services.sessions.conflicts_domain import LoggedConflict, Resolved
from services.sessions.sync_domain import Answer, Page, Pushed


class Cause(StrEnum):
    """Why a stream ends though nothing failed."""

    DRAINING = "DRAINING"
    IDLE = "IDLE"
    LIFETIME = "LIFETIME"
    TOO_SLOW = "TOO_SLOW"


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """What streams are allowed."""

    per_user: int
    """In one process."""
    idle: float
    """Seconds that a phone may say nothing, or owe an ack."""
    lifetime: float
    """Seconds; up to a tenth is taken off by chance, so that not all come back at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """Who comes, and from where on it wants the feed."""

    device_id: str
    app_version: str
    platform: str
    os_version: str
    network_type: str
    schema_version: int
    client_time: datetime | None
    cursor: str | None
    """None: only what changes from now on; empty: all."""
    domains: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """Changes, each as the phone sent it."""

    changes: Sequence[Pushed | Failure]
    key: IdempotencyKey | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unread:
    """A push that cannot be read."""

    items: int
    """That it would have carried, as far as that is known."""
    failure: Failure | None
    """None: the phone has been told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """The phone has applied every page up to this cursor."""

    cursor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """A sign of life, with the phone's clock."""

    client_time: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolve:
    """The phone's decision of a conflict."""

    conflict_id: str
    resolution: str
    client_data: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """What a phone is told first."""

    server_time: datetime
    clock_offset: timedelta
    """What the phone adds to its clock to have ours."""
    cursor: str
    domains: Mapping[str, int]
    """The version of each domain's schema."""
    limits: StreamLimits
    update_available: bool
    store_url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipts:
    """What became of a push."""

    answer: Answer
    next_cursor: str
    """Empty when the phone has to wait for the feed to know its cursor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    server_time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodbye:
    """The last message."""

    cause: Cause
    reconnect_after: timedelta


Message: TypeAlias = Hello | Push | Unread | Ack | Heartbeat | Resolve
Event: TypeAlias = Welcome | Receipts | Page | Beat | LoggedConflict | Resolved | Failure | Goodbye
