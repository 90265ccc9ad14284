"""Owns what is alarming about a tenant's figures: thresholds, as shipped and as this installation wants them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, cast

from runtime.config import ConfigError
from services.health.sync_health_metrics import SyncMetrics

FILE: Final = Path(__file__).parent / "alerts.json"
# From so many alerts on it is critical, whatever each of them is.
CRITICAL_ALERTS: Final = 3

# What an alert may be about, in words, and in what it is counted.
_WORDS: Final = {
    "success_rate": ("The success rate of syncs", " %"),
    "conflict_rate": ("The rate of conflicts", " %"),
    "avg_sync_duration_ms": ("The average duration of a sync", " ms"),
    "failed_syncs_per_minute": ("The number of failed syncs per minute", ""),
    "upload_abandonment_rate": ("The rate of abandoned uploads", " %"),
    "avg_device_health_score": ("The average score of devices", ""),
}

Severity = Literal["critical", "warning"]
HealthStatus = Literal["healthy", "degraded", "critical"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a figure is alarming: beyond the threshold, which is itself still good."""

    metric: str
    """A field of SyncMetrics."""
    threshold: float
    above: bool
    """Whether it alarms above the threshold, or else below."""
    severity: Severity | None
    """None: never."""

    def alarms(self, value: float) -> bool:
        """Whether this value is alarming."""
        return self.severity is not None and (value > self.threshold if self.above else value < self.threshold)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What is alarming."""

    severity: Severity
    metric: str
    current_value: float
    threshold: float
    message: str
    judge_time: datetime


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The rules of every tenant."""

    rules: Mapping[str, Rule]
    """By metric: those of tenants that say nothing of it."""
    tenants: Mapping[int, Mapping[str, Rule]]

    def judge(self, tenant_id: int, metrics: SyncMetrics, now: datetime) -> list[Alert]:
        """What is alarming about a tenant's figures."""
        rules = {**self.rules, **self.tenants.get(tenant_id, {})}
        return [
            _alert(rule, value, rule.severity, now)
            for rule in rules.values()
            for value in (float(getattr(metrics, rule.metric)),)
            if rule.severity is not None and rule.alarms(value)
        ]


def status_of(alerts: Sequence[Alert]) -> HealthStatus:
    """What alerts come to: none is healthy, one or two are degraded, more are critical."""
    if not alerts:
        return "healthy"
    return "critical" if len(alerts) >= CRITICAL_ALERTS else "degraded"


def read_thresholds(overrides: Path | None = None, shipped: Path = FILE) -> Thresholds:
    """The shipped rules, with what `overrides` says in their place. Raises ConfigError when that cannot be read."""
    thresholds = Thresholds(rules=_rules(json.loads(shipped.read_bytes())["alerts"]), tenants={})
    if overrides is None:
        return thresholds
    try:
        said = json.loads(overrides.read_bytes())
        if unknown := set(said) - {"alerts", "tenants"}:
            raise ValueError(f"nothing is called {min(unknown)}")
        tenants = {_tenant(tenant): _rules(rules) for tenant, rules in said.get("tenants", {}).items()}
        return Thresholds(rules={**thresholds.rules, **_rules(said.get("alerts", []))}, tenants=tenants)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"SATCHEL_ALERTS: {overrides} cannot be read: {error!r}") from None


def _rules(said: list[dict[str, Any]]) -> dict[str, Rule]:
    if not isinstance(said, list):
        raise TypeError("alerts stand in a list")
    rules = [_rule(one) for one in said]
    found = {rule.metric: rule for rule in rules}
    if len(found) < len(rules):
        raise ValueError("there is one alert for each metric")
    return found


def _rule(said: dict[str, Any]) -> Rule:
    metric, severity = said["metric"], said["severity"]
    if metric not in _WORDS:
        raise ValueError(f"metric is one of {', '.join(_WORDS)}, not {metric}")
    if severity == "off":
        return Rule(metric=metric, threshold=0, above=True, severity=None)
    if severity not in ("critical", "warning"):
        raise ValueError(f"{metric}: severity is critical, warning or off")
    if ("above" in said) == ("below" in said):
        raise ValueError(f"{metric}: it alarms either above or below a number")
    above = "above" in said
    threshold = said["above" if above else "below"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{metric}: a threshold is a number")
    return Rule(metric=metric, threshold=float(threshold), above=above, severity=cast(Severity, severity))


def _tenant(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"a tenant is a whole number from 1, not {text}")
    return int(text)


def _alert(rule: Rule, value: float, severity: Severity, now: datetime) -> Alert:
    words, unit = _WORDS[rule.metric]
    side = "above" if rule.above else "below"
    return Alert(
        severity=severity,
        metric=rule.metric,
        current_value=value,
        threshold=rule.threshold,
        message=f"{words} is {value:g}{unit}, {side} {rule.threshold:g}{unit}.",
        judge_time=now,
    )
