"""Owns that what a deleted account has in other services is erased, whatever is away when it is deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from runtime.identity import ACCESS_TOKEN_SECONDS
from runtime.rounds import Rounds, pause_after
from runtime.telemetry import ERASURE_ERRORS, logger

if TYPE_CHECKING:
    from services.auth.deletions_store import DeletionStore
    from services.auth.erasures_store import ErasureStore

# After so long a replica that has taken an erasure up, and begun no further call for it, is believed to be gone; longer
# than any call.
CLAIM: Final = timedelta(seconds=45)
# After the first time it is done again: once when calls that were let in before every service knew of the deletion have
# ended, and once when the last access token is dead, for a service that could not be told meanwhile.
AGAIN_AFTER: Final = (timedelta(seconds=30), timedelta(seconds=ACCESS_TOKEN_SECONDS + 60))


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """A deleted account whose things are to be erased."""

    account_id: UUID
    delete_time: datetime
    attempts: int
    """Since it last succeeded."""


class Erasures:
    """Carries out what is due, one account after the other; any number of replicas may do it at once."""

    def __init__(
        self,
        store: ErasureStore,
        elsewhere: Sequence[Callable[[UUID], Awaitable[Mapping[str, Any]]]],
        *,
        receipts: DeletionStore,
        now: Callable[[], datetime],
    ) -> None:
        """Each of `elsewhere` ends everything of a user in one other service; it may be repeated.

        It answers what it has ended in all, this time and before; `receipts` are told.
        """
        self._store = store
        self._receipts = receipts
        self._elsewhere = elsewhere
        self._now = now
        self._rounds = Rounds(self.carry_out, name="carry out erasures")

    def look(self) -> None:
        """There is something new to erase."""
        self._rounds.look()

    async def carry_out(self) -> None:
        """Takes up all that is due; what fails is put off, longer each time. Raises when the database is away."""
        while erasure := await self._store.take(self._now(), CLAIM):
            began = self._now()
            if not await self._erased_everywhere(erasure):
                until = self._now() + pause_after(erasure.attempts)
                await self._store.put_off(erasure.account_id, until, attempts=erasure.attempts + 1)
                continue
            await self._receipts.done(erasure.account_id, self._now())
            again = next((time for after in AGAIN_AFTER if (time := erasure.delete_time + after) > began), None)
            if again is None:
                await self._store.finish(erasure.account_id)
                logger().info("erased an account", user=erasure.account_id)
            else:
                await self._store.put_off(erasure.account_id, again, attempts=0)

    async def _erased_everywhere(self, erasure: Erasure) -> bool:
        """Has each service erase what it has. False: some could not; what the others have has gone all the same."""
        account_id, failed = erasure.account_id, False
        for erase in self._elsewhere:
            await self._store.put_off(account_id, self._now() + CLAIM, attempts=erasure.attempts)
            try:
                await self._receipts.note(account_id, await erase(account_id))
            except Exception as error:  # whatever it was, it is tried again until it is done
                failed = True
                ERASURE_ERRORS.inc()
                logger().warning("cannot erase yet", user=account_id, error=repr(error))
        return not failed

    def running(self) -> AbstractAsyncContextManager[None]:
        """Carries out what falls due for as long as the block runs."""
        return self._rounds.running()
