"""Owns how secrets are sealed that must be readable again: a key for each row, sealed by a key of the vault.

AES-256-GCM throughout. What is sealed is bound to its row and column: copied elsewhere it does not open. A row's key is
new at every write, so no key seals more than a handful of values.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import Failure, Reason
from runtime.keys import VaultKey
from runtime.telemetry import logger

# Seconds; replicas that are given a new key one after the other all have it soon.
MISSING_KEY_PAUSE: Final = 5
_NONCE_BYTES: Final = 12
_ROW_KEY_COLUMN: Final = "sealed_key"


class VaultError(Exception):
    """A row cannot be opened: it is not what was sealed."""


class MissingKey(VaultError):
    """A row's key is not among those that this process has."""


@dataclass(frozen=True, kw_only=True)
class SealedRow:
    """A row as it is stored."""

    key_id: str
    """The vault's key that seals the row's."""
    sealed_key: bytes
    columns: Mapping[str, bytes]


class Vault:
    """Seals and opens rows of one table."""

    def __init__(self, table: str, keys: Callable[[], Sequence[VaultKey]]) -> None:
        """`keys` gives the vault's keys as they are now, newest first."""
        self._table = table
        self._keys = keys

    @property
    def table(self) -> str:
        """Whose rows it seals."""
        return self._table

    def newest(self) -> str:
        """The id of the key that seals now."""
        return self._keys()[0].id

    def seal(self, owner: UUID, columns: Mapping[str, str]) -> SealedRow:
        """The columns of `owner`'s row under a new key."""
        key, row_key = self._keys()[0], secrets.token_bytes(32)
        return SealedRow(
            key_id=key.id,
            sealed_key=self._encrypt(key.secret, row_key, owner, _ROW_KEY_COLUMN),
            columns={name: self._encrypt(row_key, text.encode(), owner, name) for name, text in columns.items()},
        )

    def open(self, owner: UUID, row: SealedRow) -> dict[str, str]:
        """What `seal` was given.

        Raises Failure(UNAVAILABLE) when the row's key is not here, as it is, or will be, elsewhere; VaultError.
        """
        try:
            row_key = self._row_key(owner, row)
        except MissingKey as error:
            logger().error("a key of the vault is missing", key=row.key_id, table=self._table, user=owner)
            raise Failure(Reason.UNAVAILABLE, retry_after=MISSING_KEY_PAUSE) from error
        return {name: self._decrypt(row_key, sealed, owner, name).decode() for name, sealed in row.columns.items()}

    def rewrap(self, owner: UUID, row: SealedRow) -> SealedRow:
        """The same row with its key sealed by the newest one; its columns stay as they are. Raises VaultError."""
        key = self._keys()[0]
        sealed_key = self._encrypt(key.secret, self._row_key(owner, row), owner, _ROW_KEY_COLUMN)
        return replace(row, key_id=key.id, sealed_key=sealed_key)

    def _row_key(self, owner: UUID, row: SealedRow) -> bytes:
        for key in self._keys():
            if key.id == row.key_id:
                return self._decrypt(key.secret, row.sealed_key, owner, _ROW_KEY_COLUMN)
        raise MissingKey(f"no key of the vault has the id {row.key_id}")

    def _encrypt(self, key: bytes, content: bytes, owner: UUID, column: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(key).encrypt(nonce, content, self._place(owner, column))

    def _decrypt(self, key: bytes, sealed: bytes, owner: UUID, column: str) -> bytes:
        try:
            return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._place(owner, column))
        except (InvalidTag, ValueError):
            raise VaultError(f"{column} of a row of {self._table} is not what was sealed") from None

    def _place(self, owner: UUID, column: str) -> bytes:
        return b"satchel vault\0" + f"{self._table}\0{column}\0".encode() + owner.bytes
