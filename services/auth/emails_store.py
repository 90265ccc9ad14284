"""Owns the queries on accounts' addresses."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import psycopg
import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.database import Database
from runtime.errors import Failure, Reason
from services.auth.codes_domain import Code, Purpose
from services.auth.codes_store import spend, spend_all
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.mails_domain import Mail
from services.auth.mails_store import add_mail
from services.auth.tables import accounts, time

_now: Final = bindparam("now", type_=time)
_is_account: Final = sa.and_(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))

_VERIFY: Final = (
    sa.update(accounts)
    .values(email_verify_time=sa.func.coalesce(accounts.c.email_verify_time, _now))
    .where(_is_account, accounts.c.email == bindparam("of_email"))
)
_CHANGE: Final = sa.update(accounts).values(email=bindparam("new_email"), email_verify_time=_now).where(_is_account)


class EmailStore:
    """Addresses in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def verify(self, code: Code, event: SecurityEvent, now: datetime) -> None:
        """Notes that the account's address is its owner's. Raises Failure(INVALID_CODE) when it was another's code."""
        async with self._database.transaction() as transaction:
            if not await transaction.execute(_VERIFY, account_id=code.account_id, of_email=code.email, now=now):
                raise Failure(Reason.INVALID_CODE)
            await spend(transaction, code, now)
            await spend_all(transaction, code.account_id, [Purpose.VERIFY], now)
            await write_event(transaction, event, now)

    async def change(self, code: Code, notice: Mail, event: SecurityEvent, now: datetime) -> None:
        """Gives the account the address that the code was sent to; codes that went to the old one are good no more.

        Raises Failure: INVALID_CODE, EMAIL_REGISTERED when somebody else has it by now.
        """
        try:
            async with self._database.transaction() as transaction:
                if not await transaction.execute(_CHANGE, account_id=code.account_id, new_email=code.email, now=now):
                    raise Failure(Reason.INVALID_CODE)
                await spend(transaction, code, now)
                await spend_all(transaction, code.account_id, tuple(Purpose), now)
                if notice.email:
                    await add_mail(transaction, notice)
                await write_event(transaction, event, now)
        except psycopg.errors.UniqueViolation:
            raise Failure(Reason.EMAIL_REGISTERED) from None
