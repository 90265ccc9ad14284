"""Owns the shape in which a signed event of a subscription arrives."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from runtime.clock import parse_time, plausible
from runtime.documents import parse_json
from runtime.errors import Failure, Reason, invalid, missing
from runtime.ids import parse_uuid
from runtime.tiers import FREE_TIER, Tiers
from services.auth.accounts import NO_SUBSCRIPTION, Subscription
from services.auth.subscriptions_domain import StoreEvent

SOURCE: Final = "webhook"
MAX_TEXT_CHARS: Final = 200
STATUSES: Final = ("active", "inactive", "cancelled", "expired")
# An event of the future would outdo all that really happen until then.
LEAD: Final = timedelta(minutes=5)


def signed_event(document: bytes, tiers: Tiers, now: datetime) -> StoreEvent:
    """The event that a signed body tells. Raises Failure: MALFORMED_REQUEST, FIELD_MISSING, FIELD_INVALID."""
    said = json_object(document)
    type = text(said, "type")
    time = plausible("event_time", parse_time("event_time", text(said, "event_time")), now, LEAD)
    return StoreEvent(
        source=SOURCE,
        id=text(said, "event_id"),
        type=type,
        time=time,
        subscriber=str(parse_uuid("user_id", text(said, "user_id"))),
        product=text(said, "product", required=False),
        subscription=_subscription(said, tiers, time) if type.startswith("subscription.") else None,
    )


def _subscription(said: Mapping[str, Any], tiers: Tiers, time: datetime) -> Subscription:
    status = text(said, "status")
    if status not in STATUSES:
        raise invalid("status", f"must be one of {', '.join(STATUSES)}", "UNKNOWN_VALUE")
    tier = text(said, "tier", required=status in ("active", "cancelled")) or FREE_TIER
    if tier not in tiers:
        raise invalid("tier", "is none of the tiers here", "UNKNOWN_VALUE")
    end = text(said, "period_end", required=status == "cancelled")
    end_time = parse_time("period_end", end) if end else None
    cancel = said.get("cancel_at_period_end")
    cancel = False if cancel is None else cancel
    if not isinstance(cancel, bool):
        raise invalid("cancel_at_period_end", "must be true or false", "INVALID_TYPE")
    if status == "inactive" or (status != "expired" and tier == FREE_TIER):
        return NO_SUBSCRIPTION
    if status == "expired":
        return expired(end_time, time)
    return paid(tier, end_time, cancelled=cancel or status == "cancelled")


def paid(tier: str, end_time: datetime | None, *, cancelled: bool) -> Subscription:
    """A subscription that runs, until its end where it is cancelled; one without an end cannot be cancelled for it."""
    if cancelled and end_time is None:
        raise missing("period_end")
    return Subscription(
        tier=tier,
        status="cancelled" if cancelled else "active",
        end_time=end_time,
        cancel_at_period_end=cancelled,
    )


def expired(end_time: datetime | None, time: datetime) -> Subscription:
    """A subscription that was over at `time`, whatever end it was to have."""
    return Subscription(
        tier=FREE_TIER, status="expired", end_time=min(end_time or time, time), cancel_at_period_end=False
    )


def json_object(document: bytes) -> Mapping[str, Any]:
    """The JSON object that a body is. Raises Failure(MALFORMED_REQUEST)."""
    parsed = parse_json(document)
    if not isinstance(parsed, dict):
        raise Failure(Reason.MALFORMED_REQUEST, "The body must be a JSON object.")
    return parsed


def text(said: Mapping[str, Any], field: str, *, required: bool = True, prefix: str = "") -> str:
    """A short text; empty where it may be left out. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    value, name = said.get(field), f"{prefix}{field}"
    if value is None or value == "":
        if required:
            raise missing(name)
        return ""
    if not isinstance(value, str):
        raise invalid(name, "must be a string", "INVALID_TYPE")
    if len(value) > MAX_TEXT_CHARS:
        raise invalid(name, f"is longer than {MAX_TEXT_CHARS} characters", "TOO_LONG")
    if not value.isprintable() or not value.strip():
        raise invalid(name, "holds characters that cannot be shown", "INVALID_FORMAT")
    return value
