"""Owns which activities are brought from Garmin: new and changed ones, each recording once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from runtime.errors import Failure, Reason
from runtime.telemetry import logger
from services.garmin.connect import Activity, GarminAnswer, GarminRefused, GarminSession
from services.garmin.jobs_domain import Counts, ItemError, JobType
from services.garmin.neighbours import AddedActivity
from services.garmin.runs_domain import Taken, each

if TYPE_CHECKING:
    from uuid import UUID

    from services.garmin.runs_domain import Store as RunStore

FIRST_DAYS: Final = 90
# Devices upload late, and people rename what they did last week: so much of what was seen is looked at again.
OVERLAP: Final = timedelta(days=14)
PAGE: Final = 100
AT_ONCE: Final = 4
# As AddActivity; what is larger need not cross the mesh to be refused.
MAX_BYTES: Final = 50 * 1024 * 1024
# What concerns this one recording and no other.
_OF_THE_ITEM: Final = {Reason.FIELD_INVALID, Reason.TOO_LARGE, Reason.TIER_LIMIT, Reason.MALFORMED_REQUEST}


class Outcome(StrEnum):
    """What became of an activity."""

    CREATED = "created"
    DUPLICATE = "duplicate"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """An activity that was dealt with."""

    marker: str
    """As Garmin listed it then."""
    outcome: Outcome
    activity_id: str
    """Here; empty when it failed."""
    job_id: UUID


class Store(Protocol):
    """services.garmin.activities_store.ActivityStore."""

    async def known(self, user_id: UUID, garmin_ids: Sequence[str]) -> Mapping[str, Known]: ...
    async def note(
        self, run: Taken, activity: Activity, outcome: Outcome, activity_id: str, error: ItemError | None
    ) -> None: ...


AddActivity = Callable[["UUID", str, bytes], Awaitable[AddedActivity]]


class Activities:
    """Brings activities."""

    def __init__(self, runs: RunStore, store: Store, add_activity: AddActivity, *, now: Callable[[], datetime]) -> None:
        """`add_activity`: Neighbours.add_activity."""
        self._runs = runs
        self._store = store
        self._add_activity = add_activity
        self._now = now

    async def bring(self, run: Taken, session: GarminSession, check: Callable[[], None]) -> date | None:
        """Brings what is new or changed; returns the day until which all is known. As Work."""
        job, today = run.job, self._now().date()
        unknown_since = await self._unknown_since(run, today)
        since = job.options.since or unknown_since
        listed = await self._listed(session, since, check)
        known = await self._store.known(job.user_id, list(listed))
        waiting = [one for one in listed.values() if not self._is_done(run, one, known.get(one.id))]
        await self._runs.count(run, len(listed), _counts(run, listed, known))

        async def bring_one(activity: Activity) -> None:
            check()
            await self._bring_one(run, session, activity)

        await each(waiting, bring_one, at_once=AT_ONCE)
        return today if since <= unknown_since else None

    async def _unknown_since(self, run: Taken, today: date) -> date:
        """From which day on something may be new; by force, all of the first days is."""
        first, last = today - timedelta(days=FIRST_DAYS), await self._runs.cursor(run.job.user_id, JobType.ACTIVITIES)
        if last is None:
            return first
        return min(first, last - OVERLAP) if run.job.options.force else last - OVERLAP

    async def _listed(self, session: GarminSession, since: date, check: Callable[[], None]) -> Mapping[str, Activity]:
        """All of them by id, newest first; one that moves to another page while they are read is there once."""
        listed: dict[str, Activity] = {}
        start = 0
        while True:
            check()
            page = await session.activities(start, since, PAGE)
            before = len(listed)
            listed.update((one.id, one) for one in page)
            start += PAGE
            if len(page) < PAGE or len(listed) == before:  # or it is the same page for ever
                return listed

    def _is_done(self, run: Taken, activity: Activity, known: Known | None) -> bool:
        """Whether it needs nothing. What failed for good is tried again when it has changed, or by force."""
        if known is None or known.marker != activity.marker:
            return False
        return known.job_id == run.job.id or not run.job.options.force

    async def _bring_one(self, run: Taken, session: GarminSession, activity: Activity) -> None:
        try:
            original = await session.download_original(activity.id)
            if len(original.content) > MAX_BYTES:
                raise Failure(Reason.TOO_LARGE, f"The recording is larger than {MAX_BYTES // 2**20} MiB.")
            filename = f"garmin-{activity.id}.{original.format}"
            added = await self._add_activity(run.job.user_id, filename, original.content)
        except GarminRefused as error:
            await self._fail(run, activity, str(error) or "Garmin has no recording of it.")
        except GarminAnswer as error:
            logger().warning("an activity cannot be read", activity=activity.id, error=repr(error))
            await self._fail(run, activity, "What Garmin has of it cannot be read.")
        except Failure as failure:
            if failure.reason not in _OF_THE_ITEM:
                raise
            await self._fail(run, activity, failure.message)
        else:
            outcome = Outcome.CREATED if added.created else Outcome.DUPLICATE
            await self._store.note(run, activity, outcome, added.id, None)

    async def _fail(self, run: Taken, activity: Activity, message: str) -> None:
        await self._store.note(run, activity, Outcome.FAILED, "", ItemError(activity.id, message))


def _counts(run: Taken, listed: Mapping[str, Activity], known: Mapping[str, Known]) -> Counts:
    """What was done before this run: by earlier ones of the same synchronization, and by earlier synchronizations."""
    outcomes = []
    for one in listed.values():
        before = known.get(one.id)
        if before is None or before.marker != one.marker:
            continue
        if before.job_id == run.job.id:
            outcomes.append(before.outcome)
        elif not run.job.options.force:
            outcomes.append(Outcome.DUPLICATE)
    return Counts(
        created=outcomes.count(Outcome.CREATED),
        duplicates=outcomes.count(Outcome.DUPLICATE),
        failed=outcomes.count(Outcome.FAILED),
    )
