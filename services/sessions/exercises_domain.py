"""Owns exercise sessions: what counts as one, and how many points it is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from runtime import paging
from runtime.call import IdempotencyKey, Principal
from runtime.clock import format_time, parse_time, plausible
from runtime.errors import Failure, Reason, invalid
from runtime.ids import parse_uuid
from services.sessions.changes_domain import decide, typed_change
from services.sessions.records_domain import Key, Prepared, identical, place_of

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore


DOMAIN: Final = "exercise"
CATALOGUE: Final = Path(__file__).parent / "exercises.json"
_CREATE: Final = "exercise_sessions.create"


@dataclass(frozen=True, kw_only=True)
class ExerciseSession:
    """A stored session."""

    id: str
    exercise_id: str
    start_time: datetime
    duration: int
    """Seconds."""
    repetition_count: int
    is_completed: bool
    points_awarded: int


@dataclass(frozen=True, kw_only=True)
class Page:
    """A stretch of a list."""

    sessions: list[ExerciseSession]
    next_token: str
    """Empty on the last page."""


class Catalogue:
    """How hard each exercise is, in met points."""

    def __init__(self, file: Path = CATALOGUE) -> None:
        content = json.loads(file.read_bytes())
        self._met_points: dict[str, int] = content["met_points"]
        self._default: int = content["default_met_points"]

    def met_points(self, exercise_id: str) -> int:
        """The exercise's met points; for one that is not in the catalogue the default."""
        return self._met_points.get(exercise_id, self._default)


def points(met_points: int, *, duration: int, repetitions: int, completed: bool) -> int:
    """0 when not completed, else max(1, floor(m * (d + 20 r) / 50)), in integers; `duration` in seconds.

    Source: API.md, sessions, POST /sessions: bird-dog (10) for 60 s with 10 repetitions is 52.
    """
    return max(1, met_points * (duration + 20 * repetitions) // 50) if completed else 0


class ExerciseSessions:
    """Exercise sessions as typed views on records of domain `exercise`."""

    def __init__(self, store: RecordStore, domains: Domains, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._domains = domains
        self._now = now

    async def create(
        self, caller: Principal, id: str, data: dict[str, Any], key: IdempotencyKey | None
    ) -> ExerciseSession:
        """Stores a session under `id`, or under a new id when it is empty.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, IDEMPOTENCY_CONFLICT when the id is taken by other content.
        """
        now = self._now()
        key_of = Key(DOMAIN, parse_uuid("id", id) if id else str(uuid4()))
        change = typed_change(key_of, self._domains.prepare(DOMAIN, data, now), now=now)
        async with self._store.feed(caller, [change.key], rpc=_CREATE, idempotency=key, now=now) as feed:
            if feed.answer is not None:
                return _session(feed.answer["id"], feed.answer["data"])
            known = feed.known.get(change.key)
            if known is not None and not identical(known.data, change.data):
                raise Failure(Reason.IDEMPOTENCY_CONFLICT, "id: another session has this id")
            await feed.write(decide(feed, [change]), now)
            await feed.keep(_CREATE, key, {"id": change.key.id, "data": change.data}, now)
        return _session(change.key.id, change.data or {})

    async def get(self, caller: Principal, id: str) -> ExerciseSession:
        """One of the caller's sessions. Raises Failure: FIELD_INVALID, FORBIDDEN, SESSION_NOT_FOUND."""
        canonical = parse_uuid("id", id)
        record = await self._store.record(caller.user_id, Key(DOMAIN, canonical))
        if record is not None and not record.deleted:
            return _session(canonical, record.data)
        if record is None and await self._store.exercise_exists(canonical):
            raise Failure(Reason.FORBIDDEN, "This session belongs to somebody else.")
        raise Failure(Reason.SESSION_NOT_FOUND)

    async def page(self, caller: Principal, exercise_id: str, size: int, token: str) -> Page:
        """The caller's sessions, newest first; empty `exercise_id`: of all exercises. Raises Failure(FIELD_INVALID)."""
        limit, before = paging.page_size(size), paging.decode_token(token)
        if "\x00" in exercise_id:
            raise invalid("exercise_id", "holds text that cannot be stored", "INVALID_FORMAT")
        found = await self._store.page(
            caller.user_id, DOMAIN, limit=limit + 1, exercise_id=exercise_id or None, before=before
        )
        return Page(
            sessions=[_session(record.key.id, record.data) for record in found[:limit]],
            next_token=paging.next_token(found, limit, place_of),
        )


def prepare(data: dict[str, Any], now: datetime, catalogue: Catalogue) -> Prepared:
    """What is stored of checked data: its time in one spelling, its points awarded here and by nobody else."""
    start = plausible("start_time", parse_time("start_time", data["start_time"]), now)
    awarded = points(
        catalogue.met_points(data["exercise_id"]),
        duration=int(data["duration"]),
        repetitions=int(data["repetition_count"]),
        completed=data["is_completed"],
    )
    numbers = {name: int(data[name]) for name in ("duration", "repetition_count")}
    return Prepared({**data, **numbers, "start_time": format_time(start), "points_awarded": awarded}, start)


def _session(id: str, data: dict[str, Any]) -> ExerciseSession:
    fields = {name: data[name] for name in ("exercise_id", "duration", "repetition_count", "is_completed")}
    return ExerciseSession(
        id=id,
        start_time=parse_time("start_time", data["start_time"]),
        points_awarded=data["points_awarded"],
        **fields,
    )
