"""Owns the statements that count what was reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from runtime.arrays import BigIntegers, Column, Integers, Texts, Times
from runtime.database import Database
from services.health.counts import NAMES, Counts
from services.health.outcomes_domain import CheckedReport, Said
from services.health.outcomes_sums import sums_of

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
    SELECT * FROM unnest(%b::int4[], %b::timestamptz[], %b::text[], {_ARRAYS})
        AS said (tenant_id, time, domain, {COUNTS})
    ORDER BY tenant_id, time, domain COLLATE "C"
    ON CONFLICT (tenant_id, time, domain) DO UPDATE SET {ADDED}"""  # noqa: S608  # of constants
_SAID: Final = Said._fields
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
    SELECT * FROM unnest(
        %b::uuid[], %b::text[], %b::int4[], {_ARRAYS}, %b::timestamptz[], %b::timestamptz[], %b::text[], %b::text[],
        %b::text[], %b::text[], %b::int8[])
        AS said (user_id, device_id, tenant_id, {COUNTS}, last_sync_time, say_time, {", ".join(_SAID)})
    WHERE {_LIVING} AND {_NOT_TOO_MANY}
    ORDER BY user_id, device_id COLLATE "C", tenant_id
    ON CONFLICT (user_id, device_id, tenant_id) DO UPDATE SET
        {ADDED}, {_SAYS}, last_sync_time = greatest(known.last_sync_time, excluded.last_sync_time),
        say_time = greatest(known.say_time, excluded.say_time)"""  # noqa: S608  # of constants
# Of a user who is gone no device is known.
_ADD_DEVICE_HOURS: Final = f"""
    INSERT INTO health.device_hours AS known (user_id, device_id, tenant_id, time, {COUNTS})
    SELECT * FROM unnest(%b::uuid[], %b::text[], %b::int4[], %b::timestamptz[], {_ARRAYS})
        AS said (user_id, device_id, tenant_id, time, {COUNTS})
    WHERE {_KNOWN}
    ORDER BY user_id, device_id COLLATE "C", tenant_id, time
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
    minutes, devices, hours = sums_of(report.outcomes)
    if minutes:
        tenants, times, domains = zip(*minutes, strict=True)
        yield _ADD_MINUTES, [Integers(tenants), Times(times), Texts(domains), *_counts(minutes.values())]
    if devices:
        yield _SHARE, []
        users, ids, tenants = zip(*devices, strict=True)
        counts, synced, said, words = zip(*devices.values(), strict=True)
        *texts, skews = zip(*words, strict=True)
        yield (
            _ADD_DEVICES,
            [
                *(list(users), Texts(ids), Integers(tenants), *_counts(counts), Times(synced), Times(said)),
                *(*map(Texts, texts), BigIntegers(skews)),
            ],
        )
        users, ids, tenants, times = zip(*hours, strict=True)
        yield _ADD_DEVICE_HOURS, [list(users), Texts(ids), Integers(tenants), Times(times), *_counts(hours.values())]
    if report.dropped:
        yield _ADD_DROPS, [now, report.dropped]


def _counts(counts: Iterable[Counts]) -> list[Column]:
    return [BigIntegers(one) for one in zip(*counts, strict=True)]
