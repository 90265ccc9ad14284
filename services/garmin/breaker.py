"""Owns when Garmin is left alone: what it said to one user's call holds for those of all users of the process."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import date
from typing import Any, Final, TypeVar

from services.garmin.connect import (
    Activity,
    DailyMetric,
    Garmin,
    GarminAway,
    MfaWanted,
    Original,
    RateLimited,
    RefreshableSession,
    SignedIn,
    TokensExpired,
    Workout,
)

T = TypeVar("T")

# In a row, before Garmin is believed to be away rather than unlucky.
FAILURES: Final = 5
# Seconds; the first time, and twice as long each time the trial afterwards fails as well.
FIRST_PAUSE: Final = 15.0
LONGEST_PAUSE: Final = 300.0
# Seconds that a trial may take before somebody else may try.
TRIAL: Final = 60.0


class Breaker:
    """Closed, it lets every call through; open, none; and after its pause one, whose outcome decides.

    A call that began before it opened does not close it: what it comes to was asked for earlier.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._until = 0.0
        self._refusal: Callable[[float], Exception] | None = None
        self._openings = 0

    def check(self) -> None:
        """Raises RateLimited or GarminAway while it is open."""
        if self._refusal is not None and (left := self._until - self._monotonic()) > 0:
            raise self._refusal(left)

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` comes to. Raises what it raises; RateLimited or GarminAway at once while it is open."""
        self.check()
        if self._refusal is not None:  # this one is the trial
            self._until = self._monotonic() + TRIAL
        openings = self._openings
        try:
            outcome = await call()
        except RateLimited as limited:
            if openings == self._openings or limited.retry_after > self._until - self._monotonic():
                self._open(limited.retry_after, RateLimited)
            raise
        except GarminAway:
            if openings == self._openings:
                self._count()
            raise
        except TokensExpired:  # which may not have taken a question: whoever comes next may try
            if openings == self._openings:
                self._until = 0.0
            raise
        except Exception:  # Garmin is there, and has said what it had to say
            self._close(openings)
            raise
        self._close(openings)
        return outcome

    def _count(self) -> None:
        self._failures += 1
        if self._refusal is not None or self._failures >= FAILURES:
            doublings = max(0, self._failures - FAILURES)
            self._open(min(FIRST_PAUSE * 2.0 ** min(doublings, 10), LONGEST_PAUSE), GarminAway)

    def _open(self, seconds: float, refusal: Callable[[float], Exception]) -> None:
        self._until, self._refusal = self._monotonic() + seconds, refusal
        self._openings += 1

    def _close(self, openings: int) -> None:
        if openings == self._openings:
            self._failures, self._refusal = 0, None


class GuardedGarmin:
    """Garmin behind two breakers: the hosts that sign in and those that answer limit on their own."""

    def __init__(self, garmin: Garmin, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._garmin = garmin
        self._sign_ins = Breaker(monotonic=monotonic)
        self._calls = Breaker(monotonic=monotonic)

    def check_sign_in(self) -> None:
        """Raises RateLimited or GarminAway where a sign-in would not even be tried."""
        self._sign_ins.check()

    async def sign_in(self, username: str, password: str) -> SignedIn | MfaWanted:
        """As Garmin.sign_in."""
        return await self._sign_ins.run(lambda: self._garmin.sign_in(username, password))

    async def finish_sign_in(self, state: str, code: str) -> SignedIn:
        """As Garmin.finish_sign_in."""
        return await self._sign_ins.run(lambda: self._garmin.finish_sign_in(state, code))

    def session(self, tokens: str) -> GuardedSession:
        """As Garmin.session."""
        return GuardedSession(self._garmin.session(tokens), self._calls)


class GuardedSession:
    """A session behind a breaker."""

    def __init__(self, session: RefreshableSession, breaker: Breaker) -> None:
        self._session = session
        self._breaker = breaker

    @property
    def tokens(self) -> str:
        """As GarminSession.tokens."""
        return self._session.tokens

    async def refresh(self) -> SignedIn:
        """As RefreshableSession.refresh."""
        return await self._breaker.run(self._session.refresh)

    async def activities(self, start: int, since: date, limit: int) -> list[Activity]:
        """As GarminSession.activities."""
        return await self._breaker.run(lambda: self._session.activities(start, since, limit))

    async def download_original(self, activity_id: str) -> Original:
        """As GarminSession.download_original."""
        return await self._breaker.run(lambda: self._session.download_original(activity_id))

    async def daily_metrics(self, day: date) -> list[DailyMetric]:
        """As GarminSession.daily_metrics."""
        return await self._breaker.run(lambda: self._session.daily_metrics(day))

    async def workouts(self, start: int, limit: int) -> list[Workout]:
        """As GarminSession.workouts."""
        return await self._breaker.run(lambda: self._session.workouts(start, limit))

    async def upload_workout(self, workout: Mapping[str, Any]) -> str:
        """As GarminSession.upload_workout."""
        return await self._breaker.run(lambda: self._session.upload_workout(workout))

    async def schedule_workout(self, workout_id: str, day: date) -> None:
        """As GarminSession.schedule_workout."""
        await self._breaker.run(lambda: self._session.schedule_workout(workout_id, day))

    async def delete_workout(self, workout_id: str) -> None:
        """As GarminSession.delete_workout."""
        await self._breaker.run(lambda: self._session.delete_workout(workout_id))
