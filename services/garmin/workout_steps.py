"""Owns how a training plan becomes a workout in Garmin's own JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from runtime.errors import invalid

# Changes when the same plan comes out as another workout, so that what was sent before is sent again.
_EDITION: Final = 1
MAX_STEPS: Final = 500
_MAX_DEPTH: Final = 2
_MAX_NAME_CHARS: Final = 80
_MAX_DESCRIPTION_CHARS: Final = 900
_TAG: Final = "satchel:"

# Numbers and keys as Garmin's own editor writes them.
_SPORTS: Final = {
    "running": (1, "running"),
    "cycling": (2, "cycling"),
    "other": (3, "other"),
    "swimming": (4, "swimming"),
    "strength_training": (5, "strength_training"),
    "cardio_training": (6, "cardio_training"),
    "walking": (11, "walking"),
    "hiking": (12, "hiking"),
}
_SPORT_NAMES: Final = {
    "": "other",
    "run": "running",
    "trail_running": "running",
    "bike": "cycling",
    "biking": "cycling",
    "ride": "cycling",
    "swim": "swimming",
    "strength": "strength_training",
    "cardio": "cardio_training",
    "walk": "walking",
    "hike": "hiking",
}
_STEPS: Final = {
    "warmup": (1, "warmup"),
    "cooldown": (2, "cooldown"),
    "interval": (3, "interval"),
    "active": (3, "interval"),
    "recovery": (4, "recovery"),
    "rest": (5, "rest"),
}
_REPEAT: Final = (6, "repeat")
_LAP_BUTTON: Final = (1, "lap.button")
# Per field of a step that says when it ends.
_ENDS: Final = {
    "duration_seconds": (2, "time"),
    "distance_meters": (3, "distance"),
    "calories": (4, "calories"),
}
_ITERATIONS: Final = (7, "iterations")
_NO_TARGET: Final = (1, "no.target")


def _same(value: float) -> float:
    return value


def _speed_of_pace(seconds_per_km: float) -> float:
    return round(1000 / seconds_per_km, 4)


# Per target: Garmin's number and key, and how its bounds are said there.
_TARGETS: Final[Mapping[str, tuple[int, str, Callable[[float], float]]]] = {
    "power": (2, "power.zone", _same),
    "cadence": (3, "cadence", _same),
    "heart_rate": (4, "heart.rate.zone", _same),
    "speed": (5, "speed.zone", _same),
    "pace": (6, "pace.zone", _speed_of_pace),
}
_ZONED: Final = {"power", "heart_rate"}


def digest_of(plan_id: str, data: Mapping[str, Any]) -> str:
    """Another one as soon as the plan would become another workout, or is meant for another day."""
    named = [_EDITION, plan_id, data]
    return hashlib.sha256(orjson.dumps(named, option=orjson.OPT_SORT_KEYS)).hexdigest()


def workout_of(plan_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The workout, with a tag in its description that it is found by.

    Raises Failure(FIELD_INVALID) naming what Garmin has no word for.
    """
    sport = _sport(data.get("sport", ""))
    counter = _Counter()
    steps = _list(data.get("steps", []), "steps", counter, depth=0)
    if not steps:
        raise invalid("steps", "must have at least one step")
    return {
        "workoutName": str(data.get("name", ""))[:_MAX_NAME_CHARS] or "Workout",
        "description": tag_of(plan_id, digest_of(plan_id, data)),
        "sportType": sport,
        "estimatedDurationInSecs": round(_seconds(steps)),
        "workoutSegments": [{"segmentOrder": 1, "sportType": sport, "workoutSteps": steps}],
    }


def tag_of(plan_id: str, digest: str) -> str:
    """What tells our workouts from the user's own, and which plan in which version one was made of."""
    return f"{_TAG}{plan_id}:{digest[:16]}"


def plan_and_digest_of(description: str) -> tuple[str, str] | None:
    """What `tag_of` was given, the digest cut short; None: not one of ours."""
    last = description.split()[-1] if description.split() else ""
    plan_id, _, digest = last.removeprefix(_TAG).partition(":")
    return (plan_id, digest) if last.startswith(_TAG) and digest else None


