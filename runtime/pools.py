"""Owns the metrics of pools of connections to PostgreSQL, named as OpenTelemetry names those of database clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import REGISTRY, Collector

Stats = Callable[[], Mapping[str, int]]
"""Of psycopg_pool: copies numbers, and so may be called from any thread."""

_POOL: Final = "db_client_connection_pool_name"


class _Pools(Collector):
    """The open pools of this process, asked when somebody scrapes, from that one's thread."""

    def __init__(self) -> None:
        self._open: list[tuple[str, Stats]] = []
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, name: str, stats: Stats) -> Iterator[None]:
        one = (name, stats)
        with self._lock:
            self._open.append(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(one)

    def describe(self) -> list[Metric]:
        return list(_families({}))

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            opened = list(self._open)
        found: dict[str, dict[str, int]] = {}
        for name, stats in opened:
            summed = found.setdefault(name, {})
            for what, number in stats().items():
                summed[what] = summed.get(what, 0) + number
        yield from _families(found)


def _families(pools: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    count = GaugeMetricFamily(
        "db_client_connection_count",
        "Connections to PostgreSQL by what they do.",
        labels=[_POOL, "db_client_connection_state"],
    )
    most = GaugeMetricFamily("db_client_connection_max", "Connections that the pool may open.", labels=[_POOL])
    waiting = GaugeMetricFamily(
        "db_client_connection_pending_requests", "Callers that wait for a connection.", labels=[_POOL]
    )
    timeouts = CounterMetricFamily(
        "db_client_connection_timeouts", "Callers that got no connection in time, or at once.", labels=[_POOL]
    )
    waited = CounterMetricFamily(
        "db_client_connection_wait_seconds", "Time that callers have waited for a connection.", labels=[_POOL]
    )
    for name, stats in pools.items():
        idle = stats.get("pool_available", 0)
        count.add_metric([name, "idle"], idle)
        count.add_metric([name, "used"], max(0, stats.get("pool_size", 0) - idle))
        most.add_metric([name], stats.get("pool_max", 0))
        waiting.add_metric([name], stats.get("requests_waiting", 0))
        timeouts.add_metric([name], stats.get("requests_errors", 0))
        waited.add_metric([name], stats.get("requests_wait_ms", 0) / 1000)
    yield from (count, most, waiting, timeouts, waited)


_pools: Final = _Pools()
REGISTRY.register(_pools)

pool_metrics: Final = _pools.opened
"""Counts a pool, by its name, for as long as the block runs."""
