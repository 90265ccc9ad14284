"""Owns what RevenueCat's words mean here: its webhook's events as events of subscriptions.

Its types and fields: https://www.revenuecat.com/docs/integrations/webhooks/event-types-and-fields
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from runtime.clock import plausible
from runtime.errors import invalid, missing
from runtime.tiers import Tiers
from services.auth.accounts import Subscription
from services.auth.subscriptions_convert import LEAD, expired, json_object, paid, text
from services.auth.subscriptions_domain import StoreEvent, first_account

SOURCE: Final = "revenuecat"
RUNNING: Final = frozenset(
    {
        "INITIAL_PURCHASE",
        "RENEWAL",
        "UNCANCELLATION",
        "NON_RENEWING_PURCHASE",
        "SUBSCRIPTION_EXTENDED",
        "TEMPORARY_ENTITLEMENT_GRANT",
        "REFUND_REVERSED",
    }
)
# A payment that failed: what was paid for goes on to its end, or to that of the grace that the store gives.
BILLING: Final = "BILLING_ISSUE"
BILLING_ERROR: Final = "BILLING_ERROR"
TRANSFER: Final = "TRANSFER"
_PREFIX: Final = "event."
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_NAMES: Final = 100


def revenuecat_event(document: bytes, tiers: Tiers, now: datetime, *, sandbox: bool) -> StoreEvent:
    """The event that a webhook's body tells; `sandbox`: whether purchases for trying out count.

    What RevenueCat may add, and what does not yet change what somebody has (PRODUCT_CHANGE, SUBSCRIPTION_PAUSED: other
    events follow when it does), makes an event that changes nothing.

    Raises Failure: MALFORMED_REQUEST, FIELD_MISSING, FIELD_INVALID.
    """
    said = json_object(document).get("event")
    if said is None:
        raise missing("event")
    if not isinstance(said, dict):
        raise invalid("event", "must be an object", "INVALID_TYPE")
    type, time = text(said, "type", prefix=_PREFIX), _time(said, "event_timestamp_ms")
    if time is None:
        raise missing(f"{_PREFIX}event_timestamp_ms")
    counts = sandbox or said.get("environment") != "SANDBOX"
    given_up, taken = _names(said, "transferred_from"), _names(said, "transferred_to")
    subscriber = first_account(given_up if type == TRANSFER else _people(said))
    receiver = first_account(taken) if type == TRANSFER else ""
    if type == TRANSFER and (not subscriber or not receiver):
        raise missing(f"{_PREFIX}transferred_{'to' if subscriber else 'from'}")
    return StoreEvent(
        source=SOURCE,
        id=text(said, "id", prefix=_PREFIX),
        type=type,
        time=plausible(f"{_PREFIX}event_timestamp_ms", time, now, LEAD),
        subscriber=subscriber,
        product=text(said, "product_id", required=False, prefix=_PREFIX),
        subscription=_subscription(said, type, tiers, time) if counts else None,
        transferred_to=receiver if counts and receiver != subscriber else "",
    )


def _subscription(said: Mapping[str, Any], type: str, tiers: Tiers, time: datetime) -> Subscription | None:
    # What is sold besides tiers, such as coins, has its events too.
    tier = tiers.sold_as(_names(said, "entitlement_ids"), _product_names(said))
    end = _time(said, "expiration_at_ms")
    if tier is None:
        return None
    if type in RUNNING:
        return paid(tier, end, cancelled=False)
    if type == "CANCELLATION" and said.get("cancel_reason") != BILLING_ERROR:
        # Without an end it was bought for good, and has been given back.
        return paid(tier, end, cancelled=True) if end is not None else expired(None, time)
    if type == BILLING and (grace := _time(said, "grace_period_expiration_at_ms")) is not None:
        return paid(tier, max(grace, end or grace), cancelled=False)
    if type == "EXPIRATION":
        return expired(end, time)
    return None


def _people(said: Mapping[str, Any]) -> list[str]:
    """All names of who bought, the current one first. Raises Failure(FIELD_MISSING) when there is none."""
    current = text(said, "app_user_id", prefix=_PREFIX, required=said.get("type") not in ("TEST",))
    original = text(said, "original_app_user_id", prefix=_PREFIX, required=False)
    return [current, original, *_names(said, "aliases")]


def _product_names(said: Mapping[str, Any]) -> list[str]:
    """The product by its whole name, and Google's without the plan that it is sold on, as in premium:monthly."""
    product = text(said, "product_id", required=False, prefix=_PREFIX)
    return [product, product.partition(":")[0]]


def _names(said: Mapping[str, Any], field: str) -> list[str]:
    value = said.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MOST_NAMES:
        raise invalid(f"{_PREFIX}{field}", f"must be a list of at most {_MOST_NAMES}", "INVALID_TYPE")
    return [text({field: one}, field, required=False, prefix=_PREFIX) for one in value]


def _time(said: Mapping[str, Any], field: str) -> datetime | None:
    """A time in milliseconds since 1970; None where it is null, which for an end is never."""
    value = said.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"{_PREFIX}{field}", "must be milliseconds since 1970", "INVALID_TYPE")
    try:
        return _EPOCH + timedelta(milliseconds=value)
    except (OverflowError, ValueError):
        raise invalid(f"{_PREFIX}{field}", "must be milliseconds since 1970") from None
