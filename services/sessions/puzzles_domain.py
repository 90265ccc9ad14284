"""Owns puzzle sessions: what counts as one, and how many a free account may add in a day."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

from runtime.call import IdempotencyKey, Principal
from runtime.clock import canonical_time, parse_moment, parse_time, plausible
from runtime.errors import Failure, Reason, invalid, kept, missing, recalled
from services.sessions import paging
from services.sessions.batches import capture, named
from services.sessions.records_domain import Draft, Key, Outcome, Record, Resolution, merge
from services.sessions.schemas import Schemas, encode

if TYPE_CHECKING:
    from services.sessions.records_store import Feed, RecordStore


DOMAIN: Final = "puzzle"
FREE_TIER: Final = "free"
_UPLOAD: Final = "puzzle_sessions.upload"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A session as a phone sent it, before it is checked."""

    id: Any
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """An item that was not stored, and why."""

    id: str
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What became of a batch."""

    synced: int
    conflicts: int
    rejected: list[Rejected]


@dataclass(frozen=True, kw_only=True)
class Page:
    """A stretch of a list, and how long the list is."""

    records: list[Record]
    total: int
    next_token: str
    """Empty on the last page."""


class PuzzleSessions:
    """Puzzle sessions as typed views on records of domain `puzzle`; the app's word wins."""

    def __init__(self, store: RecordStore, schemas: Schemas, *, free_per_day: int, now: Callable[[], datetime]) -> None:
        """`free_per_day`: new sessions that a free account may store per UTC day of their timestamp."""
        self._store = store
        self._schemas = schemas
        self._free_per_day = free_per_day
        self._now = now

    async def upload(
        self, caller: Principal, submitted: Sequence[Submitted | Failure], key: IdempotencyKey | None
    ) -> Uploaded:
        """Stores each session under its id. Raises the Failure of the first bad item when no item was good."""
        now = self._now()
        drafts = named(capture(lambda item: self._draft(item, now), submitted), "sessions")
        good = [draft for draft in drafts if isinstance(draft, Draft)]
        bad = [
            Rejected(id=_shown_id(item), failure=draft)
            for item, draft in zip(submitted, drafts, strict=True)
            if isinstance(draft, Failure)
        ]
        if not good:
            raise bad[0].failure
        keys = [draft.key for draft in good]
        async with self._store.feed(caller.user_id, keys, rpc=_UPLOAD, idempotency=key, now=now) as feed:
            if feed.answer is not None:
                # What was refused then is refused again, though the clock may have made it good since.
                known = [Rejected(id=one["id"], failure=recalled(one)) for one in feed.answer["rejected"]]
                return _replayed(feed.answer, good, known)
            refused = await self._over_limit(caller, feed, good)
            admitted = [draft for draft in good if draft.key not in refused]
            merged = merge(feed.known, feed.position, admitted, Resolution.CLIENT_WINS)
            await feed.write(merged.writes, merged.position, now)
            counts = Counter(outcome is Outcome.CONFLICT for outcome in merged.outcomes)
            answer = {
                "synced": counts[False],
                "conflicts": counts[True],
                "refused": [one.id for one in refused],
                "rejected": [{"id": one.id, **kept(one.failure)} for one in bad],
            }
            await feed.keep(_UPLOAD, key, answer, now)
        return _replayed(answer, good, bad)

    async def page(self, caller: Principal, since: str, size: int, token: str) -> Page:
        """The caller's sessions from `since` (ISO 8601, or empty) on, newest first. Raises Failure(FIELD_INVALID)."""
        limit, before = paging.page_size(size), paging.decode_token(token)
        start = parse_moment("since", since) if since else None
        found = await self._store.page(caller.user_id, DOMAIN, limit=limit + 1, since=start, before=before)
        total = await self._store.count(caller.user_id, DOMAIN)
        return Page(records=found[:limit], total=total, next_token=paging.next_token(found, limit))

    def _draft(self, item: Submitted, now: datetime) -> Draft:
        id = _parse_id(item.id)
        data = {"mistake_count": 0, "is_completed": False, "puzzle_id": 0, "declutter_text": "", **item.data}
        if isinstance(data.get("difficulty"), str):
            data["difficulty"] = data["difficulty"].strip().lower()
        self._schemas.check(DOMAIN, data)
        # To a schema 900.0 is an integer, and some phones write every number so.
        data = {name: int(value) if isinstance(value, float) else value for name, value in data.items()}
        played = plausible("timestamp", parse_time("timestamp", data["timestamp"]), now)
        data["timestamp"] = canonical_time(data["timestamp"], played)
        return Draft(key=Key(DOMAIN, id), data=data, raw=encode(data), happen_time=played)

    async def _over_limit(self, caller: Principal, feed: Feed, drafts: Iterable[Draft]) -> dict[Key, None]:
        """The keys that a free account has no room for; known ones never count."""
        if caller.tier != FREE_TIER:
            return {}
        new = {draft.key: day(draft) for draft in drafts if draft.key not in feed.known}
        if not new:
            return {}
        taken = Counter(await feed.count_by_day(DOMAIN, sorted(set(new.values()))))
        refused: dict[Key, None] = {}
        for key, on in new.items():
            taken[on] += 1
            if taken[on] > self._free_per_day:
                refused[key] = None
        return refused


def day(draft: Draft) -> date:
    """The UTC day on which a session was played."""
    if draft.happen_time is None:
        raise ValueError("a puzzle session has a time")
    return draft.happen_time.astimezone(UTC).date()


def _replayed(answer: dict[str, Any], good: Sequence[Draft], bad: Sequence[Rejected]) -> Uploaded:
    """The upload that was answered with `answer`. Raises Failure(TIER_LIMIT) when nothing but extra items was sent."""
    limit = Failure(Reason.TIER_LIMIT, "The free tier stores no more new puzzle sessions for this day.")
    refused = [Rejected(id=id, failure=limit) for id in answer["refused"]]
    if not bad and len(refused) == len({draft.key for draft in good}):
        raise limit
    return Uploaded(synced=answer["synced"], conflicts=answer["conflicts"], rejected=[*bad, *refused])


def _parse_id(id: Any) -> str:
    if id is None or id == "":
        raise missing("id")
    if not isinstance(id, str):
        raise invalid("id", "must be a string", "INVALID_TYPE")
    if not _ID.fullmatch(id):
        raise invalid("id", "must be a UUID, or 1 to 64 letters, digits, hyphens and underscores", "INVALID_FORMAT")
    return id  # as it was sent: the phone looks for it under this very spelling


def _shown_id(item: Submitted | Failure) -> str:
    id = item.id if isinstance(item, Submitted) else None
    if not isinstance(id, str):
        return ""
    return id[:100] if id.isascii() else id[:100].encode("utf-8", "replace").decode()
