"""Owns how an account gets another password: by the one it has, or by a code that its address was sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from runtime.call import Principal
from runtime.errors import Failure, Reason, missing
from services.auth.accounts import Account, parse_email
from services.auth.codes_domain import Codes, Purpose
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.mails_domain import Kind as MailKind
from services.auth.mails_domain import mail
from services.auth.passwords import Passwords, check_password

if TYPE_CHECKING:
    from services.auth.events_store import EventStore
    from services.auth.mails_store import MailStore
    from services.auth.passwords_store import Credentials, PasswordStore


class PasswordChanges:
    """Resets and changes passwords, and asks for one again before something that matters."""

    def __init__(
        self,
        store: PasswordStore,
        mails: MailStore,
        events: EventStore,
        passwords: Passwords,
        codes: Codes,
        *,
        account: Callable[[Principal], Awaitable[Account]],
        mailed: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        """`account` finds the caller's or raises Failure(INVALID_TOKEN); `mailed` is told of mail to send."""
        self._store = store
        self._mails = mails
        self._events = events
        self._passwords = passwords
        self._codes = codes
        self._known = account
        self._mailed = mailed
        self._now = now

    async def request_reset(self, email: str) -> None:
        """Has a code sent to the address, if it is an account's. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
        # Whether it is, is looked up when the mail is sent: here nothing depends on it, and nothing can be told by it.
        await self._mails.add(mail(MailKind.RESET, parse_email(email), None, self._now()))
        self._mailed()

    async def reset(self, *, email: str, code: str, new_password: str, ip: str) -> int:
        """Another password for a code; returns how many sign-ins, all of them, were ended.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CODE.
        """
        address = parse_email(email)
        check_password(new_password, email=address, field="new_password")
        found = await self._store.by_email(address)
        proof = await self._codes.check(
            code, account_id=found.account_id if found else None, email=address, purposes=[Purpose.RESET], ip=ip
        )
        password_hash = await self._passwords.hash(new_password)
        now = self._now()
        event = SecurityEvent(kind=Kind.PASSWORD_CHANGED, account_id=proof.account_id, detail={"proof": "code"})
        notice = mail(MailKind.PASSWORD_CHANGED, address, proof.account_id, now)
        ended = await self._store.set(
            proof.account_id, password_hash, proof=proof, keep=None, notice=notice, event=event, now=now
        )
        self._mailed()
        return ended

    async def change(self, caller: Principal, *, current_password: str, new_password: str, code: str, ip: str) -> int:
        """Another password for the caller's; returns how many other sign-ins, all of them, were ended.

        Raises Failure: FIELD_MISSING, FIELD_INVALID, INVALID_CREDENTIALS, INVALID_CODE.
        """
        if not current_password and not code:
            raise missing("current_password")
        account = await self._account(caller)
        check_password(new_password, email=account.email, field="new_password")
        by_code = bool(code) and not current_password
        if by_code:
            proof = await self._codes.check(
                code, account_id=account.account_id, email=account.email, purposes=[Purpose.RESET], ip=ip
            )
        old_hash = "" if by_code else await self._verified(account, caller, current_password)
        password_hash = await self._passwords.hash(new_password)
        now = self._now()
        event = SecurityEvent(
            kind=Kind.PASSWORD_CHANGED,
            account_id=account.account_id,
            sign_in_id=caller.sign_in_id,
            detail={"proof": "code" if by_code else "password"},
        )
        ended = await self._store.set(
            account.account_id,
            password_hash,
            proof=proof if by_code else old_hash,
            keep=caller.sign_in_id,
            notice=mail(MailKind.PASSWORD_CHANGED, account.email, account.account_id, now),
            event=event,
            now=now,
        )
        self._mailed()
        return ended

    async def confirm(self, caller: Principal, password: str) -> Credentials:
        """The caller's account, once its password was given. Raises Failure: FIELD_MISSING, INVALID_CREDENTIALS."""
        if not password:
            raise missing("password")
        account = await self._account(caller)
        await self._verified(account, caller, password)
        return account

    async def _account(self, caller: Principal) -> Credentials:
        account = await self._store.by_id((await self._known(caller)).id)
        if account is None:
            raise Failure(Reason.INVALID_TOKEN)
        return account

    async def _verified(self, account: Credentials, caller: Principal, password: str) -> str:
        """The hash of the account's password, once `password` is that; an account without one has none that is."""
        if await self._passwords.verify(account.password_hash, password) and account.password_hash:
            return account.password_hash
        await self._events.record(
            SecurityEvent(
                kind=Kind.PROOF_REFUSED,
                account_id=account.account_id,
                sign_in_id=caller.sign_in_id,
                detail={"proof": "password"},
            ),
            self._now(),
        )
        raise Failure(Reason.INVALID_CREDENTIALS, "The password is incorrect.")
