"""Owns linked accounts: how one comes about, with a code or without, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid, missing
from runtime.limits import in_words
from runtime.telemetry import logger
from services.garmin.breaker import GuardedGarmin
from services.garmin.connect import (
    GarminAnswer,
    GarminAway,
    MfaWanted,
    MfaWrong,
    RateLimited,
    SignedIn,
    SignInLost,
    WrongCredentials,
)
from services.garmin.credentials import Credentials, CredentialsClient
from services.garmin.sealing import Seal

if TYPE_CHECKING:
    from services.garmin.accounts_store import AccountStore

MAX_USERNAME_CHARS: Final = 320
MAX_PASSWORD_CHARS: Final = 1024
MAX_CODE_CHARS: Final = 32
DEFAULT_INTERVAL_HOURS: Final = 6
# How long Garmin's code is waited for, and how often it may be wrong.
SIGN_IN_LIFETIME: Final = timedelta(minutes=10)
TRIES: Final = 5
# Garmin locks out whoever signs in too often, by account and by address: so many times in a window, of a user and of a
# name at Garmin each.
ATTEMPTS: Final = 5
ATTEMPTS_WINDOW: Final = timedelta(minutes=15)
# Sign-ins that go on at once in a process; each holds a thread.
SIGN_INS: Final = 16
# Seconds, for which somebody comes back to a sign-in that goes on.
COME_BACK: Final = 15.0
NONSENSE_PAUSE: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A user's linked account."""

    user_id: UUID
    link_id: UUID
    """Another one each time an account is linked."""
    tenant_id: int
    linked_at: datetime
    needs_sign_in: bool
    """Garmin refuses the tokens: nothing goes on until the user links again."""
    interval_hours: int
    """Between two synchronizations by themselves; 0: none."""
    next_sync_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedAccount:
    """A link as its user sees it."""

    link: Link
    username: str = field(repr=False)


