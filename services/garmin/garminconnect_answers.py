"""Owns what Garmin's JSON means here. It is nobody's contract: what is missing is left out, what is new is ignored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

from services.garmin.connect import Activity, DailyMetric, GarminAnswer, Workout

# What a user can change of an activity at Garmin, or Garmin after it has looked again.
_MARKED: Final = ("activityName", "description", "startTimeGMT", "duration", "distance", "averageHR", "calories")
# Field of a day's summary, what it is called here, and its unit.
_SUMMARY: Final = (
    ("totalSteps", "steps", "count"),
    ("minHeartRate", "heart_rate_min", "bpm"),
    ("maxHeartRate", "heart_rate_max", "bpm"),
    ("restingHeartRate", "heart_rate_resting", "bpm"),
    ("averageStressLevel", "stress", "score"),
    ("bodyBatteryHighestValue", "body_battery_max", "score"),
    ("bodyBatteryLowestValue", "body_battery_min", "score"),
)
_DETAILS: Final[Mapping[str, Mapping[str, str]]] = {
    "steps": {"goal": "dailyStepGoal", "distance_meters": "totalDistanceMeters"},
    "stress": {"max": "maxStressLevel"},
    "sleep": {
        "deep_seconds": "deepSleepSeconds",
        "light_seconds": "lightSleepSeconds",
        "rem_seconds": "remSleepSeconds",
        "awake_seconds": "awakeSleepSeconds",
    },
    "hrv": {"weekly_average": "weeklyAvg"},
    "weight": {"bmi": "bmi", "body_fat_percent": "bodyFat"},
}
_GRAMS: Final = 1000.0
# Minutes; no place on earth is further from UTC.
MAX_OFFSET: Final = 14 * 60


def activities(answer: Any) -> list[Activity]:
    """A page of activities; one without an id is none. Raises GarminAnswer when it is no list."""
    if not isinstance(answer, list):
        raise GarminAnswer("activities are not a list")
    return [_activity(one) for one in answer if isinstance(one, dict) and _id(one) is not None]


def workouts(answer: Any) -> list[Workout]:
    """A page of workouts; one without an id is none. Raises GarminAnswer when it is no list."""
    if not isinstance(answer, list):
        raise GarminAnswer("workouts are not a list")
    return [
        Workout(id=str(one["workoutId"]), description=str(one.get("description") or ""))
        for one in answer
        if isinstance(one, dict) and isinstance(one.get("workoutId"), int)
    ]


def zone_offset_of(summary: Any, sleep: Any) -> int | None:
    """Minutes that the user's clock was ahead of UTC on a day, as two spellings of one moment tell; None: they do not.

    Devices round to whole quarters of an hour, as time zones do.
    """
    said = _object(summary)
    local, gmt = (_time(said.get(f"wellnessStartTime{one}")) for one in ("Local", "Gmt"))
    if local is None or gmt is None:
        said = _object(_object(sleep).get("dailySleepDTO"))
        local, gmt = (_moment(said.get(f"sleepStartTimestamp{one}")) for one in ("Local", "GMT"))
    if local is None or gmt is None:
        return None
    minutes = round((local - gmt).total_seconds() / 900) * 15
    return minutes if abs(minutes) <= MAX_OFFSET else None


def of_summary(day: date, answer: Any) -> Iterator[DailyMetric]:
    """What a day's summary says. Raises GarminAnswer."""
    said = _object(answer)
    for field, type, unit in _SUMMARY:
        value = _number(said.get(field))
        # Garmin spells "not measured" of stress and body battery as a negative number.
        if value is not None and value >= 0:
            yield _metric(day, type, value, unit, None, said)


def of_sleep(day: date, answer: Any) -> Iterator[DailyMetric]:
    """The night before a day. Raises GarminAnswer."""
    said = _object(_object(answer).get("dailySleepDTO"))
    value = _number(said.get("sleepTimeSeconds"))
    if value:
        yield _metric(day, "sleep", value, "s", _moment(said.get("sleepStartTimestampGMT")), said)


def of_hrv(day: date, answer: Any) -> Iterator[DailyMetric]:
    """Heart rate variability of the night before a day. Raises GarminAnswer."""
    said = _object(_object(answer).get("hrvSummary"))
    value = _number(said.get("lastNightAvg"))
    if value is not None:
        yield _metric(day, "hrv", value, "ms", None, said)


def of_weight(day: date, answer: Any) -> Iterator[DailyMetric]:
    """Every time somebody stood on a scale. Raises GarminAnswer."""
    said = _object(answer).get("dateWeightList")
    for one in said if isinstance(said, list) else []:
        weighed = _object(one)
        value = _number(weighed.get("weight"))
        if value:
            yield _metric(day, "weight", value / _GRAMS, "kg", _moment(weighed.get("timestampGMT")), weighed)


def _activity(one: Mapping[str, Any]) -> Activity:
    kind = one.get("activityType")
    type = str(kind.get("typeKey") or "") if isinstance(kind, dict) else ""
    marked = json.dumps([*(one.get(name) for name in _MARKED), type], sort_keys=True)
    return Activity(
        id=str(_id(one)),
        name=str(one.get("activityName") or ""),
        type=type,
        start_time=_time(one.get("startTimeGMT")),
        marker=hashlib.sha256(marked.encode()).hexdigest()[:32],
    )


def _id(one: Mapping[str, Any]) -> int | None:
    id = one.get("activityId")
    return id if isinstance(id, int) and not isinstance(id, bool) and id > 0 else None


def _metric(
    day: date, type: str, value: float, unit: str, timestamp: datetime | None, said: Mapping[str, Any]
) -> DailyMetric:
    details = {name: _number(said.get(field)) for name, field in _DETAILS.get(type, {}).items()}
    return DailyMetric(
        type=type,
        value=value,
        unit=unit,
        calendar_date=day,
        timestamp=timestamp,
        detail={name: number for name, number in details.items() if number is not None},
    )


def _object(answer: Any) -> Mapping[str, Any]:
    if answer is None:
        return {}
    if not isinstance(answer, dict):
        raise GarminAnswer("not an object")
    return answer


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _time(text: Any) -> datetime | None:
    """2026-01-31 10:00:00, in UTC."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None


def _moment(milliseconds: Any) -> datetime | None:
    value = _number(milliseconds)
    try:
        return None if value is None else datetime.fromtimestamp(value / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
