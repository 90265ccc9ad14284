"""Owns how a sign-in that waits for a code is sealed: whoever reads the table cannot go on with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES: Final = 12


class Seal:
    """Seals for minutes, under a key that all replicas have: there is no need to rotate it, nor for a vault."""

    def __init__(self, mesh_secret: bytes) -> None:
        key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"satchel garmin sign-ins").derive(mesh_secret)
        self._cipher = AESGCM(key)

    def seal(self, user_id: UUID, content: Mapping[str, str]) -> bytes:
        """The content for this user alone. Pairs with open."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, json.dumps(dict(content)).encode(), user_id.bytes)

    def open(self, user_id: UUID, sealed: bytes) -> dict[str, str] | None:
        """What was sealed; None: under another key, or for somebody else."""
        try:
            opened = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], user_id.bytes)
        except (InvalidTag, ValueError):
            return None
        found: dict[str, str] = json.loads(opened)
        return found
