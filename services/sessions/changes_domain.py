"""Owns what becomes of pushed changes: receipts, conflicts and writes, decided on what is known, in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid4

from runtime.errors import Failure, Reason
from services.sessions.policies_domain import Policy, Side, Winner, judge
from services.sessions.records_domain import Key, Known, Prepared, Write, identical
from services.sessions.schemas import encode

NO_VERSION = 0


class Change(NamedTuple):
    """What a phone did to a record, checked."""

    key: Key
    data: dict[str, Any] | None
    """None: deleted."""
    raw: str
    """`data` as JSON text; {} when deleted."""
    base_version: int | None
    """The version that was changed; 0: none, the record is new to the phone. None: the phone doesn't say."""
    change_time: datetime
    """By the phone's clock, corrected, and not later than now."""
    happen_time: datetime | None
    group: str
    """Changes of one group apply together or not at all; empty: it stands alone."""


class Refused(NamedTuple):
    """A change that could not be read, in its place in the push."""

    key: Key
    """What it named, as far as it can be told."""
    group: str
    failure: Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Two versions that met, and what was decided."""

    id: UUID
    key: Key
    policy: Policy
    server_version: int
    client_version: int
    server: Side
    client: Side
    winner: Winner


class Notice(NamedTuple):
    """What a phone is told of a conflict of its own."""

    conflict_id: UUID
    server_version: int
    client_version: int
    server_data: dict[str, Any] | None
    """None: deleted."""
    is_open: bool
    """Whether somebody has to decide."""


class Receipt(NamedTuple):
    """What became of one change."""

    key: Key
    status: str
    """APPLIED, DUPLICATE, CONFLICT or REJECTED."""
    version: int
    """The record's version now; 0 when there is none."""
    failure: Failure | None = None
    notice: Notice | None = None


def typed_change(key: Key, prepared: Prepared, *, now: datetime) -> Change:
    """A record handed over by a call that knows no versions: it meets what is there under the policy.

    Raises Failure(FIELD_INVALID) for data that cannot be stored.
    """
    return Change(
        key=key,
        data=prepared.data,
        raw=encode(prepared.data),
        base_version=None,
        change_time=now,
        happen_time=prepared.happen_time,
        group="",
    )


class Decided(NamedTuple):
    """What a push comes to."""

    receipts: list[Receipt]
    """One per item, in the order of the request."""
    writes: list[Write]
    conflicts: list[Conflict]
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """How many new records of some kind may be stored."""

    day_of: Mapping[Key, date]
    """The day that each of them would count for."""
    left: Mapping[date, int]
    """What the days still have room for."""


class _State:
    """What is known while a push is decided; a group that fails is undone by going back to a copy."""

    def __init__(self, known: Mapping[Key, Known], position: int, allowance: Allowance | None) -> None:
        self.known = dict(known)
        self.position = position
        self.allowance = allowance
        self.left = Counter(allowance.left) if allowance else Counter()
        self.writes: dict[Key, Write] = {}
        self.conflicts: list[Conflict] = []

    def admits(self, key: Key) -> bool:
        """Whether there is room for a new record, which takes it."""
        day = self.allowance.day_of.get(key) if self.allowance else None
        if day is None:
            return True
        self.left[day] -= 1
        return self.left[day] >= 0

    def copy(self) -> _State:
        other = _State(self.known, self.position, self.allowance)
        other.left = self.left.copy()
        other.writes, other.conflicts = dict(self.writes), list(self.conflicts)
        return other


class Standing(Protocol):
    """What a push is decided on: the caller's feed, locked."""

    @property
    def known(self) -> Mapping[Key, Known]:
        """What is stored under the keys of the push."""

    @property
    def position(self) -> int:
        """The last position of the feed."""

    def policy_of(self, domain: str) -> Policy:
        """The tenant's policy for a domain of the push."""