class Accounts:
    """Links accounts and forgets them. A sign-in that was begun goes on to its end, whoever still waits for it."""

    def __init__(
        self,
        garmin: GuardedGarmin,
        store: AccountStore,
        credentials: CredentialsClient,
        secret: bytes,
        make_known: Callable[[str], Awaitable[None]],
        *,
        patience: float,
        stores_passwords: bool,
        ended: Sequence[Callable[[UUID], Awaitable[None]]],
        erased: Sequence[Callable[[UUID], Awaitable[None]]],
        now: Callable[[], datetime],
    ) -> None:
        """`make_known`: Neighbours.make_known. `patience` is how many seconds a caller waits.

        Each of `ended` is told of a user whose link has ended, also by one to another account, each of `erased` of one
        whose account is gone.
        """
        self._garmin = garmin
        self._store = store
        self._credentials = credentials
        self._secret = secret
        self._seal = Seal(secret)
        self._make_known = make_known
        self._patience = patience
        self._stores_passwords = stores_passwords
        self._ended = ended
        self._erased = erased
        self._now = now
        self._going_on: dict[bytes, asyncio.Task[bool]] = {}

    async def link(self, caller: Principal, username: str, password: str, code: str, *, authorization: str) -> bool:
        """Signs in and links; True: Garmin has sent a code, and nothing is linked yet.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CREDENTIALS, INVALID_TOKEN, RATE_LIMITED, UNAVAILABLE.
        """
        username = username.strip()
        _check("username", username, MAX_USERNAME_CHARS)
        _check("password", password, MAX_PASSWORD_CHARS)
        if code:
            _check("mfa_code", code, MAX_CODE_CHARS)
        key = self._digest("sign-in", str(caller.user_id), username, password, code)
        if key not in self._going_on:
            with _in_words():
                self._garmin.check_sign_in()
            if caller.issuer:  # the vault keeps things for accounts, and acting for a user takes one
                await self._make_known(authorization)
            await self._count(caller, username)
        return await self._outcome(key, lambda: self._sign_in(caller, username, password, code))

    async def verify(self, caller: Principal, code: str) -> None:
        """Goes on with the sign-in that wants a code.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CREDENTIALS, RATE_LIMITED, UNAVAILABLE.
        """
        code = code.strip()
        _check("mfa_code", code, MAX_CODE_CHARS)
        key = self._digest("code", str(caller.user_id), code)
        if key not in self._going_on:
            with _in_words():
                self._garmin.check_sign_in()
        await self._outcome(key, lambda: self._finish(caller, code))

    async def get(self, user_id: UUID) -> LinkedAccount | None:
        """A user's linked account; None: there is none. Raises Failure(UNAVAILABLE)."""
        link = await self._store.get(user_id)
        if link is None:
            return None
        found = await self._credentials.get(user_id)
        return LinkedAccount(link=link, username=found.username) if found else None

    async def unlink(self, user_id: UUID) -> bool:
        """Forgets a user's account; whether there was one. Raises Failure(UNAVAILABLE): nothing has changed."""
        async with self._store.ending(user_id) as was_linked:
            await self._credentials.delete(user_id)
        await self._end(user_id)
        return was_linked

    async def erase(self, user_id: UUID) -> None:
        """Forgets all of a user whose account is gone, and with it what the vault had."""
        async with self._store.ending(user_id):
            pass
        await self._store.forget_attempts(self._subjects(user_id, "")[:1])
        for tell in self._erased:
            await tell(user_id)

    async def sweep(self) -> None:
        """Removes sign-ins that nobody finished, and attempts that do not count any more."""
        try:
            await self._store.sweep(self._now(), ATTEMPTS_WINDOW)
        except Exception as error:  # it is left to the next round
            logger().warning("cannot sweep sign-ins at Garmin", error=repr(error))

    async def close(self) -> None:
        """Gives up what still goes on."""
        tasks = list(self._going_on.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, user_id: UUID) -> None:
        for tell in self._ended:
            await tell(user_id)

    async def _sign_in(self, caller: Principal, username: str, password: str, code: str) -> bool:
        outcome = await self._garmin.sign_in(username, password)
        kept = password if self._stores_passwords else ""
        if isinstance(outcome, MfaWanted):
            # With a code that came along, too: it may be put right.
            sealed = self._seal.seal(caller.user_id, {"state": outcome.state, "username": username, "password": kept})
            await self._store.wait_for_code(caller.user_id, sealed, self._now() + SIGN_IN_LIFETIME)
            return await self._finish(caller, code) if code else True
        await self._keep(caller, username, kept, outcome)
        return False

    async def _finish(self, caller: Principal, code: str) -> bool:
        sealed = await self._store.try_code(caller.user_id, self._now(), TRIES)
        waiting = self._seal.open(caller.user_id, sealed) if sealed else None
        if waiting is None:
            raise SignInLost
        outcome = await self._garmin.finish_sign_in(waiting["state"], code)
        await self._keep(caller, waiting["username"], waiting["password"], outcome)
        return False

    async def _keep(self, caller: Principal, username: str, password: str, signed_in: SignedIn) -> None:
        """Both or nothing: the link is not committed before the vault has the tokens."""
        link = Link(
            user_id=caller.user_id,
            link_id=uuid4(),
            tenant_id=caller.tenant_id,
            linked_at=self._now(),
            needs_sign_in=False,
            interval_hours=DEFAULT_INTERVAL_HOURS,
            next_sync_at=self._now() + timedelta(hours=DEFAULT_INTERVAL_HOURS),
        )
        credentials = Credentials(username=username, tokens=signed_in.tokens, expire_time=signed_in.expire_time)
        subject = self._digest("name", username.casefold())
        if await self._store.is_another(caller.user_id, subject):  # what runs is still with the one before
            await self._end(caller.user_id)
        async with self._store.linking(link, subject):
            await self._credentials.put(caller.user_id, credentials, password)
        logger().info("linked an account at Garmin", user=caller.user_id)

    async def _outcome(self, key: bytes, begin: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        """What a sign-in comes to, for everybody who asks for the same one while it goes on."""
        task = self._going_on.get(key)
        if task is None:
            if len(self._going_on) >= SIGN_INS:
                raise Failure(Reason.UNAVAILABLE, "Too many sign-ins at Garmin go on.", retry_after=COME_BACK)
            task = asyncio.create_task(begin(), name="sign in at garmin")
            self._going_on[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        done, _ = await asyncio.wait([task], timeout=self._patience)
        if not done:
            message = "Garmin takes long to answer. The sign-in goes on: GET /api/garmin/account tells how it ended."
            raise Failure(Reason.UNAVAILABLE, message, retry_after=COME_BACK)
        with _in_words():
            return task.result()

    def _done(self, key: bytes, task: asyncio.Task[bool]) -> None:
        del self._going_on[key]
        if not task.cancelled() and (error := task.exception()):
            logger().info("a sign-in at Garmin failed", error=type(error).__name__)

    async def _count(self, caller: Principal, username: str) -> None:
        until = await self._store.count(
            self._subjects(caller.user_id, username), self._now(), ATTEMPTS, ATTEMPTS_WINDOW
        )
        if until is not None:
            wait = max(1.0, (until - self._now()).total_seconds())
            message = f"Too many attempts to sign in at Garmin; try again in {in_words(wait)}."
            raise Failure(Reason.RATE_LIMITED, message, retry_after=wait)

    def _subjects(self, user_id: UUID, username: str) -> list[bytes]:
        return [self._digest("user", str(user_id)), self._digest("name", username.casefold())]

    def _digest(self, *parts: str) -> bytes:
        return hmac.digest(self._secret, hashlib.sha256("\0".join(("garmin", *parts)).encode()).digest(), "sha256")


@contextmanager
def _in_words() -> Iterator[None]:
    """What Garmin said becomes a refusal that a phone understands."""
    try:
        yield
    except WrongCredentials:
        raise Failure(Reason.INVALID_CREDENTIALS, "Invalid Garmin credentials provided.") from None
    except MfaWrong:
        raise Failure(Reason.INVALID_CREDENTIALS, "Invalid Garmin MFA code provided.") from None
    except SignInLost:
        message = "This sign-in at Garmin is over; begin again with POST /api/garmin/login."
        raise Failure(Reason.INVALID_CREDENTIALS, message) from None
    except RateLimited as limited:
        message = f"Garmin wants fewer sign-ins; try again in {in_words(limited.retry_after)}."
        raise Failure(Reason.RATE_LIMITED, message, retry_after=limited.retry_after) from None
    except GarminAway as away:
        message = "Garmin is not available; try again later."
        raise Failure(Reason.UNAVAILABLE, message, retry_after=away.retry_after) from None
    except GarminAnswer:
        message = "Garmin answered with what makes no sense; try again later."
        raise Failure(Reason.UNAVAILABLE, message, retry_after=NONSENSE_PAUSE) from None


def _check(name: str, text: str, longest: int) -> None:
    if not text:
        raise missing(name)
    if len(text) > longest:
        raise invalid(name, f"must be at most {longest} characters", "TOO_LONG")
    if "\x00" in text:
        raise invalid(name, "must not hold a NUL character", "INVALID_FORMAT")
