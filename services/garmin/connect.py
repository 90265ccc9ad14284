"""Owns what the connector wants of Garmin, in words of ours: signing in, and what a session can bring and send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedIn:
    """What a sign-in came to."""

    tokens: str = field(repr=False)
    """One opaque string, which a session begins with."""
    expire_time: datetime | None
    """When they have to be refreshed at the latest; aware, UTC; None: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MfaWanted:
    """Garmin has sent the user a code."""

    state: str = field(repr=False)
    """One opaque string, which the sign-in goes on with. It is as good as half a password."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activity:
    """An activity as Garmin lists it."""

    id: str
    """Decimal digits."""
    name: str
    type: str
    """In Garmin's words: running, indoor_cycling …; empty: unknown."""
    start_time: datetime | None
    """Aware, UTC."""
    marker: str
    """Another one as soon as what Garmin lists of the activity is another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """The recording of an activity, as near to what the device wrote as Garmin has it."""

    format: str
    """fit, gpx or tcx."""
    content: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workout:
    """A workout as Garmin lists it."""

    id: str
    """Decimal digits."""
    description: str
    """Empty: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DailyMetric:
    """A measurement of a day."""

    type: str
    """steps, heart_rate_min, heart_rate_max, heart_rate_resting, sleep, stress, body_battery_max, body_battery_min, hrv
    or weight."""
    value: float
    unit: str
    """count, bpm, s, score, ms or kg."""
    calendar_date: date
    """The user's own day."""
    timestamp: datetime | None
    """Aware, UTC; None: the day is all that is known."""
    zone_offset_minutes: int | None = None
    """That the user's clock was ahead of UTC; None: unknown."""
    detail: Mapping[str, Any]
    """What else Garmin says, small and flat, for people: goals, stages of sleep, averages."""


class WrongCredentials(Exception):
    """Garmin does not know this username with this password, or does not let it in."""


class MfaWrong(Exception):
    """Not the code that Garmin sent. The sign-in may still be finished with the right one."""


class SignInLost(Exception):
    """The sign-in cannot be finished any more: it has to begin again."""


class SignInEnded(Exception):
    """The session's tokens were revoked, or have expired beyond refreshing: the user has to sign in again."""


class RateLimited(Exception):
    """Garmin wants fewer calls."""

    def __init__(self, retry_after: float) -> None:
        """After `retry_after` seconds it may be asked again."""
        super().__init__(f"again in {retry_after:.0f} s")
        self.retry_after = retry_after


class GarminAway(Exception):
    """Garmin does not answer, or not in time, or with an error of its own."""

    def __init__(self, retry_after: float = 15.0) -> None:
        """After `retry_after` seconds it may be back."""
        super().__init__(f"again in {retry_after:.0f} s")
        self.retry_after = retry_after


class GarminAnswer(Exception):
    """Garmin answered with what makes no sense to us: its message is for the log."""


class GarminRefused(Exception):
    """Garmin does not take this one thing, or does not have it; others may go on."""


class TokensExpired(Exception):
    """The session has to be refreshed before it goes on. Only who stores tokens ever sees this."""


class GarminSession(Protocol):
    """What can be done at Garmin for one user who is signed in there.

    Every method raises SignInEnded, RateLimited, GarminAway, GarminAnswer or GarminRefused.
    """

    @property
    def tokens(self) -> str:
        """As they are now: any call may have refreshed them."""

    async def activities(self, start: int, since: date, limit: int) -> list[Activity]:
        """A page of the activities since a day, newest first, without the first `start`; a short one is the last."""

    async def download_original(self, activity_id: str) -> Original:
        """The recording of an activity. Raises GarminRefused when there is none, as of one that was typed in."""

    async def daily_metrics(self, day: date) -> list[DailyMetric]:
        """What was measured on a day of the user's; empty when nothing was."""

    async def workouts(self, start: int, limit: int) -> list[Workout]:
        """A page of the user's workouts, without the first `start`; a short one is the last."""

    async def upload_workout(self, workout: Mapping[str, Any]) -> str:
        """Stores a workout in Garmin's own JSON; returns its id there."""

    async def schedule_workout(self, workout_id: str, day: date) -> None:
        """Puts a workout into the user's calendar."""

    async def delete_workout(self, workout_id: str) -> None:
        """Deletes a workout; harmless when it is gone."""


class RefreshableSession(GarminSession, Protocol):
    """A session as it comes from Garmin: its methods raise TokensExpired besides, and it never refreshes by itself.

    A refresh token may be good for one use: who refreshes must be alone, and must store what comes of it.
    """

    async def refresh(self) -> SignedIn:
        """Takes new tokens for the old ones. Raises SignInEnded, RateLimited, GarminAway, GarminAnswer."""


class Garmin(Protocol):
    """Garmin's door."""

    async def sign_in(self, username: str, password: str) -> SignedIn | MfaWanted:
        """Signs in, once: nothing is tried again.

        Raises WrongCredentials, RateLimited, GarminAway, GarminAnswer.
        """

    async def finish_sign_in(self, state: str, code: str) -> SignedIn:
        """Goes on with a sign-in that wanted a code.

        Raises MfaWrong, SignInLost, RateLimited, GarminAway, GarminAnswer.
        """

    def session(self, tokens: str) -> RefreshableSession:
        """A session that begins with stored tokens; nothing is asked yet. Raises SignInEnded for senseless ones."""
