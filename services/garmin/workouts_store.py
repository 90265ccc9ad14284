"""Owns which training plans were sent to Garmin, and as which workouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from runtime.database import Database
from services.garmin.jobs_domain import Counts, ItemError
from services.garmin.jobs_store import ADVANCE, advance_values
from services.garmin.runs_domain import Ended, Taken
from services.garmin.workouts_domain import Sent

_SENT: Final = "SELECT plan_id, digest, workout_id, done, failed, job_id FROM garmin.workouts WHERE user_id = %s"
_RUN: Final = """
    SELECT user_id FROM garmin.jobs WHERE id = %(job_id)s AND runs = %(number)s AND status = 'in_progress' FOR SHARE"""


def _note(counts: str) -> str:
    return f"""
        WITH counted AS ({counts})
        INSERT INTO garmin.workouts (user_id, plan_id, digest, workout_id, done, failed, job_id)
        SELECT user_id, %(plan_id)s, %(digest)s, %(workout_id)s, %(is_done)s, %(has_failed)s, %(job_id)s FROM counted
        ON CONFLICT (user_id, plan_id) DO UPDATE SET
            digest = excluded.digest, workout_id = excluded.workout_id, done = excluded.done, failed = excluded.failed,
            job_id = excluded.job_id"""  # noqa: S608  # of constants


# Together with how far the synchronization has got, so that no item is counted twice or left out.
_NOTE: Final = _note(ADVANCE)
_NOTE_SENT: Final = _note(_RUN)
_FORGET: Final = f"""
    WITH counted AS ({ADVANCE})
    DELETE FROM garmin.workouts USING counted
    WHERE workouts.user_id = counted.user_id AND workouts.plan_id = %(plan_id)s"""  # noqa: S608  # of constants


class WorkoutStore:
    """Workouts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sent(self, user_id: UUID) -> Mapping[str, Sent]:
        """All of a user's, by plan."""
        async with self._database.statements() as statements:
            rows = await (await statements.connection.execute(_SENT, [user_id], prepare=True)).fetchall()
        return {
            row["plan_id"]: Sent(
                digest=row["digest"],
                workout_id=row["workout_id"],
                done=row["done"],
                failed=row["failed"],
                job_id=row["job_id"],
            )
            for row in rows
        }

    async def note(self, run: Taken, plan_id: str, sent: Sent, counts: Counts, error: ItemError | None) -> None:
        """Notes what became of a plan, and that the synchronization is one item further. Raises Ended."""
        await self._write(_NOTE, {**advance_values(run, counts, [error] if error else []), **_values(plan_id, sent)})

    async def note_sent(self, run: Taken, plan_id: str, sent: Sent) -> None:
        """Notes which workout a plan has become, before anything else is done about it. Raises Ended."""
        await self._write(_NOTE_SENT, {"job_id": run.job.id, "number": run.number, **_values(plan_id, sent)})

    async def forget(self, run: Taken, plan_id: str) -> None:
        """Notes that a plan is neither here nor there any more. Raises Ended."""
        await self._write(_FORGET, {**advance_values(run, Counts(), done=1), "plan_id": plan_id})

    async def _write(self, statement: str, values: dict[str, Any]) -> None:
        async with self._database.statements() as statements:
            if not (await statements.connection.execute(statement, values, prepare=True)).rowcount:
                raise Ended


def _values(plan_id: str, sent: Sent) -> dict[str, Any]:
    return {
        "plan_id": plan_id,
        "digest": sent.digest,
        "workout_id": sent.workout_id,
        "is_done": sent.done,
        "has_failed": sent.failed,
    }
