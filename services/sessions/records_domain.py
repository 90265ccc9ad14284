"""Owns what a record is: its key, what is known of it, and what is written of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

KEY_LIFETIME: Final = timedelta(hours=24)
"""So long a call is answered again as it was the first time."""
SESSION_DOMAINS: Final = ("exercise", "puzzle", "bike", "rower", "treadmill", "session")


class Key(NamedTuple):
    """What a record is called among its user's records."""

    domain: str
    id: str


class Known(NamedTuple):
    """What the server holds under a key."""

    version: int
    deleted: bool
    data: dict[str, Any]
    change_time: datetime
    """When it was changed last, by the corrected clock of the phone that did."""


def identical(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; to Python 1 is true and 0 is false, to a phone they are not."""
    return bool(one == other) and _same_kinds(one, other)


def _same_kinds(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_same_kinds(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return all(map(_same_kinds, one, other))
    return isinstance(one, bool) is isinstance(other, bool)


class Prepared(NamedTuple):
    """What is stored of a record's data once it was checked."""

    data: dict[str, Any]
    happen_time: datetime | None
    """When the thing itself took place, by the phone's word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A stored record."""

    key: Key
    version: int
    """From 1, one more with every accepted change."""
    position: int
    """Its place in the user's feed, from 1."""
    deleted: bool
    data: dict[str, Any]
    happen_time: datetime | None
    update_time: datetime


def place_of(record: Record) -> tuple[datetime | None, str]:
    """Where a record stands in a list of its domain."""
    return record.happen_time, record.key.id


class Write(NamedTuple):
    """What is stored under a key after a batch."""

    key: Key
    version: int
    position: int
    deleted: bool
    raw: str
    happen_time: datetime | None
    change_time: datetime
