"""Owns what a security event is: anything that opens, changes or closes a way into an account."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from runtime import paging
from runtime.call import Principal
from runtime.clock import parse_moment
from runtime.errors import invalid
from runtime.ids import parse_uuid

if TYPE_CHECKING:
    from services.auth.events_store import EventStore

# Rows of events of one kind and method that strangers cause for one account in one minute; also for all accounts that
# do not exist.
FOLDS: Final = 10


class Kind(StrEnum):
    """What happened."""

    SIGNED_UP = "signed_up"
    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGN_IN_DELAYED = "sign_in_delayed"  # tried too often, and told to wait
    SIGNED_OUT = "signed_out"
    TOKEN_REUSED = "token_reused"  # noqa: S105  # a refresh token that had been replaced came back
    ACCOUNT_DELETED = "account_deleted"
    IDENTITY_LINKED = "identity_linked"
    IDENTITY_UNLINKED = "identity_unlinked"
    ACCOUNT_RECLAIMED = "account_reclaimed"  # who proved to own its address ended every way in of before
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # by a code instead of the old one, where `proof` says so
    PROOF_REFUSED = "proof_refused"  # a wrong password or code, where one was asked for again
    EMAIL_VERIFIED = "email_verified"
    EMAIL_CHANGED = "email_changed"
    SUBSCRIPTION_CHANGED = "subscription_changed"
    SECOND_FACTOR_ENABLED = "second_factor_enabled"
    SECOND_FACTOR_DISABLED = "second_factor_disabled"
    SECOND_FACTOR_FAILED = "second_factor_failed"
    RECOVERY_CODE_USED = "recovery_code_used"
    RECOVERY_CODES_RENEWED = "recovery_codes_renewed"
    GUEST_CREATED = "guest_created"
    GUEST_MERGED = "guest_merged"
    GUEST_SIGNED_UP = "guest_signed_up"
    USER_CREATED = "user_created"
    ROLE_CHANGED = "role_changed"
    GARMIN_LINKED = "garmin_linked"
    GARMIN_CHANGED = "garmin_changed"
    GARMIN_UNLINKED = "garmin_unlinked"
    APPLICATION_TOKEN_CREATED = "application_token_created"  # noqa: S105
    APPLICATION_TOKEN_CHANGED = "application_token_changed"  # noqa: S105
    APPLICATION_TOKEN_REVOKED = "application_token_revoked"  # noqa: S105
    TOKEN_EXCHANGED = "token_exchanged"  # noqa: S105  # a service got a token to act for the account


@dataclass(frozen=True, kw_only=True)
class SecurityEvent:
    """Something that happened to an account, or was tried."""

    kind: Kind
    account_id: UUID | None
    """None: it was tried on an account that does not exist."""
    sign_in_id: UUID | None = None
    actor: str = ""
    """Who did it where that was not the account's owner: admin:<user id>, service:<name> or system."""
    detail: Mapping[str, str | int] = field(default_factory=dict)
    """What else there is to say; never a secret."""


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """An event as it is read back."""

    id: int
    time: datetime
    kind: str
    account_id: UUID | None
    sign_in_id: UUID | None
    actor: str
    ip: str
    user_agent: str
    request_id: str
    detail: Mapping[str, str | int]
    count: int
    """How often it happened within a minute; the rest is that of the first time."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some events, newest first."""

    events: Sequence[LoggedEvent]
    next_token: str


class SecurityEvents:
    """The log as the owners of accounts and the administrators of tenants read it."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def own(self, caller: Principal, *, kind: str, size: int, token: str) -> Page:
        """The events of the caller's account. Raises Failure(FIELD_INVALID)."""
        return await self._page(
            account_id=caller.user_id, tenant_id=None, kind=parse_kind(kind), since=None, size=size, token=token
        )

    async def tenant(self, caller: Principal, *, user_id: str, kind: str, since: str, size: int, token: str) -> Page:
        """The events of the caller's tenant, of one account or of all. Raises Failure(FIELD_INVALID)."""
        return await self._page(
            account_id=UUID(parse_uuid("user_id", user_id)) if user_id else None,
            tenant_id=caller.tenant_id,
            kind=parse_kind(kind),
            since=parse_moment("since", since) if since else None,
            size=size,
            token=token,
        )

    async def _page(
        self,
        *,
        account_id: UUID | None,
        tenant_id: int | None,
        kind: Kind | None,
        since: datetime | None,
        size: int,
        token: str,
    ) -> Page:
        limit, place = paging.page_size(size), paging.decode_token(token)
        before = (place[0], _parse_event_id(place[1])) if place else None
        found = await self._store.page(
            account_id=account_id, tenant_id=tenant_id, kind=kind, since=since, before=before, limit=limit + 1
        )
        return Page(
            events=found[:limit], next_token=paging.next_token(found, limit, lambda one: (one.time, str(one.id)))
        )


def parse_kind(text: str) -> Kind | None:
    """The kind that `text` names; None when it is empty. Raises Failure(FIELD_INVALID)."""
    try:
        return Kind(text) if text else None
    except ValueError:
        raise invalid("kind", f"must be one of {', '.join(sorted(Kind))}", "UNKNOWN_VALUE") from None


def fold_key_of(event: SecurityEvent, network: str, now: datetime) -> str:
    """What an event has in common with those it is one row with: kind, method, account, minute, share of networks.

    So what comes from somewhere else mostly stands in a row of its own, and however many places there are, there are
    FOLDS rows at most.
    """
    share = hashlib.sha256(network.encode()).digest()[0] % FOLDS
    return (
        f"{event.kind} {event.detail.get('method', '')} {event.account_id or '-'} {int(now.timestamp()) // 60} {share}"
    )


def _parse_event_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise invalid("page_token", "is not one that a list gave", "INVALID_FORMAT")
    return int(text)
