"""Owns the statements that count what was reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from runtime.arrays import BigIntegers, Column, Integers, Texts, Times
from runtime.database import Database
from services.health.counts import NAMES
from services.health.outcomes_domain import CheckedReport, Outcome

# Devices that are known of one user; of more, nothing is kept but what they add to the tenant's figures.
MAX_DEVICES: Final = 100
COUNTS: Final = ", ".join(NAMES)
SUMS: Final = ", ".join(f"sum({name})::int8 AS {name}" for name in NAMES)
ADDED: Final = ", ".join(f"{name} = known.{name} + excluded.{name}" for name in NAMES)
_ARRAYS: Final = ", ".join("%b::int8[]" for _ in NAMES)

# Its row is held until the report is counted: the same one, sent twice at once, waits here and then finds itself taken.
_TAKE: Final = """
    INSERT INTO health.reporters AS known (reporter, number, report_time) VALUES (%b, %b, %b)
    ON CONFLICT (reporter) DO UPDATE SET number = excluded.number, report_time = excluded.report_time
    WHERE known.number < excluded.number"""
# An erasure waits until this report is over, and this report until an erasure is: of a device that is not known yet
# there is no row by which the two could meet. Before the first look at who is erased.
ERASING: Final = 7306021611
_SHARE: Final = f"SELECT pg_advisory_xact_lock_shared({ERASING})"
# In the order of their keys, here and below, so that reports never wait for each other in a circle.
_ADD_MINUTES: Final = f"""
    INSERT INTO health.minutes AS known (tenant_id, time, domain, {COUNTS})
    SELECT tenant_id, date_trunc('minute', time) AS minute, domain COLLATE "C" AS domain, {SUMS}
    FROM unnest(%b::int4[], %b::timestamptz[], %b::text[], {_ARRAYS}) AS said (tenant_id, time, domain, {COUNTS})
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (tenant_id, time, domain) DO UPDATE SET {ADDED}"""  # noqa: S608  # of constants
_SAID: Final = ("platform", "network_type", "app_version", "os_version", "clock_skew_us")
_LATEST: Final = ", ".join(
    f"(array_agg({name} ORDER BY time DESC) FILTER (WHERE {name} IS NOT NULL))[1] AS {name}" for name in _SAID
)
_SAYS: Final = ", ".join(
    f"{name} = CASE WHEN excluded.say_time >= known.say_time THEN coalesce(excluded.{name}, known.{name})"
    f" ELSE coalesce(known.{name}, excluded.{name}) END"
    for name in _SAID
)
# What is late of a user who is gone is nobody's.
_LIVING: Final = "NOT EXISTS (SELECT 1 FROM health.erased WHERE erased.user_id = said.user_id)"
_KNOWN: Final = (
    "EXISTS (SELECT 1 FROM health.devices AS d WHERE d.user_id = said.user_id AND d.device_id = said.device_id)"
)
# A phone that names itself anew with each call must not fill the disk.
_NOT_TOO_MANY: Final = f"""
    ({_KNOWN}
        OR (SELECT count(*) FROM health.devices AS d WHERE d.user_id = said.user_id) < {MAX_DEVICES})"""  # noqa: S608  # of constants
_ADD_DEVICES: Final = f"""
    INSERT INTO health.devices AS known (
        user_id, device_id, tenant_id, {COUNTS}, last_sync_time, say_time, {", ".join(_SAID)})
    SELECT user_id, device_id COLLATE "C" AS device_id, tenant_id, {SUMS},
        max(time) FILTER (WHERE syncs > 0), max(time), {_LATEST}
    FROM unnest(
        %b::uuid[], %b::text[], %b::int4[], %b::timestamptz[], {_ARRAYS}, %b::text[], %b::text[], %b::text[],
        %b::text[], %b::int8[]) AS said (user_id, device_id, tenant_id, time, {COUNTS}, {", ".join(_SAID)})
    WHERE {_LIVING} AND {_NOT_TOO_MANY}
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (user_id, device_id, tenant_id) DO UPDATE SET
        {ADDED}, {_SAYS}, last_sync_time = greatest(known.last_sync_time, excluded.last_sync_time),
        say_time = greatest(known.say_time, excluded.say_time)"""  # noqa: S608  # of constants
_ADD_DEVICE_HOURS: Final = f"""
    INSERT INTO health.device_hours AS known (user_id, device_id, tenant_id, time, {COUNTS})
    SELECT user_id, device_id COLLATE "C" AS device_id, tenant_id, date_trunc('hour', time) AS hour, {SUMS}
    FROM unnest(%b::uuid[], %b::text[], %b::int4[], %b::timestamptz[], {_ARRAYS})
        AS said (user_id, device_id, tenant_id, time, {COUNTS})
    WHERE {_LIVING} AND {_KNOWN}
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (user_id, device_id, tenant_id, time) DO UPDATE SET {ADDED}"""  # noqa: S608  # of constants
_ADD_DROPS: Final = """
    INSERT INTO health.drops AS known (time, outcomes) VALUES (date_trunc('minute', %b::timestamptz), %b::int8)
    ON CONFLICT (time) DO UPDATE SET outcomes = known.outcomes + excluded.outcomes"""


class OutcomeStore:
    """Reports in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, report: CheckedReport, now: datetime) -> bool:
        """Counts the report; False, and nothing is counted, when it or a later one of its reporter was before."""
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            values = [report.reporter, report.number, now]
            if (await connection.execute(_TAKE, values, prepare=True)).rowcount == 0:
                return False
            async with connection.pipeline():
                for statement, parameters in _statements(report, now):
                    await connection.execute(statement, parameters, prepare=True)
        return True


def _statements(report: CheckedReport, now: datetime) -> Iterable[tuple[str, Sequence[Any]]]:
    outcomes = report.outcomes
    if outcomes:
        domains = Texts([one.domain for one in outcomes])
        yield _ADD_MINUTES, [_tenants(outcomes), _times(outcomes), domains, *_counts(outcomes)]
    if devices := [one for one in outcomes if one.user_id is not None and one.device_id]:
        yield _SHARE, []
        keys = [[one.user_id for one in devices], Texts([one.device_id for one in devices]), _tenants(devices)]
        counted = [*keys, _times(devices), *_counts(devices)]
        words = [Texts([getattr(one.said, name) for one in devices]) for name in _SAID[:-1]]
        yield _ADD_DEVICES, [*counted, *words, BigIntegers([one.said.clock_skew_us for one in devices])]
        yield _ADD_DEVICE_HOURS, counted
    if report.dropped:
        yield _ADD_DROPS, [now, report.dropped]


def _tenants(outcomes: Sequence[Outcome]) -> Column:
    return Integers([one.tenant_id for one in outcomes])


def _times(outcomes: Sequence[Outcome]) -> Column:
    return Times([one.time for one in outcomes])


def _counts(outcomes: Sequence[Outcome]) -> list[Column]:
    return [BigIntegers([getattr(one.counts, name) for one in outcomes]) for name in NAMES]
