"""Owns how long somebody waits who has guessed wrong: longer each time, and nobody for what others guess."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

from runtime.errors import Failure, Reason
from runtime.limits import in_words
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.sign_ins_domain import Device

if TYPE_CHECKING:
    from services.auth.attempts_store import AttemptStore
    from services.auth.events_store import EventStore

# Who has not failed for so long has not failed.
FORGET_AFTER: Final = timedelta(hours=1)
# The place of all devices and networks that no sign-in of the account ever came from.
STRANGERS: Final = "strangers"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What is made of failures in one place."""

    free: int
    """Failures before anybody has to wait, this one included."""
    first: timedelta
    """How long to wait then; twice as long each time."""
    longest: timedelta


OF_A_PLACE: Final = Patience(free=5, first=timedelta(seconds=30), longest=timedelta(minutes=15))
# All strangers together guess some three thousand times a day, however many places they come from.
OF_STRANGERS: Final = Patience(free=50, first=timedelta(seconds=30), longest=timedelta(seconds=30))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Somebody tries to get into an account by something that can be guessed."""

    subject: bytes
    """The digest of the way in and of the account's name, whether there is such an account or not."""
    places: tuple[tuple[str, Patience], ...]
    """Where it is counted: as the device or network it came from, and, if that is a stranger to the account, as one."""


class Guard(Protocol):
    """Lets attempts through, or makes them wait."""

    async def begin(self, way: str, name: str, account_id: UUID | None, device: Device) -> Attempt:
        """Counts an attempt on the account that is called `name`, until it has succeeded.

        `account_id` None: there is no such account, and nobody will notice. Raises Failure(RATE_LIMITED).
        """

    async def succeeded(self, attempt: Attempt) -> None:
        """It was no guess."""


class Attempts:
    """Counts in PostgreSQL, before anything is compared: of many at once no more are let through than in a row."""

    def __init__(self, store: AttemptStore, events: EventStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._events = events
        self._now = now

    async def begin(self, way: str, name: str, account_id: UUID | None, device: Device) -> Attempt:
        """As Guard.begin."""
        now = self._now()
        known = await self._store.known(account_id, device)
        place = f"device {device.key}" if known.device else device.network
        places = [(place, OF_A_PLACE)]
        if not (known.device or known.network):
            places.append((STRANGERS, OF_STRANGERS))
        attempt = Attempt(subject=hashlib.sha256(f"{way} {name}".encode()).digest(), places=tuple(places))
        until = await self._store.count(attempt, now)
        if until is not None:
            event = SecurityEvent(kind=Kind.SIGN_IN_DELAYED, account_id=account_id, detail={"method": way})
            await self._events.fold(event, now)
            wait = max(1.0, (until - now).total_seconds())
            message = f"Too many attempts to sign in; try again in {in_words(wait)}."
            raise Failure(Reason.RATE_LIMITED, message, retry_after=wait)
        return attempt

    async def succeeded(self, attempt: Attempt) -> None:
        """As Guard.succeeded."""
        await self._store.forgive(attempt, self._now())


class Unlimited:
    """Counts nothing and lets everything through: where rate limits are off."""

    async def begin(self, way: str, name: str, account_id: UUID | None, device: Device) -> Attempt:
        """As Guard.begin."""
        return Attempt(subject=b"", places=())

    async def succeeded(self, attempt: Attempt) -> None:
        """As Guard.succeeded."""
