"""Owns sessions at Garmin for users who linked an account: tokens come from the vault, and refreshed ones go back.

A refresh token may be good for one use. So nobody refreshes but who has the link's turn, over all replicas; whoever
comes second takes what the first has stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from runtime.errors import Failure, Reason
from runtime.telemetry import logger
from services.garmin.accounts_domain import Link
from services.garmin.breaker import GuardedGarmin
from services.garmin.connect import (
    Activity,
    DailyMetric,
    GarminAway,
    GarminSession,
    Original,
    RefreshableSession,
    SignedIn,
    SignInEnded,
    TokensExpired,
    Workout,
)
from services.garmin.credentials import Credentials, CredentialsClient

if TYPE_CHECKING:
    from services.garmin.accounts_store import AccountStore

T = TypeVar("T")

# Of a turn to refresh: longer than a refresh and its way to the vault take, so that only a dead process loses it.
TURN: Final = timedelta(seconds=150)
# Seconds between two looks at what another process does, and of all of them.
LOOK: Final = 0.2
PATIENCE: Final = 180.0
# Seconds that the end of the process waits, at most, for tokens to be stored.
CLOSING: Final = 20.0
# Seconds to wait after each time that the vault does not take refreshed tokens: the old ones may be worth nothing now.
STORE_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


class LinkedSessions:
    """Opens sessions by what the vault has."""

    def __init__(
        self,
        garmin: GuardedGarmin,
        store: AccountStore,
        credentials: CredentialsClient,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._garmin = garmin
        self._store = store
        self._credentials = credentials
        self._now = now
        self._refreshing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def session(self, user_id: UUID) -> AsyncIterator[GarminSession]:
        """A session of the user's linked account. Refreshed tokens are stored by the very call that refreshed them.

        Entering raises Failure(NOT_FOUND) when nothing is linked (or the user is gone), SignInEnded when the user has
        to link the account again, GarminAway when the auth service is away. A SignInEnded inside marks the link.
        """
        link = await self._store.get(user_id)
        if link is None:
            raise Failure(Reason.NOT_FOUND, "No Garmin account is linked.")
        if link.needs_sign_in:
            raise SignInEnded
        stored = await self.stored(link)
        try:
            opened = self._garmin.session(stored.tokens)
        except SignInEnded:
            await self._store.mark_ended(user_id, link.link_id)
            raise
        yield StoredSession(self, link, opened)

    async def close(self) -> None:
        """Waits a while for refreshed tokens to be stored: nothing else knows them."""
        if self._refreshing:
            await asyncio.wait(self._refreshing, timeout=CLOSING)

    async def stored(self, link: Link) -> Credentials:
        """What the vault has. Raises Failure(NOT_FOUND) when the account is gone, GarminAway."""
        try:
            found = await self._credentials.get(link.user_id)
        except Failure as failure:
            if failure.reason is Reason.UNAVAILABLE:
                raise GarminAway(1.0) from failure
            raise
        if found is None:
            raise Failure(Reason.NOT_FOUND, "No Garmin account is linked.")
        return found

    async def mark_ended(self, link: Link) -> None:
        """Garmin refuses what the link has, unless the user has linked again meanwhile."""
        await self._store.mark_ended(link.user_id, link.link_id)
        logger().info("a linked account needs a sign-in", user=link.user_id)

    async def renew(self, link: Link, session: RefreshableSession) -> RefreshableSession:
        """A session to go on with: refreshed here, or by whoever was first.

        Raises SignInEnded, RateLimited, GarminAway, GarminAnswer, Failure(NOT_FOUND).
        """
        old = session.tokens
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    stored = await self.stored(link)
                    if stored.tokens != old:
                        return self._garmin.session(stored.tokens)
                    now = self._now()
                    if await self._store.begin_refresh(link.user_id, link.link_id, now, now + TURN):
                        break
                    if await self._is_over(link):
                        raise SignInEnded
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise GarminAway from None
        await self._to_the_end(self._refresh(link, session, old))
        return self._garmin.session((await self.stored(link)).tokens) if session.tokens == old else session

    async def _refresh(self, link: Link, session: RefreshableSession, old: str) -> None:
        """Has the turn, and gives it back."""
        try:
            if (await self.stored(link)).tokens != old:
                return  # stored between the look and the turn
            try:
                fresh = await session.refresh()
            except SignInEnded:
                await self.mark_ended(link)
                raise
            await self._store_tokens(link, fresh)
        finally:
            await self._store.end_refresh(link.user_id, link.link_id)

    async def _store_tokens(self, link: Link, fresh: SignedIn) -> None:
        for pause in (*STORE_PAUSES, None):
            try:
                async with self._store.holding(link.user_id, link.link_id) as still_linked:
                    if still_linked:
                        await self._credentials.replace_tokens(link.user_id, fresh.tokens, fresh.expire_time)
                return
            except Exception as error:  # whatever is away, it may be back before the tokens are lost
                if pause is None:
                    logger().error("refreshed tokens could not be stored", user=link.user_id, error=repr(error))
                    raise GarminAway from error
            await asyncio.sleep(pause)

    async def _is_over(self, link: Link) -> bool:
        """Whether who had the turn has found that it is of no use, or the user has unlinked or linked another."""
        found = await self._store.get(link.user_id)
        return found is None or found.needs_sign_in or found.link_id != link.link_id

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, which goes on if nobody waits for it any more."""
        task = asyncio.create_task(work, name="refresh tokens")
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)
        await asyncio.shield(task)


class StoredSession:
    """A user's session that refreshes itself and stores what comes of it."""

    def __init__(self, sessions: LinkedSessions, link: Link, session: RefreshableSession) -> None:
        self._sessions = sessions
        self._link = link
        self._session = session
        self._renewing = asyncio.Lock()

    @property
    def tokens(self) -> str:
        """As GarminSession.tokens."""
        return self._session.tokens

    async def activities(self, start: int, since: date, limit: int) -> list[Activity]:
        """As GarminSession.activities."""
        return await self._ask(lambda session: session.activities(start, since, limit))

    async def download_original(self, activity_id: str) -> Original:
        """As GarminSession.download_original."""
        return await self._ask(lambda session: session.download_original(activity_id))

    async def daily_metrics(self, day: date) -> list[DailyMetric]:
        """As GarminSession.daily_metrics."""
        return await self._ask(lambda session: session.daily_metrics(day))

    async def workouts(self, start: int, limit: int) -> list[Workout]:
        """As GarminSession.workouts."""
        return await self._ask(lambda session: session.workouts(start, limit))

    async def upload_workout(self, workout: Mapping[str, Any]) -> str:
        """As GarminSession.upload_workout."""
        return await self._ask(lambda session: session.upload_workout(workout))

    async def schedule_workout(self, workout_id: str, day: date) -> None:
        """As GarminSession.schedule_workout."""
        await self._ask(lambda session: session.schedule_workout(workout_id, day))

    async def delete_workout(self, workout_id: str) -> None:
        """As GarminSession.delete_workout."""
        await self._ask(lambda session: session.delete_workout(workout_id))

    async def _ask(self, ask: Callable[[RefreshableSession], Awaitable[T]]) -> T:
        session, tokens = self._session, self._session.tokens
        try:
            return await ask(session)
        except TokensExpired:
            pass
        async with self._renewing:
            if self._session.tokens == tokens:  # nobody else was first, by this session or by another
                self._session = await self._sessions.renew(self._link, session)
            session = self._session
        try:
            return await ask(session)
        except TokensExpired:  # new ones are refused as well
            await self._sessions.mark_ended(self._link)
            raise SignInEnded from None
