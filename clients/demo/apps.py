"""Owns what the simulated apps make, and by which door they hand it over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

Thing = dict[str, Any]
"""What an app has made, as it is sent."""

# Pages, orders and tickets are few, so that phones of one account change the same one while they do not see each other.
PAGES: Final = 4
WORK_ORDERS: Final = "work_order"
_MOODS: Final = ("calm", "curious", "tired", "proud")
_TEXTS: Final = ("It rained.", "Long ride, good legs.", "Solved the hard one.", "Rest day.", "Wind from the west.")
_ORDERS: Final = ("Replace the pump", "Inspect the roof", "Read the meter", "Fix the gate")
_STATES: Final = ("open", "in_progress", "done")
_LEVELS: Final = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of what was handed over."""

    stored: int = 0
    conflicts: int = 0
    rejected: int = 0
    versions: Mapping[str, int] = field(default_factory=dict)
    """Of records by their ids, as they are now."""


@dataclass(frozen=True, kw_only=True)
class App:
    """An app: what it makes, and how it is handed over."""

    name: str
    make: Callable[[Random, datetime], Thing]
    """Given the phone's own idea of the time."""
    path: str
    field: str
    """Of the request: the list that holds the things."""
    outcome: Callable[[Mapping[str, Any]], Outcome]
    """Of the answer."""


def _id(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _page(random: Random, now: datetime) -> Thing:
    data = {"title": f"{now:%A}", "text": random.choice(_TEXTS), "mood": random.choice(_MOODS)}
    return {
        "domain": "journal",
        "id": f"page-{random.randrange(PAGES) + 1}",
        "operation": "UPSERT",
        "data": data,
        "client_time": _time(now),
    }


def _work_order(random: Random, now: datetime) -> Thing:
    number = random.randrange(PAGES)
    data = {"title": _ORDERS[number], "status": random.choice(_STATES), "assignee": f"crew {random.randrange(3) + 1}"}
    return {
        "domain": WORK_ORDERS,
        "id": f"order-{number + 1}",
        "operation": "UPSERT",
        "data": data,
        "client_time": _time(now),
    }


def _ride(random: Random, now: datetime) -> Thing:
    seconds = random.randrange(600, 5400)
    return {
        "client_session_id": _id(random),
        "device_type": random.choice(("bike", "rower", "treadmill")),
        "started_at": _time(now - timedelta(seconds=seconds)),
        "ended_at": _time(now),
        "total_duration_seconds": seconds,
        "total_distance_meters": seconds * random.randrange(3, 9),
        "avg_heart_rate": random.randrange(110, 165),
        "xp_earned": seconds // 60,
    }


def _puzzle(random: Random, now: datetime) -> Thing:
    # Free accounts may store one a day, so each is of a day of its own.
    return {
        "id": _id(random),
        "timestamp": _time(now - timedelta(days=random.randrange(1, 9_000))),
        "duration": random.randrange(60, 1800),
        "difficulty": random.choice(_LEVELS),
        "declutter_text": random.choice(_TEXTS),
        "mistake_count": random.randrange(6),
        "is_completed": random.random() < 0.9,
        "puzzle_id": random.randrange(500),
    }


def _pushed(answer: Mapping[str, Any]) -> Outcome:
    receipts: Sequence[Mapping[str, Any]] = answer["receipts"]
    rejected = sum(one["status"] == "REJECTED" for one in receipts)
    conflicts = sum("conflict" in one or one["status"] == "CONFLICT" for one in receipts)
    versions = {one["id"]: one["version"] for one in receipts if one["version"]}
    return Outcome(stored=len(receipts) - rejected, conflicts=conflicts, rejected=rejected, versions=versions)


def _uploaded(answer: Mapping[str, Any]) -> Outcome:
    return Outcome(stored=answer["created"] + answer["duplicates"], rejected=answer["failed"])


def _synced(answer: Mapping[str, Any]) -> Outcome:
    return Outcome(stored=answer["synced"], conflicts=answer["conflicts"], rejected=len(answer["rejected"]))


JOURNAL: Final = App(name="journal", make=_page, path="/api/v1/sync/push", field="changes", outcome=_pushed)
FIELD_WORK: Final = App(name="field work", make=_work_order, path="/api/v1/sync/push", field="changes", outcome=_pushed)
BIKE: Final = App(name="bike", make=_ride, path="/sessions/batch_upload", field="sessions", outcome=_uploaded)
PUZZLE: Final = App(name="puzzle", make=_puzzle, path="/v1/sessions", field="sessions", outcome=_synced)
APPS: Final = (JOURNAL, BIKE, PUZZLE, FIELD_WORK)


def spoiled(thing: Thing) -> Thing:
    """The same from a build with a bug: something is there that cannot be."""
    if "data" in thing:
        return {**thing, "domain": "jurnal"}
    broken = "total_duration_seconds" if "total_duration_seconds" in thing else "duration"
    return {**thing, broken: -1}
