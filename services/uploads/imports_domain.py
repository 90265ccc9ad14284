"""Owns archives of recordings that people bring along: what is in one, each by itself, with a receipt for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.call import Principal
from runtime.errors import Failure, Reason
from services.uploads.activities_domain import Added, Recording
from services.uploads.activity_summary import NO_ACTIVITY
from services.uploads.archives import ArchiveLimits, Contents, Found, own_name
from services.uploads.forms import handed_over
from services.uploads.spools import Spool
from services.uploads.uploads_domain import clean_name

if TYPE_CHECKING:
    from services.uploads.activities_domain import Activities
    from services.uploads.spools import Spools

# What is the recording's doing; any other refusal would meet the next one as well.
_ITS_OWN: Final = frozenset({Reason.FIELD_INVALID, Reason.FIELD_MISSING, Reason.TOO_LARGE, Reason.TIER_LIMIT})
# How often a recording is tried while a part of the server is busy or away.
TRIES: Final = 5


@dataclass(frozen=True, kw_only=True)
class ImportReceipt:
    """What became of one recording in an archive."""

    filename: str
    """Where it was in the archive, for people."""
    added: Added | None = None
    """None: nothing was stored of it."""
    failure: Failure | None = None
    """Why not."""

    @property
    def status(self) -> str:
        """created, duplicate, skipped (a recording of something else than an activity) or error."""
        if self.added is not None:
            return "created" if self.added.created else "duplicate"
        reasons = [one.reason for one in self.failure.violations] if self.failure else []
        return "skipped" if reasons == [NO_ACTIVITY] else "error"


@dataclass(kw_only=True)
class Imported:
    """What became of an archive."""

    receipts: list[ImportReceipt] = field(default_factory=list)
    ignored: int = 0
    """Files that are no recordings, by their names."""
    complete: bool = False
    """False: time was over; the same archive again goes on."""

    @property
    def created(self) -> int:
        """How many are new."""
        return self.count("created")

    def count(self, status: str) -> int:
        """How many receipts say so."""
        return sum(one.status == status for one in self.receipts)


class Imports:
    """Takes what is handed over as activities: one recording, or an archive of them."""

    def __init__(
        self,
        activities: Activities,
        spools: Spools,
        limits: ArchiveLimits,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._activities = activities
        self._spools = spools
        self._limits = limits
        self._monotonic = monotonic
        self._sleep = sleep

    def handed_over(
        self, caller: Principal, content_type: str, pieces: AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[Recording | Spool]:
        """What comes in a form, for as long as the block runs. Raises Failure as forms.handed_over."""
        return handed_over(content_type, pieces, self._spools.of(caller.user_id), self._limits.size)

    async def add(self, caller: Principal, handed: Recording | Spool) -> Added | Imported:
        """Stores what was not handed over before.

        Raises Failure: as Activities.add for a recording; for an archive FIELD_INVALID, TOO_LARGE, and UNAVAILABLE when
        the server does not get on with it, though what was stored by then stays.
        """
        if isinstance(handed, Recording):
            return await self._activities.add(caller, handed)
        until = self._monotonic() + self._limits.seconds
        contents = Contents(handed.file, self._limits, self._spools.temporary)
        imported, found = Imported(), contents.found()
        while (one := await asyncio.to_thread(_next, found)) is not None:
            imported.receipts.append(await self._add(caller, one, until))
            if self._monotonic() > until:
                break
        else:
            imported.complete = True
        imported.ignored = contents.ignored
        return imported

    async def _add(self, caller: Principal, found: Found, until: float) -> ImportReceipt:
        if found.failure is not None:
            return ImportReceipt(filename=found.name, failure=found.failure)
        recording = Recording(filename=_filename(found.name), data=found.data)
        for tries_left in reversed(range(TRIES)):
            try:
                return ImportReceipt(filename=found.name, added=await self._activities.add(caller, recording))
            except Failure as failure:
                if failure.reason in _ITS_OWN:
                    return ImportReceipt(filename=found.name, failure=failure)
                pause = failure.retry_after or 1.0
                # Not beyond the time of the call: the edge would end it without a word of this.
                if failure.reason is not Reason.UNAVAILABLE or not tries_left or self._monotonic() + pause > until:
                    raise
                await self._sleep(pause)
        raise AssertionError("the last try returns or raises")


def _next(found: Iterator[Found]) -> Found | None:
    # Not StopIteration, which no thread can hand over.
    return next(found, None)


def _filename(name: str) -> str:
    """What the file is called; empty when nothing of the name can be."""
    try:
        return clean_name(own_name(name))
    except Failure:
        return ""
