"""Alerts: what alarms and what just does not, what several come to, and what an installation says instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runtime.config import ConfigError
from services.health.alerts_domain import Alert, read_thresholds, status_of
from services.health.counts import Counts
from services.health.sync_health_metrics import Figures, SyncMetrics, metrics_of
from tests.conftest import Edge
from tests.health.reports import message, new_tenant, reporting

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
WELL = metrics_of(Figures(counts=Counts(), devices=0, score=None, dropped=0), 1)


def judged(tenant_id: int = 1, overrides: Path | None = None, **given: float) -> list[Alert]:
    return read_thresholds(overrides).judge(tenant_id, replace(WELL, **given), NOW)


@pytest.mark.parametrize(
    ("metric", "good", "bad", "severity"),
    [
        ("success_rate", 95.0, 94.99, "critical"),
        ("failed_syncs_per_minute", 10.0, 10.01, "critical"),
        ("conflict_rate", 5.0, 5.01, "warning"),
        ("avg_sync_duration_ms", 500.0, 500.01, "warning"),
        ("upload_abandonment_rate", 20.0, 20.01, "warning"),
        ("avg_device_health_score", 70.0, 69.99, "warning"),
    ],
)
def test_a_threshold_itself_is_still_good(metric: str, good: float, bad: float, severity: str) -> None:
    assert judged(**{metric: good}) == []
    (alert,) = judged(**{metric: bad})
    assert (alert.metric, alert.severity, alert.current_value, alert.threshold) == (metric, severity, bad, good)
    assert alert.judge_time == NOW
    assert f"{bad:g}" in alert.message
    assert f"{good:g}" in alert.message


def test_every_metric_that_is_a_rate_has_an_alert() -> None:
    all_bad = SyncMetrics(
        success_rate=0,
        conflict_rate=100,
        avg_sync_duration_ms=1e6,
        failed_syncs_per_minute=1e6,
        upload_abandonment_rate=100,
        avg_device_health_score=0,
        total_syncs=1,
        active_devices=1,
        dropped_outcomes=0,
    )
    assert len(read_thresholds().judge(1, all_bad, NOW)) == 6


def test_no_alerts_are_healthy_one_or_two_degraded_and_three_critical() -> None:
    bad = {"success_rate": 1.0, "conflict_rate": 99.0, "avg_sync_duration_ms": 999.0, "upload_abandonment_rate": 99.0}
    found = [status_of(judged(**dict(list(bad.items())[:count]))) for count in range(5)]
    assert found == ["healthy", "degraded", "degraded", "critical", "critical"]


def written(directory: Path, content: Any) -> Path:
    file = directory / "alerts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_file_of_ones_own_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {
            "alerts": [{"metric": "conflict_rate", "above": 50, "severity": "critical"}],
            "tenants": {
                "7": [
                    {"metric": "success_rate", "below": 80, "severity": "warning"},
                    {"metric": "avg_sync_duration_ms", "severity": "off"},
                ]
            },
        },
    )
    bad = {"success_rate": 85.0, "conflict_rate": 49.0, "avg_sync_duration_ms": 900.0}
    assert [one.metric for one in judged(1, file, **bad)] == ["success_rate", "avg_sync_duration_ms"]
    assert judged(7, file, **bad) == []
    assert [(one.metric, one.severity) for one in judged(7, file, success_rate=79.0, conflict_rate=51.0)] == [
        ("success_rate", "warning"),
        ("conflict_rate", "critical"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"alert": []}',
        '{"alerts": {}}',
        '{"alerts": [{"metric": "success_rate", "below": 95}]}',
        '{"alerts": [{"metric": "nothing", "below": 95, "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "below": 95, "severity": "loud"}]}',
        '{"alerts": [{"metric": "success_rate", "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "below": 95, "above": 1, "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "below": "95", "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "below": NaN, "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "below": true, "severity": "warning"}]}',
        '{"alerts": [{"metric": "success_rate", "severity": "off"}, {"metric": "success_rate", "severity": "off"}]}',
        '{"tenants": {"x": []}}',
        '{"tenants": {"0": []}}',
        '{"tenants": {"-1": []}}',
        '{"tenants": []}',
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"^SATCHEL_ALERTS: .*alerts\.json cannot be read: "):
        read_thresholds(written(tmp_path, content))


def test_a_process_does_not_start_with_a_file_that_is_not_there(database_url: str, tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SATCHEL_HOME": str(tmp_path),
        "SATCHEL_DATABASE_URL": database_url,
        "SATCHEL_ALERTS": str(tmp_path / "missing.json"),
    }
    command = [sys.executable, "-m", "services.health"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == os.EX_CONFIG, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("satchel: SATCHEL_ALERTS: ")


async def test_a_tenants_own_thresholds_hold_over_the_wire(
    own_edge: Callable[..., Awaitable[Edge]], tmp_path: Path
) -> None:
    strict, other = new_tenant(), new_tenant()
    rules = [{"metric": "success_rate", "below": 100, "severity": "warning"}]
    edge = await own_edge(alerts=written(tmp_path, {"tenants": {str(strict): rules}}))
    found = {}
    async with reporting(edge) as reporter:
        for tenant_id in (strict, other):
            phone = await edge.phone(tenant_id=tenant_id)
            await reporter.report(message(tenant_id, syncs=100, failed_syncs=1))
            found[tenant_id] = (await phone.call("GET", "/api/v1/sync/health")).json()
    assert found[other]["alerts"] == []
    assert found[other]["health_status"] == "healthy"
    (alert,) = found[strict]["alerts"]
    assert alert.pop("timestamp")
    assert alert == {
        "severity": "warning",
        "metric": "success_rate",
        "current_value": 99,
        "threshold": 100,
        "message": "The success rate of syncs is 99 %, below 100 %.",
    }
    assert found[strict]["health_status"] == "degraded"
