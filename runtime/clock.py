"""Owns what time it is, and how the times that phones send are read and written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from runtime.errors import Failure, invalid

EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
# A phone's clock may be ahead; a day covers a wrong time zone as well.
LEAD: Final = timedelta(days=1)
_CANONICAL_CHARS: Final = len("2026-02-26T10:00:00Z")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def parse_time(field: str, text: str) -> datetime:
    """An ISO 8601 time as an aware datetime in UTC; one without a zone is taken as UTC.

    Raises Failure(FIELD_INVALID) naming `field`.
    """
    # fromisoformat takes a bare date as midnight; a moment that was never measured must not be made up.
    if not 16 <= len(text) <= 40 or text[10] not in "Tt ":
        raise invalid(field, "must be an ISO 8601 time such as 2026-02-26T10:00:00Z", "INVALID_FORMAT")
    try:
        parsed = datetime.fromisoformat(text.upper())  # RFC 3339 takes t and z in either case
        if parsed.tzinfo is UTC:
            return parsed
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "must be an ISO 8601 time such as 2026-02-26T10:00:00Z", "INVALID_FORMAT") from None


def parse_moment(field: str, text: str) -> datetime:
    """As parse_time, and a bare date means its first moment in UTC: for filters, where that is what people mean."""
    return parse_time(field, f"{text}T00:00:00Z" if len(text) == 10 else text)


def plausible(field: str, time: datetime, now: datetime, lead: timedelta = LEAD) -> datetime:
    """`time` again. Raises Failure(FIELD_INVALID) when it is before 2000 or more than `lead` ahead of `now`."""
    if time < EARLIEST:
        raise invalid(field, "is before 2000-01-01")
    if time > now + lead:
        raise invalid(field, "is more than a day in the future" if lead == LEAD else "is in the future")
    return time


def format_time(time: datetime) -> str:
    """RFC 3339 in UTC with as many of 0, 3 or 6 decimals as it takes: 2026-02-26T10:00:00Z."""
    text = (time if time.tzinfo is UTC else time.astimezone(UTC)).isoformat().removesuffix("+00:00")
    return f"{text.removesuffix('000')}Z" if "." in text else f"{text}Z"


def canonical_time(text: str, time: datetime) -> str:
    """As format_time(time), for a `time` that was read from `text`: most phones write it so already."""
    return text if len(text) == _CANONICAL_CHARS and text[10] == "T" and text[-1] == "Z" else format_time(time)


def to_timestamp(time: datetime) -> Timestamp:
    """A moment as a message. Pairs with from_timestamp."""
    since = time - _EPOCH
    return Timestamp(seconds=since.days * 86400 + since.seconds, nanos=since.microseconds * 1000)


def from_timestamp(field: str, message: Timestamp) -> datetime:
    """The moment that a message names, aware, in UTC. Raises Failure(FIELD_INVALID) outside the years 1 to 9999."""
    try:
        if not 0 <= message.nanos <= 999_999_999:
            raise OverflowError
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        raise invalid(field, "is no time of the years 1 to 9999", "INVALID_FORMAT") from None


def text_of(field: str, message: Timestamp) -> str:
    """The moment as text for an item; one outside the years 1 to 9999 as text that parse_time refuses by its field."""
    try:
        return format_time(from_timestamp(field, message))
    except Failure:
        return f"{message.seconds}.{message.nanos:09}"
