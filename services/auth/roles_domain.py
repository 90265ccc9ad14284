"""Owns how somebody becomes administrator of a tenant, and stops being one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from runtime.call import Role
from runtime.errors import Failure, Reason
from services.auth.accounts import Account, parse_email
from services.auth.events_domain import Kind, SecurityEvent

if TYPE_CHECKING:
    from services.auth.accounts_store import AccountStore

BY_OPERATOR: Final = "system"


@dataclass(frozen=True, kw_only=True)
class NamedAdministrator:
    """Who is administrator of the tenant without having been made one: whoever has an address of the settings."""

    email: str
    """In any case; empty: nobody."""
    must_be_verified: bool
    """Whether the address counts only once somebody has proved to own it."""

    def role_of(self, account: Account) -> Role:
        """What an account may do, by its own role or by its address."""
        named = bool(account.email) and account.email == self.email.strip().lower()
        proved = account.email_verify_time is not None or not self.must_be_verified
        return "admin" if account.role == "admin" or (named and proved) else account.role


class Roles:
    """Changes what accounts may do."""

    def __init__(self, store: AccountStore, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def give(self, email: str, role: Role) -> tuple[Account, int | None]:
        """Gives the account with an address a role; returns how many sign-ins that ended, None: it had the role.

        The tokens of those sign-ins name the former role; all services refuse them within a second.
        Raises Failure: FIELD_MISSING, FIELD_INVALID, NOT_FOUND.
        """
        found = await self._store.account_by_email(parse_email(email))
        if found is None:
            raise Failure(Reason.NOT_FOUND, f"Nobody has the address {email}.")
        account = found[0]
        event = SecurityEvent(
            kind=Kind.ROLE_CHANGED,
            account_id=account.id,
            actor=BY_OPERATOR,
            detail={"from": account.role, "to": role},
        )
        return account, await self._store.set_role(account.id, role, event, self._now())
