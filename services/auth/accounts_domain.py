"""Owns the rules of accounts: who may have one, how its owner is known by a password, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from runtime.call import Principal
from runtime.coalesce import Coalesced
from runtime.errors import Failure, Reason, invalid, missing
from services.auth.accounts import DEFAULT_TENANT, NO_SUBSCRIPTION, Account, parse_email
from services.auth.deletions_domain import Deleted, Receipts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.passwords import Passwords, check_password
from services.auth.sign_ins_domain import Device, SignIns, Tokens, check_device_name

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore
    from services.auth.attempts_domain import Guard
    from services.auth.events_store import EventStore

BY_PASSWORD: Final = "password"  # noqa: S105  # the name of a method


class KnownAccounts:
    """Accounts as they stand; many who ask at once share one statement."""

    def __init__(self, store: AccountStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._by_id = Coalesced(store.accounts)
        self._now = now

    async def account(self, account_id: UUID) -> Account:
        """An account. Raises Failure(INVALID_TOKEN) when it is gone: a token was all that was left."""
        account = await self._by_id.get(account_id)
        if account is None:
            raise Failure(Reason.INVALID_TOKEN)
        return account.at(self._now())

    async def of(self, caller: Principal) -> Account:
        """The caller's account; a user of another issuer who has none yet gets one. Raises as `account` does."""
        if caller.issuer and await self._by_id.get(caller.user_id) is None:
            await self._store.create_foreign(caller.user_id, caller.tenant_id, caller.issuer, self._now())
        return await self.account(caller.user_id)

    async def deleted_elsewhere(self, since: datetime | None) -> list[UUID]:
        """Users of other issuers who were deleted here since, or of all time: their issuers may not know."""
        return await self._store.deleted_foreign_since(since or datetime.min.replace(tzinfo=UTC))


class Accounts:
    """Sign-up, sign-in by password, and the end of an account."""

    def __init__(
        self,
        store: AccountStore,
        events: EventStore,
        passwords: Passwords,
        sign_ins: SignIns,
        guard: Guard,
        receipts: Receipts,
        *,
        deleted: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """`deleted` is told that an account was deleted, and that there is something to erase elsewhere."""
        self._store = store
        self._events = events
        self._passwords = passwords
        self._sign_ins = sign_ins
        self._guard = guard
        self._receipts = receipts
        self._deleted = deleted
        self._now = now

    async def sign_up(
        self, *, email: str, password: str, tenant_id: int, device: Device, caller: Principal | None = None
    ) -> tuple[Account, Tokens]:
        """A new account, signed in; for a guest who calls, the guest's own.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, EMAIL_REGISTERED, NOT_A_GUEST; RATE_LIMITED for guesses at the
        password of a guest who has signed up.
        """
        address = parse_email(email)
        check_password(password, email=address)
        if tenant_id < 0:
            raise invalid("tenant_id", "must be 1 or more")
        check_device_name(device.name)
        if caller is not None and caller.guest:
            return await self._sign_up_guest(caller, address, password, tenant_id, device)
        account = Account(
            id=uuid4(),
            email=address,
            tenant_id=tenant_id or DEFAULT_TENANT,
            role="user",
            create_time=self._now(),
            subscription=NO_SUBSCRIPTION,
        )
        password_hash = await self._passwords.hash(password)
        sign_in, tokens = self._sign_ins.prepare(account, device, BY_PASSWORD)
        event = SecurityEvent(
            kind=Kind.SIGNED_UP, account_id=account.id, sign_in_id=sign_in.id, detail={"method": BY_PASSWORD}
        )
        await self._store.create(account, password_hash, sign_in, event)
        return account, tokens

    async def _sign_up_guest(
        self, guest: Principal, address: str, password: str, tenant_id: int, device: Device
    ) -> tuple[Account, Tokens]:
        if tenant_id not in (0, guest.tenant_id):
            raise invalid("tenant_id", "must be the guest's")
        event = SecurityEvent(
            kind=Kind.GUEST_SIGNED_UP,
            account_id=guest.user_id,
            sign_in_id=guest.sign_in_id,
            detail={"method": BY_PASSWORD},
        )
        password_hash = await self._passwords.hash(password)
        try:
            account = await self._store.upgrade(guest.user_id, address, password_hash, self._now(), event)
        except Failure as failure:
            # A phone that did not hear the answer comes again; its access token still says guest.
            found = await self._store.account_by_email(address)
            if failure.reason is not Reason.NOT_A_GUEST or found is None or found[0].id != guest.user_id:
                raise
            # By now this is a sign-in like any other, and no place to guess passwords at.
            attempt = await self._guard.begin(BY_PASSWORD, address, guest.user_id, device)
            if not await self._passwords.verify(found[1], password):
                raise
            await self._guard.succeeded(attempt)
            account, password_hash = found[0].at(self._now()), found[1]
        return account, await self._sign_ins.begin(account, device, BY_PASSWORD, password_hash=password_hash)

    async def sign_in(self, *, email: str, password: str, code: str, device: Device) -> tuple[Account, Tokens]:
        """A new sign-in.

        Raises Failure: FIELD_MISSING, INVALID_CREDENTIALS whichever of the two was wrong, or RATE_LIMITED after too
        many wrong ones, whether there is such an account or not. And as SecondFactors.require, once both are right.
        """
        if not email.strip():
            raise missing("email")
        if not password:
            raise missing("password")
        check_device_name(device.name)
        try:
            address = parse_email(email)
        except Failure:
            address = ""  # nobody's; it takes as long to refuse as anybody's
        found = await self._store.account_by_email(address)
        account_id = found[0].id if found else None
        attempt = await self._guard.begin(BY_PASSWORD, address, account_id, device)
        if not await self._passwords.verify(found[1] if found else None, password) or found is None:
            event = SecurityEvent(kind=Kind.SIGN_IN_FAILED, account_id=account_id, detail={"method": BY_PASSWORD})
            await self._events.fold(event, self._now())
            raise Failure(Reason.INVALID_CREDENTIALS)
        await self._guard.succeeded(attempt)
        account = found[0].at(self._now())
        return account, await self._sign_ins.begin(account, device, BY_PASSWORD, password_hash=found[1], code=code)

    async def delete(self, caller: Principal) -> Deleted:
        """Ends the caller's account and all its sign-ins; tells when, also the second time."""
        event = SecurityEvent(kind=Kind.ACCOUNT_DELETED, account_id=caller.user_id, sign_in_id=caller.sign_in_id)
        if caller.issuer:
            # What they have here may all be in other services.
            await self._store.create_foreign(caller.user_id, caller.tenant_id, caller.issuer, self._now())
        receipt_digest = self._receipts.digest_of(caller.user_id)
        delete_time = await self._store.delete(caller.user_id, self._now(), receipt_digest, event)
        self._deleted()
        receipt_id = self._receipts.id_of(caller.user_id)
        return Deleted(account_id=caller.user_id, delete_time=delete_time, receipt_id=receipt_id)
