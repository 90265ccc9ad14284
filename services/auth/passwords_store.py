"""Owns the queries on accounts' passwords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database, Transaction
from runtime.errors import Failure, Reason
from services.auth.application_tokens_store import end_application_tokens
from services.auth.codes_domain import Code, Purpose
from services.auth.codes_store import spend, spend_all
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.mails_domain import Mail
from services.auth.mails_store import add_mail
from services.auth.sign_ins_store import end_sign_ins
from services.auth.tables import accounts, time
from services.auth.ways_in_store import forget_identities

_NOBODYS: Final = UUID(int=0)

_credentials: Final = sa.select(accounts.c.id, accounts.c.email, accounts.c.password_hash).where(
    accounts.c.delete_time.is_(None)
)
_BY_ID: Final = _credentials.where(accounts.c.id == bindparam("id"))
_BY_EMAIL: Final = _credentials.where(accounts.c.email == bindparam("email"))

_set: Final = (
    sa.update(accounts)
    .values(password_hash=bindparam("new_hash"))
    .where(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))
)
# Who knew the old password changes that one, and not one that has been set meanwhile.
_SET_BY_PASSWORD: Final = _set.where(accounts.c.password_hash == bindparam("old_hash"))
# A code that came by mail also shows whose the address is.
_SET_BY_CODE: Final = _set.values(
    email_verify_time=sa.func.coalesce(accounts.c.email_verify_time, bindparam("now", type_=time))
).where(accounts.c.email == bindparam("email"))

_LOCK: Final = (
    sa.select(accounts.c.email_verify_time)
    .where(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))
    .with_for_update()
)

EVERY_PURPOSE: Final[Sequence[Purpose]] = tuple(Purpose)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What an account is known by."""

    account_id: UUID
    email: str
    """Empty for one without."""
    password_hash: str | None = field(repr=False)
    """None: it is signed in to by other means."""


class PasswordStore:
    """Passwords in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def by_id(self, account_id: UUID) -> Credentials | None:
        """An account's, or None when it is gone."""
        return await self._credentials(_BY_ID, id=account_id)

    async def by_email(self, email: str) -> Credentials | None:
        """Those of the account with this e-mail, or None when nobody has it."""
        return await self._credentials(_BY_EMAIL, email=email)

    async def set(
        self,
        account_id: UUID,
        password_hash: str,
        *,
        proof: Code | str,
        keep: UUID | None,
        notice: Mail,
        event: SecurityEvent,
        now: datetime,
    ) -> int:
        """Gives an account another password, and ends its sign-ins but `keep`; returns how many.

        `keep` None: whoever asks is not signed in, and application tokens end as well. `proof` is the code that was
        sent, or the hash of the password that it replaces. No code that was made before is good after.

        Raises Failure(INVALID_CODE) or Failure(INVALID_CREDENTIALS) when the proof is not good any more.
        """
        async with self._database.transaction() as transaction:
            if keep is None:
                await _end_what_a_reset_ends(transaction, account_id, now)
            given = {"account_id": account_id, "new_hash": password_hash}
            if isinstance(proof, Code):
                if not await transaction.execute(_SET_BY_CODE, **given, email=proof.email, now=now):
                    raise Failure(Reason.INVALID_CODE)
                await spend(transaction, proof, now)
            elif not await transaction.execute(_SET_BY_PASSWORD, **given, old_hash=proof):
                raise Failure(Reason.INVALID_CREDENTIALS)
            await spend_all(transaction, account_id, EVERY_PURPOSE, now)
            ended = await end_sign_ins(transaction, account_id, keep or _NOBODYS, this=False, others=True, now=now)
            if notice.email:
                await add_mail(transaction, notice)
            await write_event(transaction, event, now)
        return ended

    async def _credentials(self, statement: sa.Select[Any], **values: object) -> Credentials | None:
        async with self._database.statements() as statements:
            row = await statements.one(statement, **values)
        if row is None:
            return None
        return Credentials(account_id=row["id"], email=row["email"] or "", password_hash=row["password_hash"] or None)


async def _end_what_a_reset_ends(transaction: Transaction, account_id: UUID, now: datetime) -> None:
    """Adds to what `transaction` does that nobody gets in by what somebody else may have left behind.

    Where nobody has proved before whose the address is, that may be identities, too. A second factor stays: to read its
    owner's mail is not enough to end it.
    """
    account = await transaction.one(_LOCK, account_id=account_id)
    if account is not None and account["email_verify_time"] is None:
        await forget_identities(transaction, account_id)
    await end_application_tokens(transaction, account_id, now)
