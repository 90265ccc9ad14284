"""Owns which reports of other services are taken, and that each is counted once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from runtime.errors import Failure, invalid
from runtime.telemetry import OUTCOMES_DROPPED, logger
from services.health.counts import Counts

if TYPE_CHECKING:
    from services.health.outcomes_store import OutcomeStore

MAX_OUTCOMES: Final = 5000
MAX_DOMAIN_CHARS: Final = 64
# What a phone says of itself is cut here: it is shown to people, and nothing is looked up by it.
MAX_WORD_CHARS: Final = 100
# Numbers of one outcome; the sum of a report's still fits in 64 bits.
MAX_MICROSECONDS: Final = 10**15
MAX_BYTES: Final = 10**15

_DEVICE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")


class Said(NamedTuple):
    """What a device said of itself; None: nothing."""

    platform: str | None = None
    network_type: str | None = None
    app_version: str | None = None
    os_version: str | None = None
    clock_skew_us: int | None = None
    """How far its clock is ahead of ours; microseconds."""


class Outcome(NamedTuple):
    """All that a reporter saw of one device, or of a caller without one, in one minute."""

    tenant_id: int
    user_id: UUID | None
    device_id: str
    """Empty: it did not say."""
    domain: str
    """Empty for uploads, and for syncs that were refused before their content was known."""
    time: datetime
    """When the last of it happened."""
    counts: Counts
    said: Said = Said()


@dataclass(frozen=True, kw_only=True)
class Report:
    """A batch of a reporter."""

    reporter: UUID
    number: int
    """Counts up from 1."""
    outcomes: Sequence[Outcome | Failure]
    """Those that could not be read as why."""
    dropped: int
    """Outcomes that it had no room for since its last batch."""


@dataclass(frozen=True, kw_only=True)
class CheckedReport:
    """What of a report makes sense."""

    reporter: UUID
    number: int
    outcomes: Sequence[Outcome]
    dropped: int
    """With those that made none."""


class Outcomes:
    """Takes reports."""

    def __init__(
        self,
        store: OutcomeStore,
        *,
        reported: Callable[[Collection[int]], None] = lambda _: None,
        now: Callable[[], datetime],
    ) -> None:
        """`reported` is told of whose figures have changed, by their tenants."""
        self._store = store
        self._reported = reported
        self._now = now

    async def take(self, report: Report) -> None:
        """Counts a report, unless this one or a later one of its reporter was taken before.

        An outcome that makes no sense is left out, and counted as dropped. Raises Failure(FIELD_INVALID) for a report
        that makes none, and then nothing of it is counted.
        """
        if report.number < 1:
            raise invalid("number", "must be 1 or more")
        if len(report.outcomes) > MAX_OUTCOMES:
            raise invalid("outcomes", f"must be at most {MAX_OUTCOMES}", "TOO_LONG")
        now = self._now()
        checked = [_checked(place, outcome, now) for place, outcome in enumerate(report.outcomes)]
        outcomes = [one for one in checked if isinstance(one, Outcome)]
        senseless = [one for one in checked if isinstance(one, Failure)]
        taken = CheckedReport(
            reporter=report.reporter,
            number=report.number,
            outcomes=outcomes,
            dropped=report.dropped + len(senseless),
        )
        if not await self._store.add(taken, now):
            return
        if senseless:
            OUTCOMES_DROPPED.inc(len(senseless))
            logger().warning(
                "outcomes make no sense", reporter=report.reporter, first=str(senseless[0]), count=len(senseless)
            )
        self._reported({outcome.tenant_id for outcome in outcomes})


def check_device_id(field: str, device_id: str) -> None:
    """Raises Failure(FIELD_INVALID) for what is no id of a device."""
    if not _DEVICE_ID.fullmatch(device_id):
        raise invalid(field, "must be 1 to 255 letters, digits, hyphens and underscores", "INVALID_FORMAT")


def is_domain(text: str) -> bool:
    """Whether it may be the name of a domain."""
    return len(text) <= MAX_DOMAIN_CHARS and text.isprintable()


def _checked(place: int, outcome: Outcome | Failure, now: datetime) -> Outcome | Failure:
    try:
        if isinstance(outcome, Failure):
            raise outcome
        _check(outcome)
    except Failure as failure:
        return failure.within(f"outcomes[{place}]")
    # A reporter's clock may be some milliseconds ahead of ours; its minute must not be one that has not begun.
    return outcome if outcome.time <= now else outcome._replace(time=now)


def _check(outcome: Outcome) -> None:
    """Raises Failure(FIELD_INVALID)."""
    counts = outcome.counts
    if outcome.tenant_id < 0:
        raise invalid("tenant_id", "must be 0 or more")
    if outcome.device_id:
        check_device_id("device_id", outcome.device_id)
    if not is_domain(outcome.domain):
        raise invalid("domain", "is no name of a domain", "INVALID_FORMAT")
    if counts.failed_syncs > counts.syncs:
        raise invalid("failed_syncs", "must be at most syncs")
    if not 0 <= counts.duration_us <= MAX_MICROSECONDS:
        raise invalid("duration_ms", f"must be 0 to {MAX_MICROSECONDS // 1000}")
    if not 0 <= counts.upload_bytes <= MAX_BYTES:
        raise invalid("upload_bytes", f"must be 0 to {MAX_BYTES}")
    skew = outcome.said.clock_skew_us
    if skew is not None and abs(skew) > MAX_MICROSECONDS:
        raise invalid("clock_skew_ms", "is too far from 0")
