"""Owns a virtual phone: its copy of the records, its unsent and unacknowledged changes, its clock and its cursor.

It behaves as an app developer is told to: what was changed offline is kept until it is acknowledged, a batch keeps its
idempotency key however often it is sent, a conflict is settled by taking the server's side, and the feed is applied
page by page.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from zlib import crc32

from tests.convergence.doors import AskedDoor, Door, Lost, Misused, Page, TooLate
from tests.convergence.ledger import Case, Entry, Ledger, Push, Reading, now
from tests.convergence.line import Line
from tests.convergence.model import Change, Data, Key, Receipt


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A phone's clock."""

    skew: int
    """How far it is ahead, in microseconds."""
    grain: int
    """What it counts in, in microseconds."""
    is_told: bool
    """Whether the phone lets the server know what it shows."""

    def read(self) -> int:
        return (now() + self.skew) // self.grain * self.grain


class Copy(NamedTuple):
    """What the phone knows that the server holds."""

    version: int
    data: Data


NOTHING = Copy(0, None)


class Device:
    """One phone of a user."""

    def __init__(
        self, name: str, *, door: Door, line: Line, clock: Clock, ledger: Ledger, on_call: Callable[[], None]
    ) -> None:
        """`on_call` is told of every call, just before it is sent."""
        self.name = name
        self.door = door
        self.line = line
        self.known: dict[Key, Copy] = {}
        self.drafts: list[Change] = []
        """Not yet in a batch."""
        self.outbox: list[Push] = []
        """Batches without receipts."""
        self.settled: list[Push] = []
        self.is_offline = False
        self._clock = clock
        self._ledger = ledger
        self._on_call = on_call
        self._cursor = ""
        self._delivered: list[Entry] = []
        ledger.pulled.append(self._delivered)

    def edit(
        self, key: Key, data: Data, *, group: str = "", says_base: bool = True, refusal: str = "", stale: int = 0
    ) -> None:
        """Changes a record in the phone; `stale` has it forget the last versions that it knows of."""
        base = self._expected(key) - stale if says_base else None
        self.drafts.append(
            Change(
                key=key,
                data=data,
                base=None if base is None else max(base, 0),
                time=self._clock.read(),
                group=group,
                refusal=refusal,
            )
        )

    async def push(self, *, newest_first: bool = False, twice: bool = False) -> None:
        """Hands a batch over; what gets no answer stays for the next time."""
        self._seal()
        if self.is_offline or not self.outbox:
            return
        push = self.outbox[-1 if newest_first else 0]
        await asyncio.gather(*(self._send(push) for _ in range(2 if twice else 1)))

    async def repeat(self, which: float) -> None:
        """Sends a batch once more that was acknowledged long ago, as one that was stuck in the network."""
        if self.settled and not self.is_offline:
            await self._send(self.settled[int(which * len(self.settled))])

    async def misuse(self, which: float) -> None:
        """Sends something else under a key that was used; it must be refused, and change nothing."""
        if not self.settled or self.is_offline:
            return
        push = self.settled[int(which * len(self.settled))]
        other = [replace(push.changes[0], data={"title": f"not {push.name}"}), *push.changes[1:]]
        self._on_call()
        try:
            await self.door.push(push.name, other, None)
        except Misused:
            self._ledger.counts["keys misused"] += 1
        except Lost:
            self._ledger.counts["calls lost"] += 1
        else:
            raise AssertionError(f"{push.name} was taken for other content")

    async def decide(self, which: float) -> None:
        """Decides one of the user's open conflicts; another phone may be doing the same."""
        waiting = [case for case in self._ledger.cases.values() if not case.is_decided]
        if waiting and not self.is_offline:
            await self.attempt(waiting[int(which * len(waiting))])

    async def attempt(self, case: Case) -> None:
        """Tries to decide `case`."""
        case.sent = case.sent or now()
        self._on_call()
        try:
            version = await self.door.decide(case.conflict_id, case.choice, case.merged)
        except Lost:
            case.lost += 1
            case.attempts.append(f"{self.name} lost at {now()}")
            self._ledger.counts["calls lost"] += 1
            return
        except TooLate:
            case.refused += 1
            case.attempts.append(f"{self.name} refused at {now()}")
            # Who had the answer may not have it yet; who never got one decided before this moment.
            case.answered = case.answered or now()
            return
        case.decided.append(version)
        case.attempts.append(f"{self.name} decided {version} at {now()}")
        case.answered = now()
        self._ledger.acknowledged[case.key] = max(self._ledger.acknowledged[case.key], version)

    def go_offline(self) -> None:
        self.is_offline = True
        self.line.hang_up()

    async def begin_anew(self) -> None:
        """Forgets everything that the server has, as an app does that was installed again."""
        if self.drafts or self.outbox:
            return
        self.known, self._cursor, self._delivered = {}, "", []
        self._ledger.pulled.append(self._delivered)
        self._ledger.counts["phones installed again"] += 1

    def check_equals(self, feed: list[Entry]) -> None:
        """The phone holds what the server holds, and its pulls alone would have told it so."""
        assert not self.outbox
        assert not self.drafts
        held = {entry.key: Copy(entry.version, entry.data) for entry in feed}
        assert self.known == held, f"{self.name} has not converged"
        assert {entry.key: Copy(entry.version, entry.data) for entry in self._delivered} == held, (
            f"{self.name}: its pulls missed something"
        )

    def _seal(self) -> None:
        if self.drafts:
            count = sum(push.device == self.name for push in self._ledger.pushes)
            push = Push(device=self.name, name=f"{self.name}-{count}", changes=tuple(self.drafts))
            self.drafts = []
            self.outbox.append(push)
            self._ledger.pushes.append(push)

    async def _send(self, push: Push) -> None:
        push.sent = push.sent or now()
        self._on_call()
        try:
            receipts = await self._hand_over(push)
        except Lost:
            self._ledger.counts["calls lost"] += 1
            return
        if push.answers:
            self._ledger.counts["pushes repeated"] += 1
        self._ledger.told(push, receipts)
        if push in self.outbox:
            self.outbox.remove(push)
            self.settled.append(push)
            for change, receipt in zip(push.changes, receipts, strict=True):
                self._settle(push, change, receipt)

    async def _hand_over(self, push: Push) -> list[Receipt]:
        shown = self._clock.read() if self._clock.is_told else None
        if shown is not None:
            push.readings.append(Reading(shown, now(), 0))
        return await self.door.push(push.name, push.changes, shown)

    def _settle(self, push: Push, change: Change, receipt: Receipt) -> None:
        key, notice = change.key, receipt.notice
        if receipt.status == "REJECTED" or (receipt.status == "DUPLICATE" and receipt.version == 0):
            return
        if notice is None:
            self._learn(key, receipt.version, change.data)
        elif receipt.status != "APPLIED":
            self._learn(key, notice.server_version, notice.server_data)
            self.drafts = [
                replace(one, base=notice.server_version) if one.key == key and one.base is not None else one
                for one in self.drafts
            ]
            if notice.is_open:
                self._ledger.cases[notice.conflict_id] = _case(push, change, notice.conflict_id)
        # Of an APPLIED that overruled the server, the feed tells what was made of both sides.

    def _take(self, page: Page) -> None:
        for entry in page.entries:
            self._delivered.append(entry)
            self._learn(entry.key, entry.version, entry.data)
        self._cursor = page.cursor

    def _learn(self, key: Key, version: int, data: Data) -> None:
        if version > self.known.get(key, NOTHING).version:
            self.known[key] = Copy(version, data)

    def _check_nothing_is_missing(self, acknowledged: dict[Key, int]) -> None:
        """What anybody was told of before this pull began is behind its cursor by now: the feed has no hole."""
        delivered = {entry.key: entry.version for entry in self._delivered}
        for key, version in acknowledged.items():
            assert delivered.get(key, 0) >= version, (
                f"{self.name} pulled to the end and has version {delivered.get(key, 0)} of {key};"
                f" version {version} was acknowledged before"
            )

    def _expected(self, key: Key) -> int:
        """The version that the record will have once everything that waits is applied."""
        version = self.known.get(key, NOTHING).version
        waiting = [*(change for push in self.outbox for change in push.changes), *self.drafts]
        return version + sum(change.key == key and not change.refusal for change in waiting)


