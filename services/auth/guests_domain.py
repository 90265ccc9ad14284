"""Owns guests: accounts without an e-mail address, until they sign up, or have not been back for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from runtime.errors import invalid
from services.auth.accounts import DEFAULT_TENANT, NO_SUBSCRIPTION, Account
from services.auth.deletions_domain import Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.sign_ins_domain import Device, SignIns, Tokens

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore
    from services.auth.guests_store import GuestStore

BY_NOTHING: Final = "guest"


class Guests:
    """Creates guests, and deletes those who are not coming back."""

    def __init__(
        self,
        store: GuestStore,
        accounts: AccountStore,
        sign_ins: SignIns,
        receipts: Receipts,
        *,
        deleted: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """`deleted` is told that there is something to erase elsewhere."""
        self._store = store
        self._accounts = accounts
        self._sign_ins = sign_ins
        self._receipts = receipts
        self._deleted = deleted
        self._now = now

    async def create(self, tenant_id: int, device: Device) -> tuple[Account, Tokens]:
        """A new guest, signed in. Raises Failure(FIELD_INVALID)."""
        if tenant_id < 0:
            raise invalid("tenant_id", "must be 1 or more")
        guest = Account(
            id=uuid4(),
            email="",
            tenant_id=tenant_id or DEFAULT_TENANT,
            role="user",
            create_time=self._now(),
            subscription=NO_SUBSCRIPTION,
            is_guest=True,
        )
        sign_in, tokens = self._sign_ins.prepare(guest, device, BY_NOTHING)
        event = SecurityEvent(kind=Kind.GUEST_CREATED, account_id=guest.id, sign_in_id=sign_in.id)
        await self._accounts.create(guest, "", sign_in, event)
        return guest, tokens

    async def idle(self, before: datetime, limit: int) -> int:
        """Deletes up to `limit` guests who have not been back since then; returns how many."""
        gone = 0
        for guest_id in await self._store.idle(before, limit):
            event = SecurityEvent(kind=Kind.ACCOUNT_DELETED, account_id=guest_id, actor="system")
            digest = self._receipts.digest_of(guest_id)
            gone += await self._store.delete_idle(guest_id, before, self._now(), digest, event)
        if gone:
            self._deleted()
        return gone
