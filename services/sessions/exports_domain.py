"""Owns the export: all that a user has, read page by page, so that its size is nobody's burden."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID

from runtime.call import Principal
from runtime.clock import EARLIEST
from services.sessions.conflicts_domain import LoggedConflict, Scope

if TYPE_CHECKING:
    from services.sessions.conflicts_store import ConflictStore
    from services.sessions.feed_store import Entry, FeedStore

RECORDS_PER_PAGE: Final = 500
# A conflict holds two versions of a record, each up to 256 KiB.
CONFLICTS_PER_PAGE: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What an export begins with."""

    user_id: UUID
    export_time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What a whole export ends with: how much there was before it."""

    records: int
    conflicts: int


Item: TypeAlias = "Header | Entry | LoggedConflict | Footer"


class Exports:
    """Everything of one user."""

    def __init__(self, feeds: FeedStore, conflicts: ConflictStore, *, now: Callable[[], datetime]) -> None:
        self._feeds = feeds
        self._conflicts = conflicts
        self._now = now

    async def everything(self, caller: Principal) -> AsyncGenerator[Item]:
        """Header, records in the order of the feed, conflicts newest first, footer.

        A record that changes while the feed is read moves behind what was read, and comes again; none is missed.
        """
        yield Header(user_id=caller.user_id, export_time=self._now())
        records = conflicts = 0
        async for entry in self._records(caller):
            records += 1
            yield entry
        async for conflict in self._conflicts_of(caller):
            conflicts += 1
            yield conflict
        yield Footer(records=records, conflicts=conflicts)

    async def _records(self, caller: Principal) -> AsyncIterator[Entry]:
        position, has_more = 0, True
        while has_more:
            stretch = await self._feeds.after(caller.user_id, position, (), RECORDS_PER_PAGE)
            for entry in stretch.entries:
                yield entry
            position, has_more = stretch.position, stretch.has_more

    async def _conflicts_of(self, caller: Principal) -> AsyncIterator[LoggedConflict]:
        scope = Scope(tenant_id=caller.tenant_id, user_id=caller.user_id, domain="", since=EARLIEST)
        before: tuple[datetime, UUID] | None = None
        while True:
            page = await self._conflicts.page(scope, limit=CONFLICTS_PER_PAGE, before=before)
            for conflict in page:
                yield conflict
            if len(page) < CONFLICTS_PER_PAGE:
                return
            before = page[-1].create_time, page[-1].id