def _case(push: Push, change: Change, conflict_id: str) -> Case:
    """How the user would decide, told by nothing but what met: every phone would decide alike."""
    index = push.changes.index(change)
    choice = ("accept_server", "accept_client", "merge")[crc32(f"{push.name}.{index}".encode()) % 3]
    merged = {"title": f"both, after {push.name}.{index}"}
    return Case(conflict_id=conflict_id, key=change.key, choice=choice, merged=merged if choice == "merge" else None)


class CallingDevice(Device):
    """A phone that asks for the feed, call by call."""

    def __init__(self, name: str, *, door: AskedDoor, **rest: Any) -> None:
        super().__init__(name, door=door, **rest)
        self._feed = door

    async def pull(self, limit: int, *, pages: int | None = None) -> bool:
        """Applies the feed from where it stands, to its end or for so many pages; whether it is at the end."""
        if self.is_offline:
            return False
        acknowledged = dict(self._ledger.acknowledged)
        while pages is None or pages > 0:
            self._on_call()
            try:
                page = await self._feed.pull(self._cursor, limit)
            except Lost:
                self._ledger.counts["calls lost"] += 1
                return False
            assert len(page.entries) <= limit
            self._take(page)
            if not page.more:
                self._check_nothing_is_missing(acknowledged)
                return True
            pages = None if pages is None else pages - 1
        return False

    async def catch_up(self, patience: float) -> None:
        """Pulls to the end."""
        deadline = time.monotonic() + patience
        while not await self.pull(1000):
            assert time.monotonic() < deadline, f"{self.name} cannot pull"
            await asyncio.sleep(0.02)
