"""Owns what this process has seen of syncs and uploads and not yet reported: a row per device, domain and minute."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast
from uuid import UUID

from runtime.call import current
from runtime.clock import parse_time
from runtime.errors import Failure, Reason
from runtime.telemetry import OUTCOMES_DROPPED

# Rows that wait at most, those on their way included; a full table takes about 15 MiB.
MAX_ROWS: Final = 20_000
MAX_WORD_CHARS: Final = 64
DEVICE_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,255}")

_MINUTE: Final = 60

T = TypeVar("T")

# Why a sync has failed: for a reason of ours, or because nothing of what was sent could be taken. All other refusals
# say nothing about syncing.
_OURS: Final = frozenset((Reason.INTERNAL, Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED))
_REJECTED: Final = frozenset(
    (
        *(Reason.MALFORMED_REQUEST, Reason.FIELD_MISSING, Reason.FIELD_INVALID, Reason.TOO_LARGE, Reason.TIER_LIMIT),
        Reason.IDEMPOTENCY_CONFLICT,
    )
)


class Device(NamedTuple):
    """What a phone says of itself; empty, or None: nothing."""

    id: str = ""
    platform: str = ""
    network_type: str = ""
    app_version: str = ""
    os_version: str = ""
    clock_skew_ms: float | None = None
    """How far its clock is ahead of ours."""


NO_DEVICE: Final = Device()


class Tally(NamedTuple):
    """What a sync has carried to the server, and what became of it."""

    domain: str = ""
    """The first that it touched; empty: none, several, or it is not known."""
    items: int = 0
    conflicts: int = 0
    rejected: int = 0


class Whose(Protocol):
    """Whoever an outcome is about: a caller, or the owner of an upload."""

    @property
    def tenant_id(self) -> int:
        """The tenant."""

    @property
    def user_id(self) -> UUID:
        """The user."""


class Key(NamedTuple):
    """What is counted apart."""

    tenant_id: int
    user_id: UUID
    device_id: str
    domain: str
    minute: int
    """Since 1970."""


@dataclass(slots=True)
class Row:
    """What has happened under a key."""

    device: Device
    time: float = 0.0
    """When the last of it happened; seconds since 1970."""
    syncs: int = 0
    failed_syncs: int = 0
    items: int = 0
    conflicts: int = 0
    rejected: int = 0
    duration_ms: float = 0.0
    uploads_completed: int = 0
    uploads_abandoned: int = 0
    upload_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is reported in one go."""

    number: int
    """From 1 on; a batch that is sent again keeps it."""
    rows: Mapping[Key, Row]
    dropped: int
    """Outcomes that were dropped since the last batch."""


