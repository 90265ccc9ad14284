"""Owns how well a tenant's phones sync: the figures of a window, what is alarming about them, and their course."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal, cast
from uuid import UUID

from runtime.call import Principal
from runtime.errors import invalid, missing
from runtime.ids import parse_uuid
from services.health.access import tenant_of
from services.health.alerts_domain import Alert, HealthStatus, Thresholds, status_of
from services.health.counts import Counts
from services.health.outcomes_domain import check_device_id, is_domain
from services.health.sync_health_metrics import SyncMetrics, metrics_of

if TYPE_CHECKING:
    from services.health.sync_health_store import SyncHealthStore

Step = Literal["minute", "hour", "day"]

MAX_HOURS: Final = 2160
MAX_POINT_HOURS: Final = 17_520
MAX_POINTS: Final = 720
# How far back each step reaches, in hours, and how many of it make an hour; the finest first.
_STEPS: Final = {"minute": (48, 60.0), "hour": (2160, 1.0), "day": (MAX_POINT_HOURS, 1 / 24)}
_LENGTHS: Final = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class SyncHealthReport:
    """The figures of a window, judged."""

    metrics: SyncMetrics
    alerts: Sequence[Alert]

    @property
    def status(self) -> HealthStatus:
        """What the alerts come to."""
        return status_of(self.alerts)


@dataclass(frozen=True, kw_only=True)
class SyncPoint:
    """What happened in one minute, hour or day."""

    time: datetime
    """Its start, UTC."""
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Course:
    """What points are asked for."""

    tenant_id: int
    hours: int
    step: str
    """Empty: the finest with at most MAX_POINTS points."""
    domain: str
    """Empty: all."""
    user_id: str
    device_id: str


class SyncHealth:
    """Reads figures."""

    def __init__(self, store: SyncHealthStore, thresholds: Thresholds, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._thresholds = thresholds
        self._now = now

    async def get(self, caller: Principal, tenant_id: int, hours: int) -> SyncHealthReport:
        """The figures of the last hours. Raises Failure: FIELD_INVALID, FORBIDDEN."""
        return await self.report(tenant_of(caller, tenant_id), hours_of(hours))

    async def report(self, tenant_id: int, hours: int) -> SyncHealthReport:
        """The same for whoever may have it."""
        now = self._now()
        metrics = metrics_of(await self._store.figures(tenant_id, _since(now, hours, "minute"), now), hours)
        return SyncHealthReport(metrics=metrics, alerts=self._thresholds.judge(tenant_id, metrics, now))

    async def latest_points(self, tenant_id: int) -> list[SyncPoint]:
        """The points of the current minute and the one before."""
        since = start_of(self._now(), "minute") - _LENGTHS["minute"]
        return await self._store.points(tenant_id, since, "minute", "")

    async def points(self, caller: Principal, course: Course) -> tuple[Step, list[SyncPoint]]:
        """The figures over time, oldest first, and what each point is of.

        Raises Failure: FIELD_INVALID, FIELD_MISSING, FORBIDDEN.
        """
        tenant_id = tenant_of(caller, course.tenant_id)
        hours = hours_of(course.hours, MAX_POINT_HOURS)
        if course.user_id or course.device_id:
            return "hour", await self._points_of_device(tenant_id, hours, course)
        if not is_domain(course.domain):
            raise invalid("domain", "is no name of a domain", "INVALID_FORMAT")
        step = _step_of(course.step, hours)
        return step, await self._store.points(tenant_id, _since(self._now(), hours, step), step, course.domain)

    async def _points_of_device(self, tenant_id: int, hours: int, course: Course) -> list[SyncPoint]:
        if not course.device_id:
            raise missing("device_id")
        user_id = UUID(parse_uuid("user_id", course.user_id))
        check_device_id("device_id", course.device_id)
        if course.step not in ("", "hour"):
            raise invalid("step", "must be hour for a device")
        if course.domain:
            raise invalid("domain", "must be empty for a device")
        since = _since(self._now(), hours, "hour")
        return await self._store.points_of_device(tenant_id, user_id, course.device_id, since)


def hours_of(asked: int, most: int = MAX_HOURS) -> int:
    """The hours of a window; 0 means 1. Raises Failure(FIELD_INVALID)."""
    if not 0 <= asked <= most:
        raise invalid("hours", f"must be 1 to {most}")
    return asked or 1


def start_of(time: datetime, step: Step) -> datetime:
    """The start of the minute, hour or day, UTC."""
    return time - (time - _EPOCH) % _LENGTHS[step]


def _since(now: datetime, hours: int, step: Step) -> datetime:
    """The start of a window that ends with the step that is under way, and is `hours` long with it."""
    length = _LENGTHS[step]
    return start_of(now, step) + length - max(length, timedelta(hours=hours))


def _step_of(asked: str, hours: int) -> Step:
    if not asked:
        asked = next((name for name, (most, per_hour) in _STEPS.items() if _fits(hours, most, per_hour)), "day")
    if asked not in _STEPS:
        raise invalid("step", "must be minute, hour or day", "INVALID_FORMAT")
    most, _ = _STEPS[asked]
    if hours > most:
        raise invalid("step", f"reaches {most} hours back when it is {asked}")
    return cast(Step, asked)


def _fits(hours: int, most: int, per_hour: float) -> bool:
    return hours <= most and hours * per_hour <= MAX_POINTS
