"""Owns a phone's stream: what it said, what it is told, in which order, and when it has to go."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.call import Principal, Watch
from runtime.errors import Failure, Reason, invalid, missing
from runtime.outcomes import DEVICE_ID, NO_DEVICE, Device, Tally, word
from runtime.telemetry import logger
from services.sessions.conflicts_domain import Conflicts
from services.sessions.streams_messages import (
    Ack,
    Beat,
    Event,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Push,
    Receipts,
    Resolve,
    Unread,
    Welcome,
)
from services.sessions.sync_domain import Answer, Place, Reading, Sync, decode_cursor, encode_cursor

if TYPE_CHECKING:
    from services.sessions.live import Live
    from services.sessions.meta_domain import AppVersions

# The version of the contract of the stream; a phone that was built for another one is told to update.
SCHEMA_VERSION: Final = 1
PAGE_SIZE: Final = 500
MAX_UNACKNOWLEDGED: Final = 4
MAX_ANSWERS: Final = 4
# Pushes that were read and wait: while PostgreSQL is busy with some, the next ones are checked.
MAX_WAITING: Final = 16
# Changes that are stored in one transaction.
MAX_TOGETHER: Final = 1000
# How long a stream that is sent away waits for the receipts of what is being stored.
GOODBYE_SECONDS: Final = 2.0
# How long it may take until a phone that is sent away has taken what it is told; then it is cut off.
CUT_SECONDS: Final = 5.0
MAX_STRIKES: Final = 3
MAX_REQUEST_ID_CHARS: Final = 64
MAX_WORD_CHARS: Final = 64
# What one stream may say besides pushes, which are counted over all doors: enough for an ack a page and then some.
BUDGET: Final = 1000
BUDGET_SECONDS: Final = 10.0
PUSH_METHOD: Final = "/satchel.sessions.v1.SyncService/PushChanges"


class Streams:
    """What every stream needs, and the way to begin one."""

    def __init__(
        self,
        live: Live,
        sync: Sync,
        conflicts: Conflicts,
        versions: AppVersions,
        *,
        now: Callable[[], datetime],
        failure_of: Callable[[Exception], Failure],
    ) -> None:
        """`failure_of` gives the refusal that an error of the database amounts to."""
        self.live: Final = live
        self.sync: Final = sync
        self.conflicts: Final = conflicts
        self.versions: Final = versions
        self.now: Final = now
        self.failure_of: Final = failure_of

    async def talk(
        self, caller: Principal, watch: Watch, said: AsyncIterator[tuple[str, Message | Failure]]
    ) -> AsyncGenerator[tuple[str, Event]]:
        """What the phone is to be told, each with the request id of what it answers, until either side ends it.

        Raises Failure when the stream must end for something that the phone did, or that was done to its sign-in.
        """
        stream = Stream(self, caller, watch)
        with self.live.joined(stream):
            async with aclosing(stream.talk(said)) as told:
                async for event in told:
                    stream.telling_since = time.monotonic()
                    yield event
                    stream.telling_since = 0.0


class Stream:
    """One stream: a reader takes what the phone says, message by message, and the caller of `talk` writes."""

    def __init__(self, streams: Streams, caller: Principal, watch: Watch) -> None:
        self.caller: Final = caller
        self.watch: Final = watch
        self.heard_at = self.opened_at = time.monotonic()
        self.full_since = 0.0
        """Since when no further page may be sent for want of an ack; 0: one may."""
        self.telling_since = 0.0
        """Since when the phone does not take what it is told; 0: it has taken all."""
        self.behind_since = 0.0
        """Since when there may be something in the feed that it was not told; 0: it was told all."""
        self.ended_at = 0.0
        """When it was sent away; 0: it was not."""
        self.position = 0
        """Up to here the feed was sent."""
        self._floor = 0
        self._streams = streams
        self._answers: deque[tuple[str, Event]] = deque()
        self._news: dict[UUID, None] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._end: Failure | Goodbye | None = None
        self._welcomed = False
        self._domains: Sequence[str] = ()
        self._offset = timedelta(0)
        self._device = NO_DEVICE
        self._unacknowledged: deque[int] = deque()
        self._places = asyncio.Semaphore(MAX_WAITING)
        self._waiting: deque[tuple[str, Reading]] = deque()
        self._storing: asyncio.Task[None] | None = None
        self._behind = False
        self._strikes = 0
        self._budget, self._budget_at = BUDGET, self.opened_at

    async def talk(self, said: AsyncIterator[tuple[str, Message | Failure]]) -> AsyncGenerator[tuple[str, Event]]:
        """As Streams.talk, for this stream."""
        reader = asyncio.create_task(self._read(said), name="stream reader")
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while self._end is None:
                self._wake.clear()
                if self._answers:
                    answer = self._answers.popleft()
                    self._room.set()
                    yield answer
                elif (event := await self._unasked()) is not None:
                    yield "", event
                elif self._answers:
                    continue  # they came while the feed was looked at
                elif reader.done():
                    reader.result()
                    return
                else:
                    await self._wake.wait()
            if isinstance(self._end, Goodbye) and self._storing is not None:
                await asyncio.wait({self._storing}, timeout=GOODBYE_SECONDS)  # so that its receipts are not lost
            while self._answers:
                yield self._answers.popleft()
            if isinstance(self._end, Failure):
                raise self._end
            yield "", self._end
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, Failure):
                await reader

    @property
    def answers_queued(self) -> int:
        """Answers that wait for the phone to take them."""
        return len(self._answers)

    @property
    def pushes_waiting(self) -> int:
        """Pushes that were read and wait to be stored."""
        return len(self._waiting)

    def look(self) -> None:
        """Something has happened in the feed."""
        self._behind = True
        self.behind_since = self.behind_since or time.monotonic()
        self._wake.set()

    def tell(self, conflict_ids: Sequence[UUID]) -> None:
        """The user wants to know of these conflicts."""
        self._news.update(dict.fromkeys(conflict_ids))
        self._wake.set()

    def end(self, why: Failure | Goodbye) -> None:
        """Nothing more is said but `why`."""
        self._end = self._end or why
        self.ended_at = self.ended_at or time.monotonic()
        self._wake.set()
        self._room.set()

    async def _read(self, said: AsyncIterator[tuple[str, Message | Failure]]) -> None:
        try:
            async for request_id, message in said:
                self.heard_at = time.monotonic()
                while len(self._answers) >= MAX_ANSWERS and self._end is None:
                    self._room.clear()
                    await self._room.wait()
                if self._end is not None:
                    return  # nothing that is said now is answered any more
                await self._answer(request_id, self._take(request_id, message))
            if self._storing is not None:
                await self._storing
        finally:
            if self._storing is not None:
                self._storing.cancel()
                with suppress(asyncio.CancelledError):
                    await self._storing

    async def _answer(self, request_id: str, taking: Awaitable[Event | None]) -> None:
        try:
            event = await taking
        except Exception as error:
            event = self._failure(error)
        if event is not None:
            self._say(request_id, event)

    def _failure(self, error: Exception) -> Failure:
        failure = self._streams.failure_of(error)
        if failure.reason is Reason.INTERNAL:
            logger().error("a stream's message failed", user=self.caller.user_id, exc_info=error)
        self._strike(failure)
        return failure

    def _say(self, request_id: str, event: Event) -> None:
        self._answers.append((request_id[:MAX_REQUEST_ID_CHARS], event))
        self._wake.set()

    async def _take(self, request_id: str, message: Message | Failure) -> Event | None:
        self._spend()
        if isinstance(message, Failure):
            raise message
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise invalid("request_id", f"is longer than {MAX_REQUEST_ID_CHARS} characters", "TOO_LONG")
        if isinstance(message, Hello):
            return await self._welcome(message)
        if not self._welcomed:
            raise missing("hello")
        match message:
            case Push():
                await self._push(request_id, message)
                return None
            case Unread():
                self._synced(Tally(items=message.items), 0.0, message.failure or Failure(Reason.MALFORMED_REQUEST))
                if message.failure is not None:
                    raise message.failure
                return None
            case Ack():
                self._acknowledge(message)
                return None
            case Heartbeat():
                now = self._streams.now()
                self._set_clock(message.client_time, now)
                return Beat(server_time=now)
            case Resolve():
                return await self._streams.conflicts.resolve(
                    self.caller, message.conflict_id, message.resolution, message.client_data
                )

    async def _welcome(self, hello: Hello) -> Welcome:
        if self._welcomed:
            raise invalid("hello", "was said already")
        if not hello.device_id:
            raise missing("device_id")
        if not DEVICE_ID.fullmatch(hello.device_id):
            raise invalid("device_id", "must be 1 to 255 letters, digits, hyphens and underscores", "INVALID_FORMAT")
        for field in ("app_version", "platform", "os_version", "network_type"):
            if len(getattr(hello, field)) > MAX_WORD_CHARS:
                raise invalid(field, f"is longer than {MAX_WORD_CHARS} characters", "TOO_LONG")
        gate = await self._streams.versions.gate(hello.platform, hello.app_version)
        if not gate.supported or hello.schema_version not in (0, SCHEMA_VERSION):
            refusal = Failure(Reason.VERSION_MISMATCH)
            self.end(refusal)
            raise refusal
        self._domains = self._streams.sync.domains_of(hello.domains)
        self.position, self._floor = await self._streams.sync.stand(self.caller, hello.cursor, self._domains)
        now = self._streams.now()
        self._device = device_of(hello)
        self._set_clock(hello.client_time, now)
        self._welcomed = True
        self.tell(await self._streams.conflicts.open(self.caller))
        self.look()
        return Welcome(
            server_time=now,
            clock_offset=self._offset,
            cursor=encode_cursor(self._place, self.caller.user_id, self._domains),
            domains=self._streams.sync.versions(),
            limits=self._streams.live.limits,
            update_available=gate.update_available,
            store_url=gate.store_url,
        )

    def _set_clock(self, client_now: datetime | None, now: datetime) -> None:
        if client_now is not None:
            self._offset = now - client_now
            self._device = self._device._replace(clock_skew_ms=self._offset / timedelta(milliseconds=-1))

    def _synced(self, tally: Tally, seconds: float, refusal: Failure | None = None) -> None:
        self.watch.synced(self._device, tally, seconds, None if refusal is None else refusal.reason)

    async def _push(self, request_id: str, push: Push) -> None:
        """Begins to store a push; the next ones are read meanwhile, and stored after it, in one go."""
        await self.watch.count(PUSH_METHOD)
        reading = self._streams.sync.read(push.changes, push.key, "", self._offset)
        await self._places.acquire()
        self._waiting.append((request_id, reading))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_waiting(), name="stream pushes")

    async def _store_waiting(self) -> None:
        while self._waiting:
            together = self._next_together()
            answers = await self._store([reading for _, reading in together])
            now = self._streams.now()
            for (request_id, reading), answer in zip(together, answers, strict=True):
                took = (now - reading.time).total_seconds()
                if isinstance(answer, Failure):
                    self._synced(reading.tally, took, answer)
                    self._say(request_id, answer)
                else:
                    self._synced(self._streams.sync.tally(answer), took)
                    self._say(request_id, self._receipts(answer))

    async def _store(self, readings: Sequence[Reading]) -> list[Answer | Failure]:
        try:
            return await self._streams.sync.store(self.caller, readings)
        except Exception as error:
            if len(readings) == 1:
                return [self._failure(error)]
        # Whosever fault it was, the others must not suffer from it.
        return [answer for one in readings for answer in await self._store([one])]

    def _next_together(self) -> list[tuple[str, Reading]]:
        """What is stored next, in one transaction: not more changes than one push may have, and no key twice."""
        together: list[tuple[str, Reading]] = []
        count, names = 0, set[str]()
        while self._waiting:
            _, reading = self._waiting[0]
            name = reading.key.key if reading.key else ""
            count += len(reading.items)
            if together and (count > MAX_TOGETHER or name in names):
                break
            names.update(filter(None, [name]))
            together.append(self._waiting.popleft())
            self._places.release()
        return together

    def _receipts(self, answer: Answer) -> Receipts:
        for receipt in answer.receipts:
            if receipt.notice is not None:
                self._news.pop(receipt.notice.conflict_id, None)  # this phone has it in its receipts
        if answer.position_before != self.position or not answer.as_sent:
            return Receipts(answer=answer, next_cursor="")
        # Nothing but this push happened behind what was sent, and the phone has what it pushed.
        self.position = answer.position_after
        return Receipts(answer=answer, next_cursor=encode_cursor(self._place, self.caller.user_id, self._domains))

    def _acknowledge(self, ack: Ack) -> None:
        position = decode_cursor(ack.cursor, self.caller.user_id, self._domains).position
        if position > self.position:
            raise invalid("cursor", "was not sent on this stream")
        while self._unacknowledged and self._unacknowledged[0] <= position:
            self._unacknowledged.popleft()
            self.full_since = 0.0
        self._wake.set()

    async def _unasked(self) -> Event | None:
        while self._news and self._welcomed:
            conflict_id = next(iter(self._news))
            del self._news[conflict_id]
            with suppress(Exception):  # a hint that is lost is found again by the next hello
                conflict = await self._streams.conflicts.find(self.caller, conflict_id)
                if conflict is not None:
                    return conflict
        if not self._behind or not self._welcomed or self.full_since:
            return None
        self._behind, begun, started = False, self.position, time.monotonic()
        try:
            page = await self._streams.sync.page(self.caller, self._place, self._domains, PAGE_SIZE)
        except Exception as error:
            failure = self._streams.failure_of(error)
            if failure.reason is Reason.RESYNC_REQUIRED:
                raise failure from None
            self.behind_since = 0.0
            return None  # the next look at all feeds finds it behind again
        if self.position != begun:
            # A push came in between, and its receipts carry a cursor: a page must not overtake them.
            self._behind = True
            return None
        self._behind = self._behind or page.has_more
        self.position, self._floor = page.position, page.floor
        if not self._behind:
            self.behind_since = 0.0
        if not page.entries:
            return None
        self._synced(Tally(page.domain), time.monotonic() - started)
        self._unacknowledged.append(page.position)
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
            self.full_since = time.monotonic()
        return page

    @property
    def _place(self) -> Place:
        return Place(self.position, self._floor)

    def _spend(self) -> None:
        """Raises Failure(RATE_LIMITED) when the stream says more than anybody needs to."""
        if self.heard_at - self._budget_at > BUDGET_SECONDS:
            self._budget, self._budget_at = BUDGET, self.heard_at
        self._budget -= 1
        if self._budget < 0:
            self._budget, self._budget_at = BUDGET, self.heard_at
            raise Failure(Reason.RATE_LIMITED, retry_after=BUDGET_SECONDS)

    def _strike(self, failure: Failure) -> None:
        if failure.reason is Reason.RATE_LIMITED:
            self._strikes += 1
            if self._strikes >= MAX_STRIKES:
                self.end(failure)


def device_of(hello: Hello) -> Device:
    """The phone that says hello."""
    return Device(
        hello.device_id,
        word(hello.platform),
        word(hello.network_type),
        word(hello.app_version),
        word(hello.os_version),
    )