class Outcomes:
    """What waits to be reported. Noting is a matter of microseconds, waits for nothing and never fails."""

    def __init__(self, *, now: Callable[[], float] = time.time, room: int = MAX_ROWS) -> None:
        """`now`: seconds since 1970."""
        self._now = now
        self._room = room
        self._rows: dict[Key, Row] = {}
        self._dropped = 0
        self._taken = 0

    def synced(
        self, whose: Whose, device: Device, tally: Tally, *, seconds: float, reason: Reason | None = None
    ) -> None:
        """A sync has ended, refused for `reason` unless that is None; nothing is noted of what says nothing of syncing.

        `tally.items` of a refused one are those that it would have carried.
        """
        domain, items, conflicts, rejected = tally
        if reason is None:
            failed = rejected >= items > 0
        elif reason in _OURS:
            failed = True
        elif reason in _REJECTED:
            failed, conflicts, rejected = True, 0, items
        elif reason is Reason.SYNC_CONFLICT:
            failed, conflicts = False, items
        else:
            return
        row = self._row(whose, device, domain)
        if row is not None:
            row.syncs += 1
            row.failed_syncs += failed
            row.items += items
            row.conflicts += conflicts
            row.rejected += rejected
            row.duration_ms += max(0.0, seconds) * 1000  # a clock may be set back meanwhile

    def uploaded(self, whose: Whose, size: int) -> None:
        """An upload has become a file of `size` bytes."""
        row = self._row(whose, calling_device(), "")
        if row is not None:
            row.uploads_completed += 1
            row.upload_bytes += size

    def abandoned(self, whose: Whose) -> None:
        """An upload was cancelled, has failed, or was left until it expired."""
        row = self._row(whose, calling_device(), "")
        if row is not None:
            row.uploads_abandoned += 1

    @property
    def waiting(self) -> bool:
        """Whether there is anything to report."""
        return bool(self._rows or self._dropped)

    def take(self, number: int, limit: int) -> Batch:
        """Up to `limit` rows that waited longest. They keep their room until `settle`; only one batch is out."""
        rows = dict(islice(self._rows.items(), limit))
        for key in rows:
            del self._rows[key]
        dropped, self._dropped = self._dropped, 0
        self._taken = len(rows)
        return Batch(number=number, rows=rows, dropped=dropped)

    def settle(self) -> None:
        """The batch that was taken is reported."""
        self._taken = 0

    def drop(self, batch: Batch) -> None:
        """The batch that was taken can never be reported."""
        self._taken = 0
        self._dropped += batch.dropped
        self._drop(len(batch.rows))

    def _row(self, whose: Whose, device: Device, domain: str) -> Row | None:
        """The row to note something in; None: there is no room for another one."""
        now = self._now()
        key = Key(whose.tenant_id, whose.user_id, device.id, domain, int(now // _MINUTE))
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) + self._taken >= self._room:
                self._drop(1)
                return None
            row = self._rows[key] = Row(device)
        row.time, row.device = now, device
        return row

    def _drop(self, count: int) -> None:
        self._dropped += count
        OUTCOMES_DROPPED.inc(count)


class Unnoted(Outcomes):
    """Outcomes that nobody wants to know."""

    def synced(
        self, whose: Whose, device: Device, tally: Tally, *, seconds: float, reason: Reason | None = None
    ) -> None:
        """Nothing is noted."""

    def uploaded(self, whose: Whose, size: int) -> None:
        """Nothing is noted."""

    def abandoned(self, whose: Whose) -> None:
        """Nothing is noted."""


def syncs(domain: str = "", *, items: int = 0) -> Callable[[T], T]:
    """Marks a unary rpc by which records travel: each call of it is a sync.

    It carries `items` in `domain`, unless the handler says by `carried` that it is otherwise.
    """

    def mark(method: T) -> T:
        cast(Any, method).sync = Tally(domain, items)
        return method

    return mark


def carried(tally: Tally) -> None:
    """Says what the call that is being served carries, or has come to; the last word counts."""
    current.get().tally = tally


def device_of(headers: Mapping[str, str], seconds: float = 0.0) -> Device:
    """What the headers of a call, by their names in lower case, say of the phone that made it `seconds` ago."""
    id = headers.get("x-device-id", "")
    if not id or not DEVICE_ID.fullmatch(id):
        return NO_DEVICE
    return Device(
        id,
        word(headers.get("x-platform", "")),
        word(headers.get("x-network-type", "")),
        word(headers.get("x-app-version", "")),
        word(headers.get("x-os-version", "")),
        _skew(headers.get("x-client-time", ""), seconds),
    )


def calling_device() -> Device:
    """The phone on whose call this is done; NO_DEVICE for what is done on nobody's."""
    call = current.get(None)
    return NO_DEVICE if call is None else device_of(call.metadata)


def word(text: str) -> str:
    """What a phone says of itself, cut to 64 characters; empty when it cannot be shown."""
    return text[:MAX_WORD_CHARS] if text.isprintable() else ""


def _skew(client_now: str, seconds: float) -> float | None:
    if not client_now:
        return None
    try:
        return (parse_time("x-client-time", client_now).timestamp() - time.time() + seconds) * 1000
    except (Failure, ValueError, OverflowError):
        return None
