"""Owns what a report comes to: its outcomes added up by minute, by device and by hour of a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from services.health.counts import Counts
from services.health.outcomes_domain import Outcome, Said

Key = TypeVar("Key")


class Minute(NamedTuple):
    """A minute of a domain of a tenant."""

    tenant_id: int
    time: datetime
    domain: str


class DeviceKey(NamedTuple):
    """A device of a user."""

    user_id: UUID
    device_id: str
    tenant_id: int


class DeviceHour(NamedTuple):
    """An hour of a device."""

    user_id: UUID
    device_id: str
    tenant_id: int
    time: datetime


class DeviceSum(NamedTuple):
    """What is added to a device."""

    counts: Counts
    last_sync_time: datetime | None
    say_time: datetime
    """Of the last outcome, by which the words go."""
    said: Said
    """Each word as it was said last."""


class Sums(NamedTuple):
    """What a report adds to each row of the tables."""

    minutes: Mapping[Minute, Counts]
    devices: Mapping[DeviceKey, DeviceSum]
    hours: Mapping[DeviceHour, Counts]


def sums_of(outcomes: Iterable[Outcome]) -> Sums:
    """Each key once. What is of no device, or of nobody, adds to its minute only."""
    minutes: dict[Minute, Counts] = {}
    devices: dict[DeviceKey, DeviceSum] = {}
    hours: dict[DeviceHour, Counts] = {}
    for one in sorted(outcomes, key=attrgetter("time")):
        minute = one.time.replace(second=0, microsecond=0)
        _add(minutes, Minute(one.tenant_id, minute, one.domain), one.counts)
        if one.user_id is None or not one.device_id:
            continue
        key = DeviceKey(one.user_id, one.device_id, one.tenant_id)
        _add(hours, DeviceHour(*key, minute.replace(minute=0)), one.counts)
        devices[key] = _later(devices.get(key), one)
    return Sums(minutes, devices, hours)


def _later(known: DeviceSum | None, outcome: Outcome) -> DeviceSum:
    """`known` and what came after it."""
    synced = outcome.time if outcome.counts.syncs else None
    if known is None:
        return DeviceSum(outcome.counts, synced, outcome.time, outcome.said)
    said = Said(*map(_last, outcome.said, known.said))
    return DeviceSum(known.counts.plus(outcome.counts), synced or known.last_sync_time, outcome.time, said)


def _last(word: Any, before: Any) -> Any:
    return before if word is None else word


def _add(sums: dict[Key, Counts], key: Key, counts: Counts) -> None:
    known = sums.get(key)
    sums[key] = counts if known is None else known.plus(counts)
