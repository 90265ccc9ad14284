"""Owns the receipts of deleted accounts: what one is called, and how far the deletion has come."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from runtime.errors import Failure, Reason

if TYPE_CHECKING:
    from services.auth.deletions_store import DeletionStore

PREFIX: Final = "del_"
MAX_RECEIPT_CHARS: Final = 100


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """A deleted account, as its receipt says."""

    delete_time: datetime
    done_time: datetime | None
    """When every service had removed what it had; None: some have not yet."""
    merged: bool
    """Whether it was a guest whose things went to an account."""
    removed: Mapping[str, Any]
    """Rows by what they were under `account`, and what the services have answered."""


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What somebody who deletes an account is told."""

    account_id: UUID
    delete_time: datetime
    receipt_id: str


class Receipts:
    """Names receipts: whoever deletes an account twice is told the same name, though it is stored nowhere."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def id_of(self, account_id: UUID) -> str:
        """What the receipt of this account's deletion is called."""
        digest = hmac.digest(self._secret, b"receipt of a deletion:" + account_id.bytes, "sha256")
        return PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def digest_of(self, account_id: UUID) -> bytes:
        """What is stored of it."""
        return digest(self.id_of(account_id))


def digest(receipt_id: str) -> bytes:
    """What is stored of a receipt's name."""
    return hashlib.sha256(receipt_id.encode()).digest()


class Deletions:
    """Shows receipts."""

    def __init__(self, store: DeletionStore) -> None:
        self._store = store

    async def find(self, receipt_id: str) -> Deletion:
        """The receipt with this name. Raises Failure(NOT_FOUND)."""
        deletion = None
        if receipt_id.startswith(PREFIX) and receipt_id.isascii() and len(receipt_id) <= MAX_RECEIPT_CHARS:
            deletion = await self._store.find(digest(receipt_id))
        if deletion is None:
            raise Failure(Reason.NOT_FOUND, "There is no such receipt.")
        return deletion
