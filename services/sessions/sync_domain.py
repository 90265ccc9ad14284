"""Owns sync: changes of any domain in, the feed out, and what is made of conflicts afterwards."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from runtime.call import IdempotencyKey, Principal
from runtime.clock import EARLIEST, parse_time
from runtime.errors import Failure, Reason, invalid, kept, missing, recalled
from runtime.ids import parse_id, shown_id
from runtime.outcomes import Tally
from services.sessions.changes_domain import Change, Decided, Notice, Receipt, Refused, decide
from services.sessions.records_domain import Key
from services.sessions.schemas import encode

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.feed_store import Entry, FeedStore
    from services.sessions.pushes_store import Feed
    from services.sessions.puzzles_domain import PuzzleRoom
    from services.sessions.records_store import RecordStore

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
MAX_GROUP_CHARS: Final = 64
MAX_VERSION: Final = 2**31 - 1
_PUSH: Final = "sync.push"
_CHECK_BYTES: Final = 6
_FILTER_BYTES: Final = 4
# Position and filter, and for a reader who has not come past it, the floor.
_STATED_BYTES: Final = (8 + _FILTER_BYTES, 8 + _FILTER_BYTES + 8)


class Place(NamedTuple):
    """Where somebody stands who reads a feed."""

    position: int
    """All up to here was read."""
    floor: int
    """Deletions up to here were forgotten before the reading began, from nothing: none of them can be missed."""


class Pushed(NamedTuple):
    """A change as a phone sent it, before it is checked; each field whatever it was."""

    domain: Any
    id: Any
    base_version: Any
    operation: Any
    data: Any
    client_time: Any
    """ISO 8601 text, or None."""
    group: Any


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A push that was checked as far as that goes without knowing what is stored."""

    items: Sequence[Change | Refused]
    sent: Set[tuple[Key, str]]
    """The contents that would be stored just as the phone sent them."""
    time: datetime
    """When it was read."""
    key: IdempotencyKey | None
    tally: Tally
    """What it carries."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a push."""

    receipts: Sequence[Receipt]
    server_time: datetime
    position_before: int = -1
    """Where the feed stood; -1 for a push that was answered before."""
    position_after: int = -1
    as_sent: bool = False
    """Whether all that was stored is what the phone had sent, so that it need not be sent back."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A stretch of the feed."""

    entries: Sequence[Entry]
    position: int
    """Where the next page begins."""
    floor: int
    """As of the cursor that it goes on from."""
    next_cursor: str
    has_more: bool
    domain: str = ""
    """What it is about; empty: several domains, or all."""


