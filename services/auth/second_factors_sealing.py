"""Owns how the secrets of second factors are sealed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES: Final = 12
_KEY_ID: Final = "home"


@dataclass(frozen=True, kw_only=True)
class SealedSecret:
    """A secret as it is stored."""

    key_id: str
    """What it is sealed with."""
    sealed_key: bytes
    """A key of the row's own, sealed; empty: it has none."""
    sealed_secret: bytes


class Sealing:
    """Seals secrets with AES-256-GCM, each bound to the account that it is of."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 bytes."""
        self._box = AESGCM(key)

    def seal(self, owner: UUID, secret: str) -> SealedSecret:
        """A secret that nobody reads without the key. Pairs with open."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._box.encrypt(nonce, secret.encode(), owner.bytes)
        return SealedSecret(key_id=_KEY_ID, sealed_key=b"", sealed_secret=sealed)

    def open(self, owner: UUID, sealed: SealedSecret) -> str:
        """The secret again. Raises InvalidTag when it was sealed with another key, or for another account."""
        raw = sealed.sealed_secret
        return self._box.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], owner.bytes).decode()
