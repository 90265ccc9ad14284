"""Owns the streams that are open in this process: who is told of what, and when one has to go."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.errors import Failure, Reason
from runtime.hints import Hints, hints
from runtime.interceptors import failure_of
from runtime.telemetry import (
    STREAM_ANSWERS_QUEUED,
    STREAM_LAG,
    STREAM_PUSHES_WAITING,
    STREAMS_FULL,
    STREAMS_OPEN,
    logger,
)
from services.sessions.streams_domain import CUT_SECONDS, Stream
from services.sessions.streams_messages import Cause, Goodbye, StreamLimits

if TYPE_CHECKING:
    from services.sessions.feed_store import FeedStore

UPKEEP_INTERVAL: Final = 0.5
# How often feeds are looked at though nobody hinted: while other replicas can be heard, and while they cannot.
POLL_INTERVAL: Final = 15.0
POLL_INTERVAL_ALONE: Final = 1.0
# Phones that are sent away together come back spread over so many seconds.
RECONNECT_SPREAD: Final = 5.0

_chance: Final = random.Random()  # noqa: S311  # spreads load, guards nothing


class Live:
    """The open streams by their users, and the words between replicas that make them look at their feeds."""

    def __init__(self, limits: StreamLimits, feeds: FeedStore) -> None:
        self.limits: Final = limits
        self._feeds = feeds
        self._streams: dict[UUID, dict[Stream, float]] = {}
        self._hints: Hints | None = None
        self._poll_at = 0.0

    @contextmanager
    def joined(self, stream: Stream) -> Iterator[None]:
        """Counts the stream among the user's for as long as the block runs.

        Raises Failure: RATE_LIMITED for one more than a user may have, UNAVAILABLE when this process is about to stop.
        """
        user_id = stream.caller.user_id
        own = self._streams.setdefault(user_id, {})
        try:
            if stream.watch.draining.is_set():
                raise Failure(Reason.UNAVAILABLE, retry_after=1)
            if len(own) >= self.limits.per_user:
                why = f"You have {len(own)} streams open already."
                raise Failure(Reason.RATE_LIMITED, why, retry_after=self.limits.idle)
            own[stream] = stream.opened_at + self.limits.lifetime * _chance.uniform(0.9, 1.0)
            STREAMS_OPEN.inc()
            try:
                yield
            finally:
                STREAMS_OPEN.dec()
                del own[stream]
        finally:
            if not own:
                self._streams.pop(user_id, None)

    def committed(self, user_id: UUID, conflict_ids: Sequence[UUID]) -> None:
        """The user's feed has advanced here, and the user wants to know of these conflicts."""
        self._tell(user_id, conflict_ids)
        if self._hints is not None:
            self._hints.tell(":".join([user_id.hex, *(one.hex for one in conflict_ids)]))

    @asynccontextmanager
    async def running(self, redis_url: str) -> AsyncIterator[None]:
        """Looks after the streams for as long as the block runs; `redis_url` as Config.redis_url."""
        async with hints(redis_url, self._hear, self._poll_soon) as self._hints:
            task = asyncio.create_task(self._look_after(), name="look after streams")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _hear(self, word: str) -> None:
        try:
            user_id, *conflict_ids = (UUID(hex=one) for one in word.split(":"))
        except ValueError:
            return  # of a replica of another version
        self._tell(user_id, conflict_ids)

    def _tell(self, user_id: UUID, conflict_ids: Sequence[UUID]) -> None:
        for stream in self._streams.get(user_id, ()):
            stream.look()
            if conflict_ids:
                stream.tell(conflict_ids)

    def _poll_soon(self) -> None:
        self._poll_at = 0.0

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_INTERVAL)
            now = time.monotonic()
            for stream, until in [item for own in self._streams.values() for item in own.items()]:
                await self._visit(stream, until, now)
            self._measure(now)
            if now >= self._poll_at:
                heard = self._hints is not None and self._hints.connected
                self._poll_at = now + (POLL_INTERVAL if heard else POLL_INTERVAL_ALONE)
                await self._poll()

    def _measure(self, now: float) -> None:
        streams = [stream for own in self._streams.values() for stream in own]
        STREAM_ANSWERS_QUEUED.set(sum(stream.answers_queued for stream in streams))
        STREAM_PUSHES_WAITING.set(sum(stream.pushes_waiting for stream in streams))
        STREAMS_FULL.set(sum(stream.full_since > 0 for stream in streams))
        # A phone that does not take what it is told is behind by its own doing.
        behind = [one.behind_since for one in streams if one.behind_since and not one.full_since + one.telling_since]
        STREAM_LAG.set(max(0.0, now - min(behind, default=now)))

    async def _visit(self, stream: Stream, until: float, now: float) -> None:
        if stream.ended_at:
            if stream.telling_since and now - stream.ended_at > CUT_SECONDS:
                stream.watch.cut()
            return
        try:
            await stream.watch.recheck()
        except Exception as error:  # nobody would look after the others
            failure = failure_of(error)
            # UNAVAILABLE in so many words: whether the sign-in was ended has been unknown for too long.
            if failure is error or failure.reason not in (Reason.UNAVAILABLE, Reason.INTERNAL):
                stream.end(failure)
            else:
                logger().warning("a stream's sign-in cannot be looked at", error=repr(error))
        cause = self._cause(stream, until, now)
        if cause is not None:
            wait = _chance.uniform(0, RECONNECT_SPREAD)
            stream.end(Goodbye(cause=cause, reconnect_after=timedelta(seconds=wait)))

    def _cause(self, stream: Stream, until: float, now: float) -> Cause | None:
        if stream.watch.draining.is_set():
            return Cause.DRAINING
        if now - stream.heard_at > self.limits.idle:
            return Cause.IDLE
        slow_since = stream.full_since or stream.telling_since
        if slow_since and now - slow_since > self.limits.idle:
            return Cause.TOO_SLOW
        return Cause.LIFETIME if now > until else None

    async def _poll(self) -> None:
        """Makes the streams look whose feeds are further than they were sent."""
        if not self._streams:
            return
        try:
            positions = await self._feeds.positions(list(self._streams))
        except Exception as error:
            logger().warning("feeds cannot be looked at", error=repr(failure_of(error)))
            return
        for user_id, position in positions.items():
            for stream in self._streams.get(user_id, ()):
                if stream.position < position:
                    stream.look()
