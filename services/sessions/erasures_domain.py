"""Owns erasure: how all that a user has comes to an end, in steps that may be cut off anywhere and repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime.ids import parse_uuid

if TYPE_CHECKING:
    from services.sessions.erasures_store import ErasureStore

# Rows of one transaction, in which nobody else writes to the user's feed.
BATCH: Final = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """How many rows a call has erased, and how many records by domain with the calls before."""

    records: int
    conflicts: int
    push_counts: int
    idempotency_keys: int
    total_records: Mapping[str, int]


class Erasures:
    """Ends what users have."""

    def __init__(
        self,
        store: ErasureStore,
        *,
        now: Callable[[], datetime],
        batch: int = BATCH,
        committed: Callable[[UUID, Sequence[UUID]], None] = lambda *_: None,
    ) -> None:
        """`committed` is told whose feed has advanced."""
        self._store = store
        self._now = now
        self._batch = batch
        self._committed = committed

    async def erase(self, user_id: str) -> Erased:
        """Erases all that the user has, batch by batch; what was done stays done.

        First the mark, behind which no service stores anything more. Then records: what a push that was let in before
        has logged meanwhile goes with the rest.

        Raises Failure: FIELD_MISSING, FIELD_INVALID.
        """
        user = UUID(parse_uuid("user_id", user_id))
        await self._store.mark(user, self._now())
        return Erased(
            records=await self._all(lambda: self._end_records(user)),
            conflicts=await self._all(lambda: self._store.conflicts(user, self._batch)),
            push_counts=await self._all(lambda: self._store.push_counts(user, self._batch)),
            idempotency_keys=await self._all(lambda: self._store.idempotency_keys(user, self._batch)),
            total_records=await self._store.totals(user),
        )

    async def _end_records(self, user: UUID) -> int:
        ended = await self._store.records(user, self._batch, self._now())
        if ended:
            self._committed(user, [])
        return ended

    async def _all(self, erase: Callable[[], Awaitable[int]]) -> int:
        erased = 0
        while rows := await erase():
            erased += rows
        return erased