def decide(
    feed: Standing,
    items: Sequence[Change | Refused],
    *,
    policy: Policy | None = None,
    allowance: Allowance | None = None,
    new_id: Callable[[], UUID] = uuid4,
) -> Decided:
    """Decides a push, change by change; a group is decided where its first change stands.

    `policy` stands in for the tenant's policies where a contract leaves no choice.
    `allowance` bounds the new records of a kind; those beyond it are REJECTED with TIER_LIMIT.
    """
    state = _State(feed.known, feed.position, allowance)
    policy_of = feed.policy_of if policy is None else lambda _: policy
    receipts: dict[int, Receipt] = {}
    for members in _groups(items):
        if len(members) == 1:
            receipts[members[0]] = _receipt(state, items[members[0]], policy_of, new_id)
            continue
        attempt = state.copy()
        decided = {index: _receipt(attempt, items[index], policy_of, new_id) for index in members}
        if any(one.status in ("CONFLICT", "REJECTED") for one in decided.values()):
            decided = {index: _dropped(state, one) for index, one in decided.items()}
            # What met did meet, and its losing side is worth keeping, whatever became of the group.
            lost = {one.notice.conflict_id for one in decided.values() if one.notice}
            state.conflicts += [conflict for conflict in attempt.conflicts if conflict.id in lost]
        else:
            state = attempt
        receipts.update(decided)
    return Decided(
        [receipts[index] for index in range(len(items))], list(state.writes.values()), state.conflicts, state.position
    )


def _groups(items: Sequence[Change | Refused]) -> Iterable[list[int]]:
    members: dict[object, list[int]] = {}
    for index, item in enumerate(items):
        members.setdefault(item.group or index, []).append(index)
    return members.values()


def _receipt(
    state: _State,
    item: Change | Refused,
    policy_of: Callable[[str], Policy],
    new_id: Callable[[], UUID],
) -> Receipt:
    key = item.key
    known = state.known.get(key)
    version = known.version if known else NO_VERSION
    if isinstance(item, Refused):
        return Receipt(key=key, status="REJECTED", version=version, failure=item.failure)
    if known is None:
        if item.data is None:
            return Receipt(key=key, status="DUPLICATE", version=NO_VERSION)  # what is not there is deleted already
        if not state.admits(key):
            return Receipt(key=key, status="REJECTED", version=NO_VERSION, failure=Failure(Reason.TIER_LIMIT))
        return _apply(state, item, item.data)
    held = None if known.deleted else known.data
    if identical(held, item.data):
        return Receipt(key=key, status="DUPLICATE", version=version)
    if item.base_version == version:
        return _apply(state, item, item.data)
    return _meet(state, item, known, policy_of(key.domain), new_id)


def _meet(state: _State, item: Change, known: Known, policy: Policy, new_id: Callable[[], UUID]) -> Receipt:
    server = Side(data=None if known.deleted else known.data, time=known.change_time)
    client = Side(data=item.data, time=item.change_time)
    verdict = judge(policy, server=server, client=client)
    if verdict.winner is Winner.MERGED:
        try:
            encode(verdict.data or {})
        except Failure as failure:  # together they are more than a record may be
            return Receipt(key=item.key, status="REJECTED", version=known.version, failure=failure.within("data"))
    conflict = Conflict(
        id=new_id(),
        key=item.key,
        policy=policy,
        server_version=known.version,
        client_version=item.base_version or NO_VERSION,
        server=server,
        client=client,
        winner=verdict.winner,
    )
    state.conflicts.append(conflict)
    notice = Notice(
        conflict_id=conflict.id,
        server_version=conflict.server_version,
        client_version=conflict.client_version,
        server_data=server.data,
        is_open=verdict.winner is Winner.NONE,
    )
    if verdict.winner in (Winner.SERVER, Winner.NONE):
        return Receipt(key=item.key, status="CONFLICT", version=known.version, notice=notice)
    if identical(verdict.data, server.data):
        return Receipt(key=item.key, status="DUPLICATE", version=known.version, notice=notice)
    applied = _apply(state, item, verdict.data)
    return Receipt(key=item.key, status="APPLIED", version=applied.version, notice=notice)


def _apply(state: _State, item: Change, data: dict[str, Any] | None) -> Receipt:
    before = state.known.get(item.key)
    version = before.version + 1 if before else 1
    state.position += 1
    raw = item.raw if data is item.data else encode(data or {})
    state.known[item.key] = Known(version, data is None, data or {}, item.change_time)
    state.writes[item.key] = Write(
        item.key, version, state.position, data is None, raw, item.happen_time, item.change_time
    )
    return Receipt(key=item.key, status="APPLIED", version=version)


def _dropped(state: _State, receipt: Receipt) -> Receipt:
    """The receipt of a member of a group that was not applied: its own refusal, or that of the others."""
    known = state.known.get(receipt.key)
    version = known.version if known else NO_VERSION
    # A conflict with what the group itself had written is none with the server.
    met = receipt.notice is not None and receipt.notice.server_version == version
    if receipt.failure is not None or (receipt.status == "CONFLICT" and met):
        return receipt._replace(version=version)
    return Receipt(key=receipt.key, status="REJECTED", version=version, failure=Failure(Reason.ATOMIC_GROUP))
