"""Owns how the token of an application is written, and what services know of one.

It is `sat_`, forty letters and digits that nobody can guess, and six that are their checksum: scanners of source code
can tell one from other text, and what cannot be one costs no question.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

PREFIX: Final = "sat_"
SECRET_CHARS: Final = 40
CHECKSUM_CHARS: Final = 6
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class ResolvedToken:
    """What a token speaks for."""

    id: UUID
    user_id: UUID
    tenant_id: int
    tier: str
    scopes: frozenset[str]
    expires_at: float
    """Seconds since 1970; infinite for one that does not expire."""
    revoked: bool


def new_token() -> str:
    """A token that nobody has."""
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARS))
    return PREFIX + secret + _checksum(secret)


def is_well_formed(token: str) -> bool:
    """Whether `token` could be one of ours."""
    secret, checksum = token[len(PREFIX) : -CHECKSUM_CHARS], token[-CHECKSUM_CHARS:]
    return (
        token.startswith(PREFIX)
        and len(secret) == SECRET_CHARS
        and set(secret) <= set(_ALPHABET)
        and _checksum(secret) == checksum
    )


def digest(token: str) -> bytes:
    """What is stored of a token: its sha256, from which nobody finds one of so many."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(secret: str) -> str:
    rest, digits = zlib.crc32(secret.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
