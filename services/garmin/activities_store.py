"""Owns which of Garmin's activities were dealt with, and as what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from runtime.database import Database
from services.garmin.activities_domain import Known, Outcome
from services.garmin.connect import Activity
from services.garmin.jobs_domain import Counts, ItemError
from services.garmin.jobs_store import ADVANCE, advance_values
from services.garmin.runs_domain import Ended, Taken

_KNOWN: Final = """
    SELECT garmin_id, marker, outcome, activity_id, job_id FROM garmin.activities
    WHERE user_id = %s AND garmin_id = ANY(%s)"""
# Together with how far the synchronization has got, so that no item is counted twice or left out.
_NOTE: Final = f"""
    WITH advanced AS ({ADVANCE})
    INSERT INTO garmin.activities (user_id, garmin_id, marker, outcome, activity_id, job_id)
    SELECT user_id, %(garmin_id)s, %(marker)s, %(outcome)s, %(activity_id)s, %(job_id)s FROM advanced
    ON CONFLICT (user_id, garmin_id) DO UPDATE SET
        marker = excluded.marker, outcome = excluded.outcome, activity_id = excluded.activity_id,
        job_id = excluded.job_id"""  # noqa: S608  # of constants
_COUNTED: Final = {
    Outcome.CREATED: Counts(created=1),
    Outcome.DUPLICATE: Counts(duplicates=1),
    Outcome.FAILED: Counts(failed=1),
}


class ActivityStore:
    """Garmin's activities in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, user_id: UUID, garmin_ids: Sequence[str]) -> Mapping[str, Known]:
        """Those of `garmin_ids` that were dealt with, by their ids."""
        async with self._database.statements() as statements:
            found = await statements.connection.execute(_KNOWN, [user_id, list(garmin_ids)])
            rows = await found.fetchall()
        return {
            row["garmin_id"]: Known(
                marker=row["marker"],
                outcome=Outcome(row["outcome"]),
                activity_id=row["activity_id"],
                job_id=row["job_id"],
            )
            for row in rows
        }

    async def note(
        self, run: Taken, activity: Activity, outcome: Outcome, activity_id: str, error: ItemError | None
    ) -> None:
        """Notes what became of one, and that the synchronization is one item further. Raises Ended."""
        values = {
            **advance_values(run, _COUNTED[outcome], [error] if error else []),
            "garmin_id": activity.id,
            "marker": activity.marker,
            "outcome": outcome,
            "activity_id": activity_id,
        }
        async with self._database.statements() as statements:
            if not (await statements.connection.execute(_NOTE, values, prepare=True)).rowcount:
                raise Ended
