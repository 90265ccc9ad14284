"""Owns who may see and change whose account, and the accounts that one creates for another."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from runtime.call import Principal, Role
from runtime.errors import Failure, Reason, invalid
from services.auth.accounts import DEFAULT_TENANT, NO_SUBSCRIPTION, Account, parse_email
from services.auth.accounts_domain import KnownAccounts
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.passwords import Passwords, check_password

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore


class Users:
    """The accounts of other people."""

    def __init__(
        self, store: AccountStore, known: KnownAccounts, passwords: Passwords, *, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._known = known
        self._passwords = passwords
        self._now = now

    async def create(self, caller: Principal, *, email: str, password: str, tenant_id: int) -> Account:
        """A new account, not signed in. Raises Failure: FIELD_MISSING, FIELD_INVALID, FORBIDDEN, EMAIL_REGISTERED."""
        if tenant_id < 0:
            raise invalid("tenant_id", "must be 1 or more")
        if caller.role == "admin" and tenant_id not in (0, caller.tenant_id):
            raise Failure(Reason.FORBIDDEN, "This is another tenant.")
        tenant = tenant_id or (caller.tenant_id if caller.role == "admin" else DEFAULT_TENANT)
        account, password_hash = await prepared(
            self._passwords,
            email=email,
            password=password,
            tenant_id=tenant,
            role="user",
            now=self._now(),
        )
        event = SecurityEvent(kind=Kind.USER_CREATED, account_id=account.id, actor=actor_of(caller, account.id))
        await self._store.create(account, password_hash, None, event)
        return account

    async def get(self, caller: Principal, account_id: UUID) -> Account:
        """An account that the caller may see. Raises Failure: FORBIDDEN, NOT_FOUND."""
        if caller.role == "user" and caller.user_id != account_id:
            raise Failure(Reason.FORBIDDEN)
        if caller.issuer:
            return await self._known.of(caller)
        account = (await self._store.accounts([account_id])).get(account_id)
        if account is None:
            raise Failure(Reason.NOT_FOUND, "There is no such user.")
        if caller.role == "admin" and caller.tenant_id != account.tenant_id:
            raise Failure(Reason.FORBIDDEN, "This is a user of another tenant.")
        return account.at(self._now())

    async def find(self, caller: Principal, email: str) -> Account:
        """The account with an address. Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND."""
        found = await self._store.account_by_email(parse_email(email))
        if found is None or (caller.role == "admin" and caller.tenant_id != found[0].tenant_id):
            raise Failure(Reason.NOT_FOUND, "There is no such user.")
        return found[0].at(self._now())


async def prepared(
    passwords: Passwords, *, email: str, password: str, tenant_id: int, role: Role, now: datetime
) -> tuple[Account, str]:
    """An account that is still to be stored, and the hash of its password, empty for none.

    Raises Failure: FIELD_MISSING, FIELD_INVALID.
    """
    address = parse_email(email)
    if password:
        check_password(password)
    account = Account(
        id=uuid4(),
        email=address,
        tenant_id=tenant_id,
        role=role,
        create_time=now,
        subscription=NO_SUBSCRIPTION,
    )
    return account, await passwords.hash(password) if password else ""


def actor_of(caller: Principal, account_id: UUID) -> str:
    """Who does something to an account, as a security event says it; empty for its owner."""
    if caller.actor:
        return caller.actor
    return "" if caller.user_id == account_id else f"admin:{caller.user_id}"
