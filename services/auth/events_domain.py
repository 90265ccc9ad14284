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
    GUEST_CREATED = "guest_created"
    GUEST_MERGED = "guest_merged"
    GUEST_SIGNED_UP = "guest_signed_up"


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
