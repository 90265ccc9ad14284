"""Owns what a FIT file says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fitdecode import FIT_FRAME_DATA, FIT_FRAME_DEFINITION, CrcCheck, ErrorHandling, FitReader
from fitdecode.exceptions import FitCRCError, FitEOFError, FitHeaderError
from fitdecode.profile import FIELD_NUM_TIMESTAMP
from fitdecode.types import BaseType, FieldDefinition

from runtime.errors import Failure, invalid
from services.uploads.activity_skim import skim
from services.uploads.activity_summary import UNNAMED_SPORT, Kind, Summary
from services.uploads.activity_track import Mean, Position, Track, checked_position, first

# FIT counts seconds from here; smaller numbers than the other are seconds since the device was switched on.
_EPOCH: Final = datetime(1989, 12, 31, tzinfo=UTC)
_EARLIEST_SECONDS: Final = 0x10000000
_DEGREES_PER_SEMICIRCLE: Final = 180 / 2**31

_WHOLE: Final = {"file_id", "session", "developer_data_id", "field_description"}
_RECORD: Final = {"position_lat", "position_long", "altitude", "enhanced_altitude", "heart_rate", "power", "cadence"}
# Of a summary, the fields of records that it is made of where no session tells: time, position, altitude and so on.
_FROM_RECORDS: Final[Mapping[str, Set[int]]] = {
    "duration_seconds": {FIELD_NUM_TIMESTAMP},
    "distance_meters": {0, 1},
    "elevation_gain_meters": {2, 78},
    "avg_heart_rate": {3},
    "max_heart_rate": {3},
    "avg_power_watts": {7},
    "max_power_watts": {7},
    "avg_cadence": {4},
}
_SKIPPED: Final = BaseType(name="skipped", identifier=0x0D, fmt="s", parse=lambda _: None)

Message = Mapping[str, Any]
"""Fields of the profile by name, without those that say nothing."""


def read_fit(data: bytes) -> Summary:
    """The summary of a FIT activity; what its device has summed up itself goes before what its records add up to.

    Duration is `total_timer_time`. Sessions of several sports are one activity of sport `multisport`. Developer fields
    are left out: what they mean is known to their makers alone.

    Raises Failure(FIELD_INVALID) for a damaged file, and for one that is no activity.
    """
    skimmed = skim(data)
    if skimmed is not None:
        file_id, sessions, _ = _messages(skimmed.data, CrcCheck.DISABLED)
        _check_type(file_id)
        if any(_time(one.get("start_time")) for one in sessions):
            summary = _summary(file_id, sessions, Track())
            missing = {name for name in _FROM_RECORDS if getattr(summary, name) is None}
            if not any(_FROM_RECORDS[name] & skimmed.record_fields for name in missing):
                return summary
    file_id, sessions, track = _messages(data, CrcCheck.RAISE)
    _check_type(file_id)
    return _summary(file_id, sessions, track)


def _check_type(file_id: Message) -> None:
    if file_id.get("type") != "activity":
        raise invalid("file", "is FIT, but no activity", "INVALID_FORMAT")


def _messages(data: bytes, check: CrcCheck) -> tuple[Message, Sequence[Message], Track]:
    file_id: Message = {}
    sessions: list[Message] = []
    track = Track()
    try:
        # Strict only with checksums: devices in the field break other rules, such as the sizes of fields.
        with FitReader(data, processor=None, check_crc=check, error_handling=ErrorHandling.IGNORE) as reader:
            for frame in reader:
                if frame.frame_type == FIT_FRAME_DEFINITION:
                    _skip_unread(frame)
                elif frame.frame_type != FIT_FRAME_DATA:
                    continue
                elif frame.name == "record":
                    _add(track, _fields(frame))
                elif frame.name == "session":
                    sessions.append(_fields(frame))
                elif frame.name == "file_id" and not file_id:
                    file_id = _fields(frame)
    except (Failure, MemoryError):
        raise
    except FitCRCError:
        raise invalid("file", "is damaged: its checksum does not match", "INVALID_FORMAT") from None
    except (FitEOFError, FitHeaderError):
        raise invalid("file", "is damaged: it ends too early, or something follows its end", "INVALID_FORMAT") from None
    except Exception:  # whatever a decoder trips over in a stranger's bytes
        raise invalid("file", "is damaged: it is no readable FIT", "INVALID_FORMAT") from None
    return file_id, sessions, track


def _summary(file_id: Message, sessions: Sequence[Message], track: Track) -> Summary:
    starts = [start for start in (_time(one.get("start_time")) for one in sessions) if start]
    start = min(starts, default=track.start)
    if start is None:
        raise invalid("file", "does not say when the activity started", "INVALID_FORMAT")
    sport, sub_sport = _sport(sessions)
    return Summary(
        kind=Kind.FIT,
        sport=sport,
        sub_sport=sub_sport,
        start_time=start,
        duration_seconds=first(_total(sessions, "total_timer_time"), track.duration),
        distance_meters=first(_total(sessions, "total_distance"), track.distance),
        elevation_gain_meters=first(_total(sessions, "total_ascent"), track.climb.gain),
        avg_heart_rate=first(_mean(sessions, "avg_heart_rate"), track.heart_rate.value),
        max_heart_rate=first(_largest(sessions, "max_heart_rate"), track.heart_rate.maximum),
        avg_power_watts=first(_mean(sessions, "avg_power"), track.power.value),
        max_power_watts=first(_largest(sessions, "max_power"), track.power.maximum),
        calories=_total(sessions, "total_calories"),
        avg_cadence=first(_mean(sessions, "avg_cadence"), track.cadence.value),
        device=_device(file_id),
    )


def _skip_unread(definition: Any) -> None:
    """Makes one field of neighbours that nothing here reads. A field costs the decoder ten microseconds, and watches
    write dozens of them a second: a day of recording would take half a minute.
    """
    if definition.name in _WHOLE:
        return
    wanted = _RECORD if definition.name == "record" else frozenset()
    merged: list[Any] = []
    for one in definition.all_field_defs:
        if not one.is_dev and (one.name in wanted or one.def_num == FIELD_NUM_TIMESTAMP):
            merged.append(one)
        elif merged and merged[-1].base_type is _SKIPPED:
            merged[-1].size += one.size
        else:
            merged.append(FieldDefinition(None, -1, _SKIPPED, one.size))
    definition.field_defs, definition.dev_field_defs = merged, []


def _fields(frame: Any) -> dict[str, Any]:
    fields = {}
    for one in frame.fields:
        # A field that is expanded from another has no definition of its own.
        if one.value is None or one.field is None or (one.field_def is not None and one.field_def.is_dev):
            continue
        fields[(one.parent_field or one.field).name] = one.value
    return fields


def _add(track: Track, record: Message) -> None:
    track.point(
        time=_time(record.get("timestamp")),
        position=_position(record),
        altitude=first(_number(record.get("enhanced_altitude")), _number(record.get("altitude"))),
        heart_rate=_number(record.get("heart_rate")),
        power=_number(record.get("power")),
        cadence=_number(record.get("cadence")),
    )


def _sport(sessions: Sequence[Message]) -> tuple[str, str | None]:
    # A sport that the profile does not know yet is a number.
    pairs = {
        (sport if isinstance(sport, str) else UNNAMED_SPORT, sub_sport if isinstance(sub_sport, str) else UNNAMED_SPORT)
        for sport, sub_sport in ((one.get("sport"), one.get("sub_sport")) for one in sessions)
    }
    sports = {sport for sport, _ in pairs} or {UNNAMED_SPORT}
    sub_sports = {sub_sport for _, sub_sport in pairs} - {UNNAMED_SPORT}
    if len(sports) > 1:
        return "multisport", None
    return sports.pop(), sub_sports.pop() if len(sub_sports) == 1 else None


def _device(file_id: Message) -> str | None:
    """Such as "garmin edge 820": the maker's own name for the product, or else that of the profile."""
    product = file_id.get("product_name") or file_id.get("product")
    names = [str(one) for one in (file_id.get("manufacturer"), product) if isinstance(one, str | int)]
    return " ".join(names).replace("_", " ") or None


