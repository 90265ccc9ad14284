"""Owns the two shapes of sync health: domain values and messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from satchel.health.v1 import health_pb2 as pb

from runtime.clock import to_timestamp
from services.health.alerts_domain import Alert
from services.health.sync_health_domain import Course, SyncHealthReport, SyncPoint
from services.health.sync_health_metrics import avg_sync_duration_ms, rounded
from services.health.watches_domain import Snapshot


def health_response(report: SyncHealthReport) -> pb.GetSyncHealthResponse:
    """The figures of a window, judged."""
    return pb.GetSyncHealthResponse(
        health_status=report.status,
        metrics=pb.SyncMetrics(**asdict(report.metrics)),
        alerts=alerts_to_pb(report.alerts),
    )


def watch_response(snapshot: Snapshot) -> pb.WatchSyncHealthResponse:
    """The figures as they were at a moment."""
    report = snapshot.report
    return pb.WatchSyncHealthResponse(
        health_status=report.status,
        metrics=pb.SyncMetrics(**asdict(report.metrics)),
        alerts=alerts_to_pb(report.alerts),
        points=[point_to_pb(point) for point in snapshot.points],
        server_time=to_timestamp(snapshot.time),
    )


def alerts_to_pb(alerts: Iterable[Alert]) -> list[pb.Alert]:
    """What is alarming."""
    return [
        pb.Alert(
            severity=alert.severity,
            metric=alert.metric,
            current_value=alert.current_value,
            threshold=alert.threshold,
            message=alert.message,
            timestamp=to_timestamp(alert.judge_time),
        )
        for alert in alerts
    ]


def course_from_pb(request: pb.ListSyncPointsRequest) -> Course:
    """What points are asked for."""
    return Course(
        tenant_id=request.tenant_id,
        hours=request.hours,
        step=request.step,
        domain=request.domain,
        user_id=request.user_id,
        device_id=request.device_id,
    )


def points_response(step: str, points: Sequence[SyncPoint]) -> pb.ListSyncPointsResponse:
    """The course of the figures."""
    return pb.ListSyncPointsResponse(step=step, points=[point_to_pb(point) for point in points])


def point_to_pb(point: SyncPoint) -> pb.SyncPoint:
    """What happened in one minute, hour or day."""
    counts = point.counts
    return pb.SyncPoint(
        time=to_timestamp(point.time),
        syncs=counts.syncs,
        failed_syncs=counts.failed_syncs,
        items=counts.items,
        conflicts=counts.conflicts,
        rejected=counts.rejected,
        avg_sync_duration_ms=rounded(avg_sync_duration_ms(counts)),
        uploads_completed=counts.uploads_completed,
        uploads_abandoned=counts.uploads_abandoned,
        upload_bytes=counts.upload_bytes,
    )
