"""Owns puzzle sessions: what counts as one, and how many an account of each tier may add in a day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final

from runtime import paging
from runtime.call import IdempotencyKey, Principal
from runtime.clock import canonical_time, parse_moment, parse_time, plausible
from runtime.errors import Failure, Reason, kept, recalled
from runtime.ids import parse_id, shown_id
from runtime.tiers import FREE_TIER, Tiers
from services.sessions.batches import capture, named
from services.sessions.changes_domain import Allowance, Change, decide, typed_change
from services.sessions.records_domain import Key, Prepared, Record, place_of

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.pushes_store import Feed
    from services.sessions.records_store import RecordStore


DOMAIN: Final = "puzzle"
_UPLOAD: Final = "puzzle_sessions.upload"
UNSAID: Final = {"declutter_text": "", "mistake_count": 0, "is_completed": False, "puzzle_id": 0}


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

    def __init__(
        self, store: RecordStore, domains: Domains, puzzle_room: PuzzleRoom, *, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._domains = domains
        self._puzzle_room = puzzle_room
        self._now = now

    async def upload(
        self, caller: Principal, submitted: Sequence[Submitted | Failure], key: IdempotencyKey | None
    ) -> Uploaded:
        """Stores each session under its id. Raises the Failure of the first bad item when no item was good."""
        now = self._now()
        changes = named(capture(lambda item: self._change(item, now), submitted), "sessions")
        good = [change for change in changes if isinstance(change, Change)]
        bad = [
            Rejected(id=shown_id(item.id if isinstance(item, Submitted) else None), failure=change)
            for item, change in zip(submitted, changes, strict=True)
            if isinstance(change, Failure)
        ]
        if not good:
            raise bad[0].failure
        keys = [change.key for change in good]
        async with self._store.feed(caller, keys, rpc=_UPLOAD, idempotency=key, now=now) as feed:
            if feed.answer is not None:
                # What was refused then is refused again, though the clock may have made it good since.
                known = [Rejected(id=one["id"], failure=recalled(one)) for one in feed.answer["rejected"]]
                return _replayed(feed.answer, good, known, tier=caller.tier)
            decided = decide(feed, good, allowance=await self._puzzle_room.allowance(caller, feed, good))
            await feed.write(decided, now)
            counts = Counter(receipt.status for receipt in decided.receipts)
            answer = {
                "synced": counts["APPLIED"] + counts["DUPLICATE"],
                "conflicts": counts["CONFLICT"],
                "refused": list(dict.fromkeys(one.key.id for one in decided.receipts if one.failure is not None)),
                "rejected": [{"id": one.id, **kept(one.failure)} for one in bad],
            }
            await feed.keep(_UPLOAD, key, answer, now)
        return _replayed(answer, good, bad, tier=caller.tier)

    async def page(self, caller: Principal, since: str, size: int, token: str) -> Page:
        """The caller's sessions from `since` (ISO 8601, or empty) on, newest first. Raises Failure(FIELD_INVALID)."""
        limit, before = paging.page_size(size), paging.decode_token(token)
        start = parse_moment("since", since) if since else None
        found = await self._store.page(caller.user_id, DOMAIN, limit=limit + 1, since=start, before=before)
        total = await self._store.count(caller.user_id, DOMAIN)
        return Page(records=found[:limit], total=total, next_token=paging.next_token(found, limit, place_of))

    def _change(self, item: Submitted, now: datetime) -> Change:
        key = Key(DOMAIN, parse_id("id", item.id))
        return typed_change(key, self._domains.prepare(DOMAIN, item.data, now), now=now)


class PuzzleRoom:
    """How many new puzzle sessions an account may store in a day."""

    def __init__(self, tiers: Tiers, *, free_per_day: int | None) -> None:
        """`free_per_day` takes the place of what `tiers` say of the free one; None: they are right."""
        self._tiers = tiers
        self._free_per_day = free_per_day

    async def allowance(self, caller: Principal, feed: Feed, changes: Iterable[Change]) -> Allowance | None:
        """What the caller's tier has room for of a push's puzzle sessions; None: all. Known ones never count."""
        per_day = self._per_day(caller.tier)
        if per_day is None:
            return None
        sessions = (one for one in changes if one.key.domain == DOMAIN and one.data is not None)
        day_of = {one.key: day(one) for one in sessions if one.key not in feed.known}
        if not day_of:
            return None
        taken = await feed.count_by_day(DOMAIN, sorted(set(day_of.values())))
        return Allowance(day_of=day_of, left={on: per_day - taken.get(on, 0) for on in day_of.values()})

    def _per_day(self, tier: str) -> int | None:
        if tier == FREE_TIER and self._free_per_day is not None:
            return self._free_per_day
        return self._tiers.named(tier).puzzles_per_day


def prepare(data: dict[str, Any], now: datetime) -> Prepared:
    """What is stored of checked data: its time in one spelling, whole numbers whole, and what was not said said."""
    played = plausible("timestamp", parse_time("timestamp", data["timestamp"]), now)
    # To a schema 900.0 is an integer, and some phones write every number so.
    whole = {name: int(value) if isinstance(value, float) else value for name, value in data.items()}
    return Prepared({**UNSAID, **whole, "timestamp": canonical_time(data["timestamp"], played)}, played)


def lower_difficulty(data: dict[str, Any]) -> dict[str, Any]:
    """The data with the difficulty in the case that is stored."""
    difficulty = data.get("difficulty")
    return {**data, "difficulty": difficulty.strip().lower()} if isinstance(difficulty, str) else data


def day(change: Change) -> date:
    """The UTC day on which a session was played."""
    if change.happen_time is None:
        raise ValueError("a puzzle session has a time")
    return change.happen_time.astimezone(UTC).date()


def _replayed(answer: dict[str, Any], good: Sequence[Change], bad: Sequence[Rejected], *, tier: str) -> Uploaded:
    """The upload that was answered with `answer`. Raises Failure(TIER_LIMIT) when nothing but extra items was sent."""
    limit = Failure(Reason.TIER_LIMIT, f"The {tier} tier stores no more new puzzle sessions for this day.")
    refused = [Rejected(id=id, failure=limit) for id in answer["refused"]]
    if not bad and len(refused) == len({change.key for change in good}):
        raise limit
    return Uploaded(synced=answer["synced"], conflicts=answer["conflicts"], rejected=[*bad, *refused])
