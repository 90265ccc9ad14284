"""Owns the sums over a user's stored sessions."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from services.sessions.records_domain import SESSION_DOMAINS
from services.sessions.records_store import records
from services.sessions.stats_domain import Derived

_sessions: Final = sa.and_(
    records.c.user_id == bindparam("user_id"),
    records.c.domain.in_([sa.literal_column(f"'{domain}'") for domain in SESSION_DOMAINS]),
)


def _sum(*names: str) -> sa.ColumnElement[float]:
    value = sa.func.coalesce(*(records.c.data[name].astext.cast(sa.Numeric) for name in names), 0)
    return sa.func.coalesce(sa.func.sum(value).filter(~records.c.deleted), 0).cast(sa.Double)


_TOTALS: Final = sa.select(
    sa.func.count().filter(~records.c.deleted).label("total_sessions"),
    # Recorded sessions name their length in full; exercises and puzzles call it duration.
    _sum("total_duration_seconds", "duration").label("total_duration_seconds"),
    _sum("total_distance_meters").label("total_distance_meters"),
    _sum("total_calories").label("total_calories"),
    _sum("xp_earned").label("total_xp"),
    sa.func.max(records.c.update_time).label("update_time"),
).where(_sessions)
_DAYS: Final = (
    sa.select(sa.func.timezone("UTC", records.c.happen_time).cast(sa.Date).label("day"))
    .where(_sessions, ~records.c.deleted, records.c.happen_time.is_not(None))
    .distinct()
    .order_by(sa.desc("day"))
)


class StatsStore:
    """Sums over records in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def derived(self, user_id: UUID) -> Derived:
        """What the user's live sessions add up to."""
        async with self._database.statements() as statements:
            sums = dict(await statements.one(_TOTALS, user_id=user_id) or {})
            days = await statements.all(_DAYS, user_id=user_id)
        update_time = sums.pop("update_time", None)
        return Derived(totals=sums, days=[row["day"] for row in days], update_time=update_time)
