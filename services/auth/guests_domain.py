"""Owns guests: accounts without an e-mail address, until they sign up, or have not been back for long."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from runtime.errors import invalid
from runtime.telemetry import SWEEP_ERRORS, SWEPT, logger
from services.auth.accounts import DEFAULT_TENANT, NO_SUBSCRIPTION, Account
from services.auth.deletions_domain import Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.sign_ins_domain import Device, SignIns, Tokens

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore
    from services.auth.guests_store import GuestStore

BY_NOTHING: Final = "guest"
BATCH: Final = 100


class Guests:
    """Creates guests, and deletes those who are not coming back."""

    def __init__(
        self,
        store: GuestStore,
        accounts: AccountStore,
        sign_ins: SignIns,
        receipts: Receipts,
        *,
        lifetime: timedelta,
        deleted: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """A guest who has not been back for `lifetime` is deleted; `deleted` is told."""
        self._store = store
        self._accounts = accounts
        self._sign_ins = sign_ins
        self._receipts = receipts
        self._lifetime = lifetime
        self._deleted = deleted
        self._now = now
        self._failing = False

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

    async def sweep(self) -> None:
        """Deletes the guests who have not been back for too long; what fails is left to the next round."""
        try:
            SWEPT.labels("guests").inc(await self.idle())
            self._failing = False
        except Exception as error:  # whatever it was, the next round tries again
            SWEEP_ERRORS.labels("guests").inc()
            if not self._failing:
                logger().warning("cannot sweep", kind="guests", error=repr(error))
            self._failing = True

    async def idle(self) -> int:
        """Deletes the guests who have not been back for too long; returns how many."""
        swept, before = 0, self._now() - self._lifetime
        while found := await self._store.idle(before, BATCH):
            gone = 0
            for guest_id in found:
                event = SecurityEvent(kind=Kind.ACCOUNT_DELETED, account_id=guest_id, actor="system")
                gone += await self._store.delete_idle(
                    guest_id, before, self._now(), self._receipts.digest_of(guest_id), event
                )
            swept += gone
            if gone:
                self._deleted()
            if gone < len(found):  # somebody else sweeps, or somebody is back
                break
        return swept
