"""Owns what becomes of a handed-over record: pure decisions on what is known, in the order the phone sent them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A record as a phone hands it over, checked and ready to be stored."""

    key: Key
    data: dict[str, Any]
    raw: str
    """`data` as JSON text."""
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


class Write(NamedTuple):
    """What is stored under a key after a batch."""

    key: Key
    version: int
    position: int
    deleted: bool
    raw: str
    happen_time: datetime | None


class Resolution(Enum):
    """What happens to a record that is known already with other content."""

    CLIENT_WINS = "client_wins"
    SERVER_WINS = "server_wins"
    FIRST_WINS = "first_wins"
    """As SERVER_WINS, and to the phone it is a duplicate: a recording never changes after the fact."""


class Outcome(StrEnum):
    """What became of one item."""

    CREATED = "created"
    UPDATED = "updated"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class Merged(NamedTuple):
    """What a batch comes to."""

    outcomes: list[Outcome]
    """One per draft, in their order."""
    writes: list[Write]
    """At most one per key: what was sent twice is stored once, at its last position."""
    position: int
    """The last position of the feed."""


def merge(known: Mapping[Key, Known], position: int, drafts: Iterable[Draft], resolution: Resolution) -> Merged:
    """Decides a batch on top of `known` and the feed's last `position`; each accepted change takes the next one."""
    outcomes: list[Outcome] = []
    writes: dict[Key, Write] = {}
    state = dict(known)
    for draft in drafts:
        outcome = _decide(state.get(draft.key), draft, resolution)
        outcomes.append(outcome)
        if outcome in (Outcome.CREATED, Outcome.UPDATED):
            position += 1
            before = state.get(draft.key)
            version = before.version + 1 if before else 1
            state[draft.key] = Known(version, False, draft.data)
            writes[draft.key] = Write(draft.key, version, position, False, draft.raw, draft.happen_time)
    return Merged(outcomes, list(writes.values()), position)


def _decide(known: Known | None, draft: Draft, resolution: Resolution) -> Outcome:
    if known is None:
        return Outcome.CREATED
    if resolution is Resolution.FIRST_WINS or (not known.deleted and known.data == draft.data):
        return Outcome.DUPLICATE
    return Outcome.UPDATED if resolution is Resolution.CLIENT_WINS else Outcome.CONFLICT