class Sync:
    """Push and pull of one user's records."""

    def __init__(
        self,
        store: RecordStore,
        feeds: FeedStore,
        domains: Domains,
        puzzle_room: PuzzleRoom,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._feeds = feeds
        self._domains = domains
        self._puzzle_room = puzzle_room
        self._now = now

    def clock_offset(self, client_now: str) -> timedelta:
        """What a phone whose clock shows `client_now` (ISO 8601) adds to have ours; nothing when it doesn't say.

        Raises Failure(FIELD_INVALID).
        """
        return self._now() - parse_time("x-client-time", client_now) if client_now else timedelta(0)

    async def push(
        self,
        caller: Principal,
        pushed: Sequence[Pushed | Failure],
        key: IdempotencyKey | None,
        *,
        group: Any = "",
        clock_offset: timedelta = timedelta(0),
    ) -> Answer:
        """Decides each change and stores what is accepted.

        `group` is that of a change that could not even be read; `clock_offset` is how far the phone's clock lags ours.
        """
        (answer,) = await self.store(caller, [self.read(pushed, key, group, clock_offset)])
        if isinstance(answer, Failure):
            raise answer
        return answer

    def read(
        self, pushed: Sequence[Pushed | Failure], key: IdempotencyKey | None, group: Any, clock_offset: timedelta
    ) -> Reading:
        """What a push asks for, each change checked by itself: the part that needs no database."""
        now = self._now()
        items = [self._item(one, f"changes[{index}]", group, now, clock_offset) for index, one in enumerate(pushed)]
        sent = {
            (item.key, item.raw)
            for item, one in zip(items, pushed, strict=True)
            if isinstance(item, Change) and isinstance(one, Pushed) and (item.data is None or item.data == one.data)
        }
        return Reading(items=items, sent=sent, time=now, key=key, tally=self.tally_of(pushed))

    def tally_of(self, pushed: Sequence[Pushed | Failure]) -> Tally:
        """What a push carries, whatever will become of it."""
        first = next((one.domain for one in pushed if isinstance(one, Pushed)), "")
        return Tally(self._named(first), len(pushed))

    def tally(self, answer: Answer) -> Tally:
        """What became of a push."""
        conflicts = rejected = 0
        for receipt in answer.receipts:
            conflicts += receipt.notice is not None
            rejected += receipt.status == "REJECTED"
        first = answer.receipts[0].key.domain if answer.receipts else ""
        return Tally(self._named(first), len(answer.receipts), conflicts, rejected)

    async def store(self, caller: Principal, readings: Sequence[Reading]) -> list[Answer | Failure]:
        """Decides pushes that were read, in their order, and stores what is accepted of all of them at once.

        No two of them may bear the same idempotency key. Each gets its answer, or the IDEMPOTENCY_CONFLICT of its key.
        """
        now = readings[-1].time
        keys = [item.key for one in readings for item in one.items if item.key.id]  # the versions of refused ones, too
        calls = [one.key for one in readings]
        async with self._store.feed_of_calls(caller, keys, rpc=_PUSH, calls=calls, now=now) as feed:
            answers = [_answered(feed, one, now) for one in readings]
            fresh = [one for one, answer in zip(readings, answers, strict=True) if answer is None]
            items = [item for place, one in enumerate(fresh) for item in _apart(one.items, place)]
            changes = [item for item in items if isinstance(item, Change)]
            allowance = await self._puzzle_room.allowance(caller, feed, changes)
            decided = decide(feed, items, allowance=allowance)
            await feed.write(decided, now)
            made = list(_split(decided, fresh, feed.position))
            for one, answer in zip(fresh, made, strict=True):
                if one.key is not None:
                    await feed.keep(_PUSH, one.key, [_kept(receipt) for receipt in answer.receipts], now)
        rest = iter(made)
        return [next(rest) if answer is None else answer for answer in answers]

    async def stand(self, caller: Principal, cursor: str | None, domains: Sequence[str]) -> Place:
        """Where a feed is to be read on from: behind `cursor`; None: behind all there is now.

        Raises Failure: FIELD_INVALID, RESYNC_REQUIRED.
        """
        last, horizon = await self._feeds.standing(caller.user_id)
        if cursor is None:
            return Place(last, 0)
        place = decode_cursor(cursor, caller.user_id, domains)
        _check_known(place, last, horizon)
        return place

    async def pull(self, caller: Principal, cursor: str, domains: Sequence[str], limit: int) -> Page:
        """What changed since `cursor`. Raises Failure: FIELD_INVALID, RESYNC_REQUIRED."""
        if not 0 <= limit <= MAX_LIMIT:
            raise invalid("limit", f"must be 1 to {MAX_LIMIT}")
        size = limit or DEFAULT_LIMIT
        wanted = self.domains_of(domains)
        return await self.page(caller, decode_cursor(cursor, caller.user_id, wanted), wanted, size)

    async def page(self, caller: Principal, place: Place, domains: Sequence[str], size: int) -> Page:
        """What changed behind `place`. Raises Failure(RESYNC_REQUIRED) when that cannot be told any more."""
        found = await self._feeds.after(caller.user_id, place.position, domains, size)
        _check_known(place, found.position, found.horizon)
        floor = place.floor if place.position else found.horizon
        return Page(
            entries=found.entries,
            position=found.position,
            floor=floor,
            next_cursor=encode_cursor(Place(found.position, floor), caller.user_id, domains),
            has_more=found.has_more,
            domain=domains[0] if len(domains) == 1 else "",
        )

    def versions(self) -> Mapping[str, int]:
        """The version of each domain's schema."""
        return self._domains.versions

    def domains_of(self, said: Sequence[str]) -> Sequence[str]:
        """The domains that a filter names, by commas or one by one, in order. Raises Failure(FIELD_INVALID)."""
        wanted = sorted({domain for text in said for domain in text.split(",") if domain})
        for domain in wanted:
            if domain not in self._domains:
                raise invalid("domains", "names a domain that is not known here", "UNKNOWN_VALUE")
        return wanted

    def _named(self, domain: Any) -> str:
        """The domain if it is one: whoever counts must not be made to count any word."""
        return domain if isinstance(domain, str) and domain in self._domains else ""

    def _item(
        self, one: Pushed | Failure, place: str, group: Any, now: datetime, offset: timedelta
    ) -> Change | Refused:
        if isinstance(one, Failure):
            return Refused(key=Key("", ""), group=group if isinstance(group, str) else "", failure=one.within(place))
        try:
            return self._change(one, now, offset)
        except Failure as failure:
            key = Key(shown_id(one.domain), shown_id(one.id))
            group = one.group if isinstance(one.group, str) else ""
            return Refused(key=key, group=group, failure=failure.within(place))

    def _change(self, one: Pushed, now: datetime, offset: timedelta) -> Change:
        key = Key(self._domains.known(one.domain), parse_id("id", one.id))
        self._domains.check_writable(key.domain)
        if one.base_version is not None and type(one.base_version) is not int:
            raise invalid("base_version", "must be a whole number", "INVALID_TYPE")
        if one.base_version is not None and not 0 <= one.base_version <= MAX_VERSION:
            raise invalid("base_version", f"must be 0 to {MAX_VERSION}")
        deleted = _deleted(one.operation)
        change_time = _change_time(one.client_time, now, offset)
        group = _group(one.group)
        if deleted:
            return Change(
                key=key,
                data=None,
                raw="{}",
                base_version=one.base_version,
                change_time=change_time,
                happen_time=None,
                group=group,
            )
        if one.data is None:
            raise missing("data")
        if not isinstance(one.data, dict):
            raise invalid("data", "must be an object", "INVALID_TYPE")
        try:
            prepared = self._domains.prepare(key.domain, one.data, now)
            raw = encode(prepared.data)
        except Failure as failure:
            raise failure.within("data") from None
        return Change(
            key=key,
            data=prepared.data,
            raw=raw,
            base_version=one.base_version,
            change_time=change_time,
            happen_time=prepared.happen_time,
            group=group,
        )


def encode_cursor(place: Place, user_id: UUID, domains: Sequence[str]) -> str:
    """A cursor behind `place` in the user's feed in these domains, opaque to phones. Pairs with decode_cursor."""
    # Past its floor a reader is like any other, and is missing what is swept away from then on.
    floor = place.floor.to_bytes(8) if place.floor > place.position else b""
    stated = place.position.to_bytes(8) + _filter(domains) + floor
    return base64.urlsafe_b64encode(stated + _check(stated, user_id)).decode().rstrip("=")


def decode_cursor(cursor: str, user_id: UUID, domains: Sequence[str]) -> Place:
    """Where a cursor stands; at 0 for none.

    A cursor of the whole feed goes with every filter. One of a filtered feed goes with that filter only: what it has
    skipped would be missing for ever.

    Raises Failure(FIELD_INVALID) for one of another user or another filter, and for anything else.
    """
    if not cursor:
        return Place(0, 0)
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    stated, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    position, wanted, floor = stated[:8], stated[8 : 8 + _FILTER_BYTES], stated[8 + _FILTER_BYTES :]
    if len(stated) not in _STATED_BYTES or check != _check(stated, user_id) or position[0] > 127:
        raise invalid("cursor", "is not one that this feed gave", "INVALID_FORMAT")
    if wanted not in (_filter(()), _filter(domains)):
        raise invalid("cursor", "is of another choice of domains; start those without one", "INVALID_FORMAT")
    return Place(int.from_bytes(position), int.from_bytes(floor))


def _filter(domains: Sequence[str]) -> bytes:
    return hashlib.sha256(",".join(domains).encode()).digest()[:_FILTER_BYTES] if domains else bytes(_FILTER_BYTES)


def _check(stated: bytes, user_id: UUID) -> bytes:
    return hashlib.sha256(user_id.bytes + stated).digest()[:_CHECK_BYTES]


def _answered(feed: Feed, reading: Reading, now: datetime) -> Answer | Failure | None:
    """What the push was answered before, or that its key was; None: it is new."""
    try:
        before = feed.answer_to(reading.key)
    except Failure as failure:
        return failure
    return None if before is None else Answer(receipts=[_recalled(one) for one in before], server_time=now)


def _apart(items: Sequence[Change | Refused], place: int) -> Iterable[Change | Refused]:
    """The items of one push among several: a group that another one names the same is not the same."""
    return (item._replace(group=f"{place} {item.group}") if item.group else item for item in items)


def _split(decided: Decided, readings: Sequence[Reading], position: int) -> Iterator[Answer]:
    """The answer of each push of those that were decided together; each applied change has taken a position."""
    sent = {one for reading in readings for one in reading.sent}
    as_sent = all((write.key, write.raw) in sent for write in decided.writes)
    rest = iter(decided.receipts)
    for reading in readings:
        receipts = list(islice(rest, len(reading.items)))
        before, position = position, position + sum(receipt.status == "APPLIED" for receipt in receipts)
        yield Answer(
            receipts=receipts,
            server_time=reading.time,
            position_before=before,
            position_after=position,
            as_sent=as_sent,
        )


def _check_known(place: Place, last: int, horizon: int) -> None:
    # Deletions may have been forgotten since, or the server was set back to a backup.
    if place.position and not (horizon <= max(place) and place.position <= last):
        raise Failure(Reason.RESYNC_REQUIRED)


def _deleted(operation: Any) -> bool:
    if operation is None or operation == "":
        raise missing("operation")
    name = operation.upper() if isinstance(operation, str) else ""
    if name not in ("UPSERT", "DELETE"):
        raise invalid("operation", "must be UPSERT or DELETE", "UNKNOWN_VALUE")
    return name == "DELETE"


def _change_time(text: Any, now: datetime, offset: timedelta) -> datetime:
    """The phone's time on our clock, never later than now: a clock ahead must not win for ever."""
    if text is None or text == "":
        return now
    if not isinstance(text, str):
        raise invalid("client_time", "must be an ISO 8601 time", "INVALID_TYPE")
    try:
        return max(EARLIEST, min(now, parse_time("client_time", text) + offset))
    except OverflowError:  # a clock that is thousands of years off
        return now if offset > timedelta(0) else EARLIEST


def _group(group: Any) -> str:
    if group is None:
        return ""
    if not isinstance(group, str) or len(group) > MAX_GROUP_CHARS:
        raise invalid("atomic_group", f"must be a string of at most {MAX_GROUP_CHARS} characters", "INVALID_TYPE")
    return group


def _kept(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON, for a push that is repeated. Pairs with _recalled."""
    notice = receipt.notice
    return {
        "key": list(receipt.key),
        "status": receipt.status,
        "version": receipt.version,
        "failure": None if receipt.failure is None else kept(receipt.failure),
        "notice": None if notice is None else {**notice._asdict(), "conflict_id": str(notice.conflict_id)},
    }


def _recalled(said: dict[str, Any]) -> Receipt:
    return Receipt(
        key=Key(*said["key"]),
        status=said["status"],
        version=said["version"],
        failure=None if said["failure"] is None else recalled(said["failure"]),
        notice=None if said["notice"] is None else _notice(said["notice"]),
    )


def _notice(said: dict[str, Any]) -> Notice:
    return Notice(**{**said, "conflict_id": UUID(said["conflict_id"])})
