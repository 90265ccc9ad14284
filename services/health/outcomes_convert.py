"""Owns the two shapes of reports: messages and domain values."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final
from uuid import UUID

from satchel.health.v1 import health_pb2 as pb

from runtime.clock import from_timestamp
from runtime.errors import Failure, invalid, missing
from runtime.ids import parse_uuid
from services.health.counts import Counts
from services.health.outcomes_domain import MAX_WORD_CHARS, Outcome, Report, Said

# Beyond what any check lets through, and no float is lost on the way to an integer.
_FAR: Final = 1e18


def report_from_pb(request: pb.ReportOutcomesRequest) -> Report:
    """A batch; an outcome that cannot be read is its refusal. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    return Report(
        reporter=UUID(parse_uuid("reporter", request.reporter)),
        number=request.number,
        outcomes=[_outcome_or_why(one) for one in request.outcomes],
        dropped=request.dropped,
    )


def outcome_from_pb(message: pb.Outcome) -> Outcome:
    """One outcome. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    if not message.HasField("time"):
        raise missing("time")
    return Outcome(
        tenant_id=message.tenant_id,
        user_id=UUID(parse_uuid("user_id", message.user_id)) if message.user_id else None,
        device_id=message.device_id,
        domain=message.domain,
        time=from_timestamp("time", message.time),
        counts=Counts(
            message.syncs,
            message.failed_syncs,
            message.items,
            message.conflicts,
            message.rejected,
            _whole("duration_ms", message.duration_ms * 1000),
            message.uploads_completed,
            message.uploads_abandoned,
            _whole("upload_bytes", message.upload_bytes),
        ),
        said=Said(
            platform=_word(message.platform),
            network_type=_word(message.network_type),
            app_version=_word(message.app_version),
            os_version=_word(message.os_version),
            clock_skew_us=(
                _whole("clock_skew_ms", message.clock_skew_ms * 1000) if message.HasField("clock_skew_ms") else None
            ),
        ),
    )


def _outcome_or_why(message: pb.Outcome) -> Outcome | Failure:
    try:
        return outcome_from_pb(message)
    except Failure as failure:
        return failure


def _whole(field: str, number: float) -> int:
    if -_FAR < number < _FAR:
        return round(number)
    if not math.isfinite(number):
        raise invalid(field, "must be a number")
    return round(math.copysign(_FAR, number))


@lru_cache(maxsize=1024)
def _word(text: str) -> str | None:
    return text[:MAX_WORD_CHARS].replace("\x00", "") or None
