"""Owns what is kept of a recorded activity, and its two shapes: a domain value and the data of a record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from runtime.clock import format_time, parse_time, plausible
from runtime.errors import Failure, invalid

# Per number: the largest value that is believed, and the decimals that are kept. What is beyond is a sensor's mistake;
# the recording around it is still good. The schema of the domain `activity` has the same limits.
_NUMBERS: Final[Mapping[str, tuple[float, int]]] = {
    "duration_seconds": (1e9, 3),
    "distance_meters": (1e9, 2),
    "elevation_gain_meters": (1e6, 1),
    "avg_heart_rate": (300, 1),
    "max_heart_rate": (300, 1),
    "avg_power_watts": (5000, 1),
    "max_power_watts": (5000, 1),
    "calories": (1e6, 1),
    "avg_cadence": (300, 1),
}
_TEXTS: Final[Mapping[str, int]] = {"sport": 64, "sub_sport": 64, "device": 200}
UNNAMED_SPORT: Final = "generic"  # what the FIT profile calls it
# As the reason of a violation: the file is whole, and holds no activity but something else that devices note or plan.
NO_ACTIVITY: Final = "NO_ACTIVITY"


class Kind(StrEnum):
    """The formats of recordings."""

    FIT = "fit"
    GPX = "gpx"
    TCX = "tcx"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a recording says of its activity; None where it does not say."""

    kind: Kind
    sport: str
    """In the words of the FIT profile (running, cycling), generic where the recording names none."""
    sub_sport: str | None = None
    """In the words of the FIT profile (trail, indoor_cycling)."""
    start_time: datetime
    """Aware, in UTC."""
    duration_seconds: float | None = None
    """While the timer ran: without pauses."""
    distance_meters: float | None = None
    elevation_gain_meters: float | None = None
    avg_heart_rate: float | None = None
    """Beats a minute."""
    max_heart_rate: float | None = None
    avg_power_watts: float | None = None
    """Over the whole time, coasting included."""
    max_power_watts: float | None = None
    calories: float | None = None
    """Kilocalories."""
    avg_cadence: float | None = None
    """Revolutions, or steps of one foot, a minute; without the time of standing still."""
    device: str | None = None
    """Manufacturer and product, or the name of the program that wrote the file."""


def believed(summary: Summary, now: datetime) -> Summary:
    """`summary` with its numbers rounded and its texts cleaned, without the values that cannot be.

    Raises Failure(FIELD_INVALID) when the start is before 2000 or more than a day ahead of `now`.
    """
    try:
        start = plausible("start_time", summary.start_time, now)
    except Failure:
        raise invalid("file", "starts at a time that cannot be") from None
    changes: dict[str, Any] = {"start_time": start}
    for name, (largest, decimals) in _NUMBERS.items():
        changes[name] = _number(getattr(summary, name), largest, decimals)
    for name, length in _TEXTS.items():
        changes[name] = _text(getattr(summary, name), length)
    changes["sport"] = changes["sport"] or UNNAMED_SPORT
    return dataclasses.replace(summary, **changes)


def record_of(summary: Summary) -> dict[str, Any]:
    """The data of a record of domain `activity`: only what is known. Pairs with summary_of."""
    known = {name: value for name, value in vars(summary).items() if value is not None}
    return {**known, "kind": summary.kind.value, "start_time": format_time(summary.start_time)}


def summary_of(data: Mapping[str, Any]) -> Summary:
    """The summary that `record_of` was given."""
    start = parse_time("start_time", data["start_time"])
    return Summary(**{**data, "kind": Kind(data["kind"]), "start_time": start})


def _number(value: float | None, largest: float, decimals: int) -> float | None:
    if value is None or not math.isfinite(value) or not 0 <= value <= largest:
        return None
    return round(float(value), decimals)


def _text(value: str | None, length: int) -> str | None:
    """One line without control characters and lone surrogates, which neither PostgreSQL nor a screen takes."""
    if value is None:
        return None
    printable = "".join(character if character.isprintable() else " " for character in value)
    return " ".join(printable.split())[:length].strip() or None
