"""Owns what an account is: somebody who can sign in, and what that somebody has paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

from runtime.call import Role
from runtime.errors import invalid, missing
from runtime.tiers import FREE_TIER

DEFAULT_TENANT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """What an account has paid for, as it is stored."""

    tier: str
    status: str
    """active, inactive, cancelled (paid until its end, and not renewed) or expired."""
    end_time: datetime | None
    cancel_at_period_end: bool

    def at(self, now: datetime) -> Subscription:
        """The subscription as it stands at `now`: past its end it is expired, and the tier is free."""
        if self.end_time is None or self.end_time > now:
            return self
        return replace(self, tier=FREE_TIER, status="expired", cancel_at_period_end=False)


NO_SUBSCRIPTION: Final = Subscription(tier=FREE_TIER, status="inactive", end_time=None, cancel_at_period_end=False)


@dataclass(frozen=True, kw_only=True)
class Account:
    """Somebody who can sign in."""

    id: UUID
    email: str
    """Lower case; empty for one without."""
    tenant_id: int
    role: Role
    create_time: datetime
    subscription: Subscription
    email_verify_time: datetime | None = None
    """When somebody proved to own the address; None: nobody has."""
    is_guest: bool = False
    """Whether it has no way in but its sign-ins."""

    def at(self, now: datetime) -> Account:
        """The account with the expiry of its subscription judged at `now`."""
        judged = self.subscription.at(now)
        return self if judged is self.subscription else replace(self, subscription=judged)


def parse_email(text: str, field: str = "email") -> str:
    """The address in the form it is stored and compared in. Raises Failure: FIELD_MISSING, FIELD_INVALID (`field`)."""
    trimmed = text.strip()
    if not trimmed:
        raise missing(field)
    try:
        # Whether mail arrives is another matter; a private network's names are as good as the world's.
        checked = validate_email(trimmed.lower(), check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        raise invalid(field, "is not an e-mail address", "INVALID_FORMAT") from None
    if "." not in checked.domain or len(checked.normalized) > 254:
        raise invalid(field, "is not an e-mail address", "INVALID_FORMAT")
    return checked.normalized
