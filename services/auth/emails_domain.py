"""Owns an account's address: that it is shown to be its owner's, and that it may become another one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from runtime.call import Principal
from runtime.errors import Failure, Reason, Violation, invalid
from services.auth.accounts import Account, parse_email
from services.auth.codes_domain import Codes, Purpose
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.mails_domain import Kind as MailKind
from services.auth.mails_domain import mail
from services.auth.passwords_domain import PasswordChanges

if TYPE_CHECKING:
    from services.auth.emails_store import EmailStore
    from services.auth.mails_store import MailStore


class Emails:
    """Verifies and changes addresses."""

    def __init__(
        self,
        store: EmailStore,
        mails: MailStore,
        passwords: PasswordChanges,
        codes: Codes,
        *,
        account: Callable[[Principal], Awaitable[Account]],
        mailed: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """`account` finds the caller's or raises Failure(INVALID_TOKEN); `mailed` is told of mail to send."""
        self._store = store
        self._mails = mails
        self._passwords = passwords
        self._codes = codes
        self._account = account
        self._mailed = mailed
        self._now = now

    async def request_verification(self, caller: Principal) -> bool:
        """Has a code sent to the account's address, unless that is verified; returns whether it is.

        Raises Failure(FIELD_MISSING) when the account has no address.
        """
        account = await self._account(caller)
        if not account.email:
            raise Failure(
                Reason.FIELD_MISSING, "email: the account has none", violations=[Violation("email", "REQUIRED")]
            )
        if account.email_verify_time is not None:
            return True
        await self._mails.add(mail(MailKind.VERIFY, account.email, account.id, self._now()))
        self._mailed()
        return False

    async def change(self, caller: Principal, *, new_email: str, password: str) -> None:
        """Has a code sent to another address, which is to be the account's.

        An address that another account has is asked for like any: its owner is told by mail, the caller is not.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CREDENTIALS.
        """
        address = parse_email(new_email, "new_email")
        account = await self._passwords.confirm(caller, password)
        if address == account.email:
            raise invalid("new_email", "is the account's address already", "UNCHANGED")
        await self._mails.add(mail(MailKind.CHANGE, address, account.account_id, self._now()))
        self._mailed()

    async def verify(self, caller: Principal, *, code: str, ip: str) -> str:
        """The address that the account has now, which a code has shown to be its owner's.

        Raises Failure: FIELD_MISSING, INVALID_CODE, EMAIL_REGISTERED.
        """
        account = await self._account(caller)
        proof = await self._codes.check(
            code,
            account_id=account.id,
            email=account.email,
            purposes=[Purpose.VERIFY, Purpose.CHANGE],
            ip=ip,
        )
        now = self._now()
        changes = proof.purpose is Purpose.CHANGE
        event = SecurityEvent(
            kind=Kind.EMAIL_CHANGED if changes else Kind.EMAIL_VERIFIED,
            account_id=account.id,
            sign_in_id=caller.sign_in_id,
        )
        if changes:
            notice = mail(MailKind.EMAIL_CHANGED, account.email, account.id, now)
            await self._store.change(proof, notice, event, now)
            self._mailed()
        else:
            await self._store.verify(proof, event, now)
        return proof.email