class _Counter:
    """Numbers the steps of a workout through all its repeats."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        if self.last > MAX_STEPS:
            raise invalid("steps", f"must be at most {MAX_STEPS}", "TOO_LONG")
        return self.last


def _list(steps: Any, place: str, counter: _Counter, *, depth: int) -> list[dict[str, Any]]:
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise invalid(place, "must be a list", "INVALID_TYPE")
    return [_step(step, f"{place}[{index}]", counter, depth) for index, step in enumerate(steps)]


def _step(step: Any, place: str, counter: _Counter, depth: int) -> dict[str, Any]:
    if not isinstance(step, Mapping):
        raise invalid(place, "must be an object", "INVALID_TYPE")
    kind = str(step.get("type", "")).lower().replace("-", "").replace("_", "").replace(" ", "")
    if kind == "repeat":
        return _repeat(step, place, counter, depth)
    if kind not in _STEPS:
        raise invalid(f"{place}.type", f"{str(step.get('type', ''))[:32]!r} is no kind of step that Garmin knows")
    number, key = _STEPS[kind]
    condition, value = _end(step, place)
    made: dict[str, Any] = {
        "type": "ExecutableStepDTO",
        "stepOrder": counter.next(),
        "stepType": {"stepTypeId": number, "stepTypeKey": key},
        "endCondition": {"conditionTypeId": condition[0], "conditionTypeKey": condition[1]},
        "endConditionValue": value,
        **_target(step.get("target"), f"{place}.target"),
    }
    notes = step.get("notes")
    if isinstance(notes, str) and notes:
        made["description"] = notes[:_MAX_DESCRIPTION_CHARS]
    return made


def _repeat(step: Mapping[str, Any], place: str, counter: _Counter, depth: int) -> dict[str, Any]:
    if depth >= _MAX_DEPTH:
        raise invalid(place, "is a repeat inside too many others")
    count = _number(step.get("count"), f"{place}.count")
    if count != int(count) or not 1 <= count <= 99:
        raise invalid(f"{place}.count", "must be 1 to 99")
    order = counter.next()
    steps = _list(step.get("steps"), f"{place}.steps", counter, depth=depth + 1)
    if not steps:
        raise invalid(f"{place}.steps", "must have at least one step")
    return {
        "type": "RepeatGroupDTO",
        "stepOrder": order,
        "stepType": {"stepTypeId": _REPEAT[0], "stepTypeKey": _REPEAT[1]},
        "numberOfIterations": int(count),
        "smartRepeat": False,
        "endCondition": {"conditionTypeId": _ITERATIONS[0], "conditionTypeKey": _ITERATIONS[1]},
        "endConditionValue": float(count),
        "workoutSteps": steps,
    }


def _end(step: Mapping[str, Any], place: str) -> tuple[tuple[int, str], float | None]:
    """When the step ends; one that does not say ends at the press of the lap button."""
    for name, condition in _ENDS.items():
        if step.get(name) is not None:
            value = _number(step[name], f"{place}.{name}")
            if value <= 0:
                raise invalid(f"{place}.{name}", "must be greater than 0")
            return condition, value
    return _LAP_BUTTON, None


def _target(target: Any, place: str) -> dict[str, Any]:
    if target is None or target in ("", "open", "none", {}):
        return {"targetType": {"workoutTargetTypeId": _NO_TARGET[0], "workoutTargetTypeKey": _NO_TARGET[1]}}
    if not isinstance(target, Mapping) or len(target) != 1:
        raise invalid(place, "must name one target, such as heart_rate")
    (name, bounds), *_ = target.items()
    if name not in _TARGETS:
        raise invalid(f"{place}.{str(name)[:32]}", "is no target that Garmin knows")
    number, key, said = _TARGETS[name]
    made: dict[str, Any] = {"targetType": {"workoutTargetTypeId": number, "workoutTargetTypeKey": key}}
    if not isinstance(bounds, Mapping):
        raise invalid(f"{place}.{name}", "must have min and max")
    if "zone" in bounds and name in _ZONED:
        zone = _number(bounds["zone"], f"{place}.{name}.zone")
        if zone != int(zone) or not 1 <= zone <= 7:
            raise invalid(f"{place}.{name}.zone", "must be 1 to 7")
        return {**made, "zoneNumber": int(zone)}
    low, high = (_number(bounds.get(one), f"{place}.{name}.{one}") for one in ("min", "max"))
    if not 0 < low <= high:
        raise invalid(f"{place}.{name}", "must have a min above 0 and a max that is no less")
    # A pace's smaller number is the higher speed.
    one, two = sorted((said(low), said(high)))
    return {**made, "targetValueOne": one, "targetValueTwo": two}


def _sport(name: Any) -> dict[str, Any]:
    key = str(name).strip().lower().replace(" ", "_").replace("-", "_")
    number, known = _SPORTS[_SPORT_NAMES.get(key, key if key in _SPORTS else "other")]
    return {"sportTypeId": number, "sportTypeKey": known}


def _seconds(steps: Sequence[Mapping[str, Any]]) -> float:
    """How long all of them take, as far as they say; of steps as Garmin has them."""
    total = 0.0
    for step in steps:
        if "workoutSteps" in step:
            total += _seconds(step["workoutSteps"]) * step["numberOfIterations"]
        elif step["endCondition"]["conditionTypeId"] == _ENDS["duration_seconds"][0]:
            total += step["endConditionValue"]
    return total


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid(place, "must be a number", "INVALID_TYPE")
    return float(value)
