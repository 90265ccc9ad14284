"""Owns what an identity is: somebody at an OpenID provider."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Somebody at an OpenID provider, as an id token says or as it is stored."""

    provider: str
    subject: str
    email: str
    """In the form of an account's; empty when the provider says none."""
    email_verified: bool
    full_name: str
    create_time: datetime
    """When it was linked, or is about to be."""

    @property
    def proved_email(self) -> str:
        """The address that the provider vouches for; empty: none."""
        return self.email if self.email_verified else ""

    @property
    def method(self) -> str:
        """What sign-ins that are made by it are called."""
        return method_of(self.provider)


def method_of(provider: str) -> str:
    """What sign-ins by a provider are called."""
    return f"sso:{provider}"
