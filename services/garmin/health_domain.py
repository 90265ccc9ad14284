"""Owns how Garmin's daily metrics become measurements in the user's feed, each under an id that stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson

from runtime.clock import format_time
from runtime.errors import Failure, Reason
from runtime.mesh import RecordToStore, StoreReceipt
from runtime.telemetry import logger
from services.garmin.connect import DailyMetric, GarminAnswer, GarminRefused, GarminSession
from services.garmin.jobs_domain import Counts, ItemError, JobType, last_day
from services.garmin.runs_domain import Taken

if TYPE_CHECKING:
    from uuid import UUID

    from services.garmin.runs_domain import Store as RunStore

DOMAIN: Final = "health_metric"
SOURCE: Final = "garmin"
FIRST_DAYS: Final = 30
# A day that was not over, and a night that a watch told of late, are looked at again.
OVERLAP: Final = timedelta(days=3)
# Asked at the same time, and stored in one call; fewer where there are few, for the progress to be seen.
DAYS_AT_ONCE: Final = 4
# Several of a day are several measurements.
_MANY_A_DAY: Final = {"weight"}

StoreRecords = Callable[["UUID", int, Sequence[RecordToStore]], Awaitable[list[StoreReceipt]]]


class Health:
    """Brings daily metrics."""

    def __init__(self, runs: RunStore, store_records: StoreRecords, *, now: Callable[[], datetime]) -> None:
        """`store_records`: SessionsClient.store_records."""
        self._runs = runs
        self._store_records = store_records
        self._now = now

    async def bring(self, run: Taken, session: GarminSession, check: Callable[[], None]) -> date | None:
        """Brings day after day; returns the one until which all is known. As Work."""
        today = self._now().date()
        unknown_since = await self._unknown_since(run, today)
        first = run.job.options.since or unknown_since
        # Somewhere on earth it may be tomorrow already.
        days = [first + timedelta(days=number) for number in range((last_day(self._now()) - first).days + 1)]
        if run.checkpoint:
            done = sum(day <= date.fromisoformat(run.checkpoint) for day in days)
        else:
            await self._runs.count(run, len(days), Counts())
            done = 0
        at_once = max(1, min(DAYS_AT_ONCE, len(days) // 12))
        for start in range(done, len(days), at_once):
            check()
            await self._bring_days(run, session, days[start : start + at_once])
        return today if first <= unknown_since else None

    async def _unknown_since(self, run: Taken, today: date) -> date:
        last = await self._runs.cursor(run.job.user_id, JobType.HEALTH)
        return last - OVERLAP if last else today - timedelta(days=FIRST_DAYS)

    async def _bring_days(self, run: Taken, session: GarminSession, days: Sequence[date]) -> None:
        found = await asyncio.gather(*(self._metrics(session, day) for day in days))
        records = {id_of(metric): metric for metrics, _ in found for metric in metrics}
        errors = [error for _, error in found if error]
        counts = Counts(failed=len(errors))
        if records:
            asked = [
                RecordToStore(domain=DOMAIN, id=id, data=orjson.dumps(record_of(one)).decode())
                for id, one in records.items()
            ]
            receipts = await self._store_records(run.job.user_id, run.job.tenant_id, asked)
            if any(one.reason == Reason.NOT_FOUND.name for one in receipts):  # erased meanwhile
                raise Failure(Reason.NOT_FOUND)
            statuses = [one.status for one in receipts]
            errors += [
                ItemError(str(metric.calendar_date), f"{metric.type}: {receipt.message}")
                for metric, receipt in zip(records.values(), receipts, strict=True)
                if receipt.status == "REJECTED"
            ]
            counts = Counts(
                created=statuses.count("APPLIED"), duplicates=statuses.count("DUPLICATE"), failed=len(errors)
            )
        await self._runs.advance(run, counts, errors, done=len(days), checkpoint=str(days[-1]))

    async def _metrics(self, session: GarminSession, day: date) -> tuple[list[DailyMetric], ItemError | None]:
        try:
            return await session.daily_metrics(day), None
        except GarminRefused as error:
            return [], ItemError(str(day), str(error) or "Garmin does not show this day.")
        except GarminAnswer as error:
            logger().warning("a day cannot be read", day=str(day), error=repr(error))
            return [], ItemError(str(day), "What Garmin has of this day cannot be read.")


def id_of(metric: DailyMetric) -> str:
    """The same for what is the same measurement, also when Garmin corrects its value later."""
    id = f"{SOURCE}-{metric.type}-{metric.calendar_date}"
    if metric.type in _MANY_A_DAY and metric.timestamp is not None:
        id += metric.timestamp.strftime("-%H%M%S")
    return id


def record_of(metric: DailyMetric) -> dict[str, Any]:
    """The data of a record of domain `health_metric`."""
    data: dict[str, Any] = {
        "type": metric.type,
        "value": metric.value,
        "unit": metric.unit,
        "calendar_date": str(metric.calendar_date),
        "source": SOURCE,
    }
    if metric.timestamp is not None:
        data["timestamp"] = format_time(metric.timestamp)
    if metric.zone_offset_minutes is not None:
        data["zone_offset_minutes"] = metric.zone_offset_minutes
    if metric.detail:
        data["detail"] = dict(metric.detail)
    return data