def _position(record: Message) -> Position | None:
    latitude, longitude = _number(record.get("position_lat")), _number(record.get("position_long"))
    if latitude is None or longitude is None:
        return None
    return checked_position(latitude * _DEGREES_PER_SEMICIRCLE, longitude * _DEGREES_PER_SEMICIRCLE)


def _time(value: Any) -> datetime | None:
    seconds = _number(value)
    if seconds is None or not _EARLIEST_SECONDS <= seconds < 2**32:
        return None
    return _EPOCH + timedelta(seconds=seconds)


def _number(value: Any) -> float | None:
    """`value`, when the file's own definition of the field did not make a list, text or infinity of it."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _numbers(sessions: Sequence[Message], name: str) -> list[float]:
    return [number for number in (_number(one.get(name)) for one in sessions) if number is not None]


def _total(sessions: Sequence[Message], name: str) -> float | None:
    numbers = _numbers(sessions, name)
    return sum(numbers) if numbers else None


def _largest(sessions: Sequence[Message], name: str) -> float | None:
    return max(_numbers(sessions, name), default=None)


def _mean(sessions: Sequence[Message], name: str) -> float | None:
    """Each session with the weight of its time."""
    mean = Mean()
    for session in sessions:
        mean.add(_number(session.get(name)), max(_number(session.get("total_timer_time")) or 0.0, 1e-3))
    return mean.value
