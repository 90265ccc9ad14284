"""Owns measurements: what counts as one, when it took place, and which are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final

from runtime import paging
from runtime.call import IdempotencyKey, Principal
from runtime.clock import canonical_time, parse_moment, parse_time, plausible
from runtime.errors import Failure, invalid
from services.sessions.records_domain import Prepared, Record, place_of
from services.sessions.typed_domain import Result, Stored, Submitted, TypedRecords

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.metrics_store import MetricStore
    from services.sessions.records_store import RecordStore

DOMAIN: Final = "health_metric"
FIELD: Final = "health_metrics"
MAX_TYPE_CHARS: Final = 64
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A stretch of a list."""

    records: list[Record]
    next_token: str
    """Empty on the last page."""


class HealthMetrics:
    """Measurements as typed views on records of domain `health_metric`."""

    def __init__(
        self, store: RecordStore, metrics: MetricStore, domains: Domains, *, now: Callable[[], datetime]
    ) -> None:
        self._records = TypedRecords(store, domains, DOMAIN, is_named_by_content=_has_time, now=now)
        self._metrics = metrics

    async def save(
        self, caller: Principal, items: Sequence[Submitted | Failure], key: IdempotencyKey | None
    ) -> list[Result]:
        """Stores each measurement; a bad one is only its own result's failure."""
        return await self._records.save(caller, items, key, field=FIELD)

    async def save_one(self, caller: Principal, item: Submitted, key: IdempotencyKey | None) -> Stored:
        """Stores one. Raises Failure: FIELD_MISSING, FIELD_INVALID, SYNC_CONFLICT."""
        return await self._records.save_one(caller, item, key)

    async def page(self, caller: Principal, type: str, start: str, end: str, size: int, token: str) -> Page:
        """The caller's, newest first, in `start` <= time < `end`; empty: no bound. Raises Failure(FIELD_INVALID)."""
        if len(type) > MAX_TYPE_CHARS or "\x00" in type:
            raise invalid("type", f"must be at most {MAX_TYPE_CHARS} characters", "INVALID_FORMAT")
        limit, before = paging.page_size(size), paging.decode_token(token)
        found = await self._metrics.page(
            caller.user_id,
            limit=limit + 1,
            type=type or None,
            start=parse_moment("from", start) if start else None,
            end=_end(end) if end else None,
            before=before,
        )
        return Page(records=found[:limit], next_token=paging.next_token(found, limit, place_of))


def prepare(data: dict[str, Any], now: datetime) -> Prepared:
    """What is stored of checked data: its time in one spelling. One that tells no time took place when it came."""
    happened = now
    if "calendar_date" in data:
        offset = timedelta(minutes=int(data.get("zone_offset_minutes", 0)))
        midnight = datetime.combine(parse_date("calendar_date", data["calendar_date"]), time(tzinfo=UTC))
        happened = plausible("calendar_date", midnight, now) - offset
    if "timestamp" in data:
        happened = plausible("timestamp", parse_time("timestamp", data["timestamp"]), now)
        data = {**data, "timestamp": canonical_time(data["timestamp"], happened)}
    return Prepared(data, happened)


def parse_date(field: str, text: str) -> date:
    """A day of the calendar. Raises Failure(FIELD_INVALID) naming `field`."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid(field, "must be a date such as 2026-02-26", "INVALID_FORMAT") from None


def _end(text: str) -> datetime | None:
    """The moment before which measurements are meant: of a date, the end of the day."""
    end = parse_moment("to", text)
    if len(text) != len("2026-02-26"):
        return end
    return end + _DAY if end.date() < date.max else None


def _has_time(data: dict[str, Any]) -> bool:
    """Two measurements that tell no time may be two though they are alike."""
    return "timestamp" in data or "calendar_date" in data
