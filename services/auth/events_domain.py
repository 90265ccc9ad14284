"""Owns what a security event is: anything that opens, changes or closes a way into an account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID


class Kind(StrEnum):
    """What happened."""

    SIGNED_UP = "signed_up"
    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGNED_OUT = "signed_out"
    TOKEN_REUSED = "token_reused"  # noqa: S105  # a refresh token that had been replaced came back
    ACCOUNT_DELETED = "account_deleted"
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
