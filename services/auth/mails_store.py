"""Owns the outbox of mail."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.backlogs import Backlog
from runtime.database import Database, Transaction
from services.auth.codes_domain import LIFETIME, MAX_CODES, MAX_TRIES, Purpose, number_of
from services.auth.mails_domain import Kind, Mail
from services.auth.tables import accounts, code_tries, codes, mails, time

_now: Final = bindparam("now", type_=time)
_account_id: Final = bindparam("account_id", type_=sa.Uuid)
_email: Final = bindparam("email", type_=sa.Text)

_ADD: Final = sa.insert(mails).values({column.name: bindparam(column.name) for column in mails.c})
_DUE: Final = (
    sa.select(mails.c.id)
    .where(mails.c.due_time <= _now)
    .order_by(mails.c.due_time)
    .limit(1)
    .with_for_update(skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_TAKE: Final = (
    sa.update(mails)
    .values(due_time=bindparam("until"))
    .where(mails.c.id == _DUE)
    .returning(*(column for column in mails.c if column.name != "due_time"))
)
_PUT_OFF: Final = (
    sa.update(mails)
    .values(due_time=bindparam("until"), attempts=mails.c.attempts + sa.literal_column("1"))
    .where(mails.c.id == bindparam("mail_id"))
)
_BACKLOG: Final = sa.select(
    sa.func.count().label("items"), sa.func.min(mails.c.create_time).label("since")
).select_from(mails)
_FINISH: Final = sa.delete(mails).where(mails.c.id == bindparam("id"))

# Whom it is for, held so that an account's codes are made one after the other, and never for one that is being deleted.
_HOLDER: Final = (
    sa.select(accounts.c.id, accounts.c.email)
    .where(
        sa.or_(accounts.c.id == _account_id, sa.and_(_account_id.is_(None), accounts.c.email == _email)),
        accounts.c.delete_time.is_(None),
    )
    .with_for_update(key_share=True)
)
_CODE: Final = sa.select(codes.c.use_time, codes.c.tries).where(codes.c.id == bindparam("id"))
_RECENT: Final = (
    sa.select(sa.func.count().label("recent"))
    .select_from(codes)
    .where(codes.c.account_id == _account_id, codes.c.purpose == bindparam("purpose"), codes.c.expire_time > _now)
)
_TAKEN: Final = sa.select(accounts.c.id).where(accounts.c.email == _email, accounts.c.id != _account_id)
_INSERT_CODE: Final = postgresql.insert(codes).values(
    {column.name: bindparam(column.name) for column in codes.c if column.name != "use_time"}
)
_NEW_TRIES: Final = sa.delete(code_tries).where(code_tries.c.holder_id == _account_id)


async def add_mail(transaction: Transaction, mail: Mail) -> None:
    """Adds a mail to what `transaction` does. Once that is committed, tell the rounds to look."""
    await transaction.execute(
        _ADD,
        id=mail.id,
        kind=str(mail.kind),
        email=mail.email,
        account_id=mail.account_id,
        create_time=mail.create_time,
        expire_time=mail.expire_time,
        due_time=mail.create_time,
        attempts=0,
    )


class MailStore:
    """The outbox in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, mail: Mail) -> None:
        """Adds a mail that goes with no other change."""
        async with self._database.statements() as statements:
            await add_mail(statements, mail)

    async def backlog(self) -> Backlog:
        """What is still to be sent."""
        async with self._database.statements() as statements:
            return Backlog.of(await statements.one(_BACKLOG))

    async def take(self, now: datetime, claim: timedelta) -> Mail | None:
        """One that is due, which is nobody else's for as long as `claim`; None: nothing is."""
        async with self._database.statements() as statements:
            row = await statements.one(_TAKE, now=now, until=now + claim)
        return Mail(**{**row, "kind": Kind(row["kind"])}) if row else None

    async def prepare(self, mail: Mail, purpose: Purpose | None, code: str, now: datetime) -> Kind | None:
        """Makes the code of a mail good, the first time; returns what the mail is to say, None for nothing.

        Nothing is said where nobody has the address, to somebody who has had enough codes, and of a code that is no
        longer good.
        """
        if purpose is None:
            return mail.kind
        async with self._database.transaction() as transaction:
            holder = await transaction.one(_HOLDER, account_id=mail.account_id, email=mail.email)
            if holder is None or (mail.kind is Kind.VERIFY and holder["email"] != mail.email):
                return None
            account_id = holder["id"]
            made = await transaction.one(_CODE, id=mail.id)
            if made and made["use_time"]:
                return None
            if made:
                return Kind.TAKEN if mail.kind is Kind.CHANGE and made["tries"] >= MAX_TRIES else mail.kind
            recent = await transaction.one(_RECENT, account_id=account_id, purpose=str(purpose), now=now)
            if recent and recent["recent"] >= MAX_CODES:
                return None
            taken = mail.kind is Kind.CHANGE and await transaction.one(_TAKEN, account_id=account_id, email=mail.email)
            await transaction.execute(
                _INSERT_CODE,
                id=mail.id,
                account_id=account_id,
                purpose=str(purpose),
                email=mail.email,
                number=number_of(code),
                # Counted like any, or this would be a way to fill somebody's mailbox; nobody gets to know this code.
                tries=MAX_TRIES if taken else 0,
                create_time=mail.create_time,
                expire_time=mail.create_time + LIFETIME,
            )
            await transaction.execute(_NEW_TRIES, account_id=account_id)
        return Kind.TAKEN if taken else mail.kind

    async def finish(self, mail_id: UUID) -> None:
        """Strikes one off."""
        async with self._database.statements() as statements:
            await statements.execute(_FINISH, id=mail_id)

    async def put_off(self, mail_id: UUID, until: datetime) -> None:
        """Leaves one to a later time, after an attempt that failed."""
        async with self._database.statements() as statements:
            await statements.execute(_PUT_OFF, mail_id=mail_id, until=until)
