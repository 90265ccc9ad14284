"""Owns which training plans are sent to Garmin: new and changed ones, each as one workout, scheduled if it is dated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from runtime.errors import Failure, Reason
from services.garmin.connect import GarminRefused, GarminSession, Workout
from services.garmin.jobs_domain import Counts, ItemError
from services.garmin.neighbours import Plan
from services.garmin.runs_domain import Taken
from services.garmin.workout_steps import digest_of, plan_and_digest_of, tag_of, workout_of

if TYPE_CHECKING:
    from services.garmin.runs_domain import Store as RunStore

PAGE: Final = 100
# One that will never do better than this many: whoever has more has something else that misbehaves.
MAX_WORKOUTS: Final = 5000
_NO_JOB: Final = UUID(int=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What became of a plan."""

    digest: str
    """Of the version that was dealt with."""
    workout_id: str = ""
    """At Garmin; empty: it never got there."""
    done: bool
    """False: it is at Garmin, but what was to follow may be missing."""
    failed: bool = False
    job_id: UUID = _NO_JOB


class Store(Protocol):
    """services.garmin.workouts_store.WorkoutStore."""

    async def sent(self, user_id: UUID) -> Mapping[str, Sent]: ...
    async def note(self, run: Taken, plan_id: str, sent: Sent, counts: Counts, error: ItemError | None) -> None: ...
    async def note_sent(self, run: Taken, plan_id: str, sent: Sent) -> None: ...
    async def forget(self, run: Taken, plan_id: str) -> None: ...


Plans = Callable[["UUID"], Awaitable[Sequence[Plan]]]


class Workouts:
    """Sends plans."""

    def __init__(self, runs: RunStore, store: Store, plans: Plans) -> None:
        """`plans`: Neighbours.plans."""
        self._runs = runs
        self._store = store
        self._plans = plans

    async def send(self, run: Taken, session: GarminSession, check: Callable[[], None]) -> None:
        """Sends what is new or changed, and deletes there what was deleted here. As Work."""
        plans = {plan.id: plan for plan in await self._plans(run.job.user_id)}
        sent = await self._store.sent(run.job.user_id)
        waiting, before, total = [], [], 0
        for plan in plans.values():
            known = sent.get(plan.id)
            if plan.data is None and known is None:
                continue
            total += 1
            counted = _counted_before(run, plan, known)
            if counted is None:
                waiting.append(plan)
            else:
                before.append(counted)
        await self._runs.count(run, total, _sum(before))
        if not waiting:
            return
        # What a run that was killed had sent and not noted is found by its tag.
        theirs = await _by_plan(session, check)
        for plan in waiting:
            check()
            await self._send_one(run, session, plan, sent.get(plan.id), theirs.get(plan.id, []))

    async def _send_one(
        self, run: Taken, session: GarminSession, plan: Plan, known: Sent | None, theirs: Sequence[Workout]
    ) -> None:
        digest = digest_of(plan.id, plan.data or {})
        failed = Sent(
            digest=digest, workout_id=known.workout_id if known else "", done=True, failed=True, job_id=run.job.id
        )
        try:
            if plan.data is None:
                await _delete_all(session, theirs, known, keep="")
                await self._store.forget(run, plan.id)
                return
            workout = workout_of(plan.id, plan.data)
            sent = await self._stored(run, session, plan.id, digest, workout, theirs)
            await _schedule(session, sent.workout_id, plan.data)
            await _delete_all(session, theirs, known, keep=sent.workout_id)
        except Failure as failure:
            if failure.reason is not Reason.FIELD_INVALID:
                raise
            await self._store.note(run, plan.id, failed, Counts(failed=1), ItemError(plan.id, failure.message))
        except GarminRefused as error:
            message = str(error) or "Garmin does not take it."
            await self._store.note(run, plan.id, failed, Counts(failed=1), ItemError(plan.id, message))
        else:
            await self._store.note(run, plan.id, replace(sent, done=True), Counts(created=1), None)

    async def _stored(
        self,
        run: Taken,
        session: GarminSession,
        plan_id: str,
        digest: str,
        workout: Mapping[str, Any],
        theirs: Sequence[Workout],
    ) -> Sent:
        """Sees to it that the workout is there once, and that we know it."""
        tag = tag_of(plan_id, digest)
        there = next((one.id for one in theirs if one.description.endswith(tag)), None)
        id = there or await session.upload_workout(workout)
        sent = Sent(digest=digest, workout_id=id, done=False, job_id=run.job.id)
        await self._store.note_sent(run, plan_id, sent)
        return sent


def _counted_before(run: Taken, plan: Plan, known: Sent | None) -> Counts | None:
    """What the plan counts as without being sent; None: it is to be sent, or deleted there."""
    if known is None or not known.done or known.digest != digest_of(plan.id, plan.data or {}):
        return None
    if known.job_id == run.job.id:
        return Counts(failed=1) if known.failed else Counts(created=1)
    return None if known.failed or run.job.options.force else Counts(duplicates=1)


def _sum(counts: Sequence[Counts]) -> Counts:
    return Counts(
        created=sum(one.created for one in counts),
        duplicates=sum(one.duplicates for one in counts),
        failed=sum(one.failed for one in counts),
    )


async def _by_plan(session: GarminSession, check: Callable[[], None]) -> Mapping[str, list[Workout]]:
    """The workouts at Garmin that were made of plans, by plan."""
    found: dict[str, list[Workout]] = {}
    for start in range(0, MAX_WORKOUTS, PAGE):
        check()
        page = await session.workouts(start, PAGE)
        for workout in page:
            tagged = plan_and_digest_of(workout.description)
            if tagged is not None:
                found.setdefault(tagged[0], []).append(workout)
        if len(page) < PAGE:
            break
    return found


async def _schedule(session: GarminSession, workout_id: str, data: Mapping[str, Any]) -> None:
    if data.get("scheduled_date"):
        await session.schedule_workout(workout_id, date.fromisoformat(data["scheduled_date"]))


async def _delete_all(session: GarminSession, theirs: Sequence[Workout], known: Sent | None, *, keep: str) -> None:
    """Deletes all versions of a plan but one; with it goes its place in the calendar."""
    ids = {one.id for one in theirs} | ({known.workout_id} if known and known.workout_id else set())
    for id in sorted(ids - {keep}):
        await session.delete_workout(id)
