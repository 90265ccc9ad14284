"""Owns the formulas of sync health: pure functions of what was counted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.health.counts import Counts

# What a device can have for syncs that went well, for having synced lately, and for having no conflicts.
OUTCOME_POINTS: Final = 60.0
RECENCY_POINTS: Final = 20.0
CONFLICT_POINTS: Final = 20.0
# A device that has not synced for so long has no points for it.
RECENCY_HOURS: Final = 24.0
PERFECT: Final = 100.0
_DECIMALS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What there is of a tenant in a window."""

    counts: Counts
    devices: int
    """Those that synced."""
    score: float | None
    """The average of those devices; None: there are none."""
    dropped: int
    """Outcomes of all tenants that reporters had no room for."""


@dataclass(frozen=True, kw_only=True)
class SyncMetrics:
    """The figures as they are shown and judged: rounded, so that both are about the same number."""

    success_rate: float
    conflict_rate: float
    avg_sync_duration_ms: float
    failed_syncs_per_minute: float
    upload_abandonment_rate: float
    avg_device_health_score: float
    total_syncs: int
    active_devices: int
    dropped_outcomes: int


def metrics_of(figures: Figures, hours: int) -> SyncMetrics:
    """The metrics of a window of so many hours."""
    counts = figures.counts
    return SyncMetrics(
        success_rate=rounded(success_rate(counts)),
        conflict_rate=rounded(conflict_rate(counts)),
        avg_sync_duration_ms=rounded(avg_sync_duration_ms(counts)),
        failed_syncs_per_minute=rounded(failed_syncs_per_minute(counts, hours)),
        upload_abandonment_rate=rounded(upload_abandonment_rate(counts)),
        avg_device_health_score=rounded(PERFECT if figures.score is None else figures.score),
        total_syncs=counts.syncs,
        active_devices=figures.devices,
        dropped_outcomes=figures.dropped,
    )


def rounded(value: float) -> float:
    """To two decimals: the published example of a device shows 95.5 for what is 95.503 after 4.34 hours."""
    return round(value, _DECIMALS)


def success_rate(counts: Counts) -> float:
    """Syncs that did not fail, per cent; 100 without any. As the published API names it: `success_rate`."""
    return _per_cent(counts.syncs - counts.failed_syncs, counts.syncs, without=PERFECT)


def conflict_rate(counts: Counts) -> float:
    """Conflicts among pushed changes, per cent; 0 without any. As `conflict_rate_pct` of the log of conflicts."""
    return _per_cent(counts.conflicts, counts.items)


def avg_sync_duration_ms(counts: Counts) -> float:
    """The mean of all syncs, failed ones too; 0 without any. As the published API names it."""
    return counts.duration_us / counts.syncs / 1000 if counts.syncs else 0.0


def failed_syncs_per_minute(counts: Counts, hours: int) -> float:
    """Failed syncs over all minutes of the window, also those without any. As the published API names it."""
    return counts.failed_syncs / (hours * 60)


def upload_abandonment_rate(counts: Counts) -> float:
    """Uploads that were abandoned among those that ended, per cent; 0 without any. As the published API names it."""
    return _per_cent(counts.uploads_abandoned, counts.uploads_completed + counts.uploads_abandoned)


def device_score(counts: Counts, last_sync_time: datetime | None, now: datetime) -> float:
    """0 to 100; 100 for a device that never synced.

    The published example, 1250 syncs with 10 failed and 25 conflicts, has 99.12 at once, 95.5 after 4.34 hours and
    79.12 from 24 hours on: three parts of 60, 20 and 20 points. `devices_store.SCORE` is the same in SQL.
    """
    if not counts.syncs or last_sync_time is None:
        return PERFECT
    hours = max(0.0, (now - last_sync_time).total_seconds() / 3600)
    good = (counts.syncs - counts.failed_syncs) * OUTCOME_POINTS / counts.syncs
    recent = max(0.0, RECENCY_POINTS - hours / RECENCY_HOURS * RECENCY_POINTS)
    peaceful = max(0.0, CONFLICT_POINTS - counts.conflicts * CONFLICT_POINTS / counts.syncs)
    return good + recent + peaceful


def _per_cent(part: int, whole: int, *, without: float = 0.0) -> float:
    return part * 100 / whole if whole else without
