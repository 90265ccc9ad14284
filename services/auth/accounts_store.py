"""Owns the queries on accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.call import Role
from runtime.database import Database, Row, Transaction
from runtime.errors import Failure, Reason
from services.auth.accounts import Account, Subscription
from services.auth.application_tokens_store import END_AND_FORGET as END_APPLICATION_TOKENS
from services.auth.codes_store import forget_codes_and_mails
from services.auth.deletions_store import write_deletion
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import FORGET as FORGET_EVENTS
from services.auth.events_store import write_event
from services.auth.sign_ins_domain import SignIn
from services.auth.sign_ins_store import END_AND_FORGET, end_sign_ins, write_sign_in
from services.auth.subscriptions_store import FORGET_OF_ACCOUNT
from services.auth.tables import (
    accounts,
    erasures,
    garmin_credentials,
    identities,
    recovery_codes,
    second_factors,
    time,
)


def emptied(table: sa.Table) -> sa.Delete:
    """The statement that removes an account's rows of a table with an account_id."""
    return sa.delete(table).where(table.c.account_id == bindparam("account_id"))


_now: Final = bindparam("now", type_=time)

# What only a row knows.
_HIDDEN: Final = ("password_hash", "delete_time", "issuer")
# What a new account has not got yet.
_LATER: Final = ("delete_time", "issuer")
_ACCOUNT: Final = tuple(column for column in accounts.c if column.name not in _HIDDEN)

_INSERT_ACCOUNT: Final = (
    postgresql.insert(accounts)
    .values({column.name: bindparam(column.name) for column in accounts.c if column.name not in _LATER})
    .on_conflict_do_nothing(index_elements=["email"])
    .returning(accounts.c.id)
)
# An account of somebody else's user, who has come here with a token of theirs.
_INSERT_FOREIGN: Final = (
    postgresql.insert(accounts)
    .values(
        id=bindparam("account_id"),
        email=sa.null(),
        password_hash=sa.literal_column("''"),
        tenant_id=bindparam("tenant_id"),
        role=sa.literal_column("'user'"),
        tier=sa.literal_column("'free'"),
        subscription_status=sa.literal_column("'inactive'"),
        cancel_at_period_end=sa.false(),
        create_time=_now,
        issuer=bindparam("issuer"),
    )
    .on_conflict_do_nothing(index_elements=["id"])
)
_DELETED_FOREIGN: Final = sa.select(accounts.c.id).where(
    accounts.c.issuer != sa.literal_column("''"), accounts.c.delete_time >= bindparam("since", type_=time)
)
_ACCOUNT_BY_EMAIL: Final = sa.select(*accounts.c).where(accounts.c.email == bindparam("email"))
_ACCOUNTS_BY_ID: Final = sa.select(*_ACCOUNT).where(
    accounts.c.id == sa.any_(bindparam("ids", type_=postgresql.ARRAY(sa.Uuid))), accounts.c.delete_time.is_(None)
)
# Nothing that says who it was stays; the row does, for the ended sign-ins that every service has to learn of.
_DELETE: Final = (
    sa.update(accounts)
    .values(
        email=sa.null(),
        email_verify_time=sa.null(),
        password_hash=sa.literal_column("''"),
        tier=sa.literal_column("'free'"),
        subscription_status=sa.literal_column("'inactive'"),
        subscription_end_time=sa.null(),
        cancel_at_period_end=sa.false(),
        delete_time=_now,
    )
    .where(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))
    .returning(accounts.c.delete_time)
)
_UPGRADE: Final = (
    sa.update(accounts)
    .values(email=bindparam("email"), password_hash=bindparam("password_hash"), is_guest=sa.false())
    .where(accounts.c.id == bindparam("id"), accounts.c.is_guest, accounts.c.delete_time.is_(None))
    .returning(*_ACCOUNT)
)
_SET_ROLE: Final = (
    sa.update(accounts)
    .values(role=bindparam("role"))
    .where(
        accounts.c.id == bindparam("account_id"),
        accounts.c.role != bindparam("role"),
        accounts.c.delete_time.is_(None),
    )
)
_ALL: Final = (
    sa.select(*_ACCOUNT).where(accounts.c.delete_time.is_(None)).order_by(accounts.c.create_time, accounts.c.id)
)
_DELETED: Final = sa.select(accounts.c.delete_time).where(accounts.c.id == bindparam("account_id"))
# Everything else that hangs on an account, by what its receipt calls it: emptied in the transaction that deletes the
# account, with account_id and now given, and counted. A new table is one more line here: "name": emptied(table).
OWNED: Final[Mapping[str, sa.UpdateBase]] = {
    "sign_ins": END_AND_FORGET,
    "identities": emptied(identities),
    "second_factors": emptied(second_factors),
    "recovery_codes": emptied(recovery_codes),
    "application_tokens": END_APPLICATION_TOKENS,
    "garmin_credentials": emptied(garmin_credentials),
    "subscription_events": FORGET_OF_ACCOUNT,
    "security_events": FORGET_EVENTS,
}
# Tables with an account_id that outlive the account, each with the reason.
KEPT: Final[Mapping[str, str]] = {
    "codes": "emptied before the others, with what is known by the address alone",
    "mails": "the same",
    "erasures": "what is still to be erased elsewhere",
    "deletions": "the receipt, which says nothing of whose account it was",
    "merges": "two ids, for a guest's things that are still on their way and for who asks again",
}
_INSERT_ERASURE: Final = sa.insert(erasures).values(
    account_id=bindparam("account_id"), delete_time=_now, due_time=_now, attempts=sa.literal_column("0")
)


async def write_account(transaction: Transaction, account: Account, password_hash: str) -> bool:
    """Adds an account to what `transaction` does; an empty hash is no password. False: the e-mail is another's."""
    row = await transaction.one(
        _INSERT_ACCOUNT,
        id=account.id,
        email=account.email or None,
        email_verify_time=account.email_verify_time,
        password_hash=password_hash,
        tenant_id=account.tenant_id,
        role=account.role,
        tier=account.subscription.tier,
        subscription_status=account.subscription.status,
        subscription_end_time=account.subscription.end_time,
        cancel_at_period_end=account.subscription.cancel_at_period_end,
        create_time=account.create_time,
        is_guest=account.is_guest,
    )
    return row is not None


async def delete_account(
    transaction: Transaction,
    account_id: UUID,
    now: datetime,
    receipt_digest: bytes,
    event: SecurityEvent,
    *,
    merged: bool = False,
) -> bool:
    """Adds to what `transaction` does that an account ends with all that hangs on it; False: it has ended before.

    Its erasure elsewhere is listed with it, except for a guest that was `merged`: what it has goes elsewhere first.
    """
    await forget_codes_and_mails(transaction, account_id)
    if await transaction.one(_DELETE, account_id=account_id, now=now) is None:
        return False
    removed = {
        name: count
        for name, statement in OWNED.items()
        if (count := await transaction.execute(statement, account_id=account_id, now=now))
    }
    await write_deletion(
        transaction, account_id, receipt_digest=receipt_digest, delete_time=now, removed=removed, merged=merged
    )
    if not merged:
        await list_erasure(transaction, account_id, now)
    await write_event(transaction, event, now)
    return True


async def list_erasure(transaction: Transaction, account_id: UUID, now: datetime) -> None:
    """Adds to what `transaction` does that everything of a deleted account is to be erased elsewhere, from `now` on."""
    await transaction.execute(_INSERT_ERASURE, account_id=account_id, now=now)


async def upgrade_guest(transaction: Transaction, guest_id: UUID, email: str, password_hash: str) -> Account:
    """Adds to what `transaction` does that a guest becomes an account with this address; both may be empty.

    Raises Failure: NOT_A_GUEST, INVALID_TOKEN when it is gone; psycopg.errors.UniqueViolation for another's address,
    and then the transaction is lost.
    """
    row = await transaction.one(_UPGRADE, id=guest_id, email=email or None, password_hash=password_hash)
    if row is None:
        known = await transaction.one(_ACCOUNTS_BY_ID, ids=[guest_id])
        raise Failure(Reason.NOT_A_GUEST if known else Reason.INVALID_TOKEN)
    return account_of_row(row)


class AccountStore:
    """Accounts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, account: Account, password_hash: str, sign_in: SignIn | None, event: SecurityEvent) -> None:
        """Stores a new account with its first sign-in, if it has one. Raises Failure(EMAIL_REGISTERED)."""
        async with self._database.transaction() as transaction:
            if not await write_account(transaction, account, password_hash):
                raise Failure(Reason.EMAIL_REGISTERED)
            if sign_in is not None:
                await write_sign_in(transaction, sign_in)
            await write_event(transaction, event, account.create_time)

    async def upgrade(
        self, guest_id: UUID, email: str, password_hash: str, now: datetime, event: SecurityEvent
    ) -> Account:
        """Makes a guest an account. Raises Failure: EMAIL_REGISTERED, NOT_A_GUEST, INVALID_TOKEN when it is gone."""
        try:
            async with self._database.transaction() as transaction:
                account = await upgrade_guest(transaction, guest_id, email, password_hash)
                await write_event(transaction, event, now)
        except psycopg.errors.UniqueViolation:
            raise Failure(Reason.EMAIL_REGISTERED) from None
        return account

    async def delete(self, account_id: UUID, now: datetime, receipt_digest: bytes, event: SecurityEvent) -> datetime:
        """Deletes an account, ends its sign-ins and lists its erasure elsewhere; returns when it was deleted first.

        Raises Failure(INVALID_TOKEN) when there never was such an account.
        """
        async with self._database.transaction() as transaction:
            if not await delete_account(transaction, account_id, now, receipt_digest, event):
                before = await transaction.one(_DELETED, account_id=account_id)
                if before is None:
                    raise Failure(Reason.INVALID_TOKEN)
                return before["delete_time"]  # type: ignore[no-any-return]  # a column of times
        return now

    async def create_foreign(self, account_id: UUID, tenant_id: int, issuer: str, now: datetime) -> None:
        """Stores an account for a user of another issuer, unless there is, or was, one with this id."""
        async with self._database.statements() as statements:
            await statements.execute(
                _INSERT_FOREIGN, account_id=account_id, tenant_id=tenant_id, issuer=issuer, now=now
            )

    async def deleted_foreign_since(self, since: datetime) -> list[UUID]:
        """Accounts of users of other issuers that were deleted at or after `since`."""
        async with self._database.statements() as statements:
            return [row["id"] for row in await statements.all(_DELETED_FOREIGN, since=since)]

    async def set_role(self, account_id: UUID, role: Role, event: SecurityEvent, now: datetime) -> int | None:
        """Gives an account a role and ends its sign-ins, whose tokens still name the other one; returns how many.

        None: it has the role, or is gone.
        """
        async with self._database.transaction() as transaction:
            if not await transaction.execute(_SET_ROLE, account_id=account_id, role=role):
                return None
            ended = await end_sign_ins(transaction, account_id, account_id, this=False, others=True, now=now)
            await write_event(transaction, event, now)
        return ended

    async def all(self) -> list[Account]:
        """Every account, oldest first."""
        async with self._database.statements() as statements:
            return [account_of_row(row) for row in await statements.all(_ALL)]

    async def account_by_email(self, email: str) -> tuple[Account, str] | None:
        """The account and its password hash, or None when nobody has this e-mail."""
        async with self._database.statements() as statements:
            row = await statements.one(_ACCOUNT_BY_EMAIL, email=email)
        return (account_of_row(row), row["password_hash"]) if row else None

    async def accounts(self, ids: Sequence[UUID]) -> dict[UUID, Account]:
        """Those of the accounts that exist, by id, in one statement."""
        async with self._database.statements() as statements:
            rows = await statements.all(_ACCOUNTS_BY_ID, ids=list(ids))
        return {row["id"]: account_of_row(row) for row in rows}


def account_of_row(row: Row) -> Account:
    """The account in a row of its table."""
    return Account(
        id=row["id"],
        email=row["email"] or "",
        tenant_id=row["tenant_id"],
        role=row["role"],
        create_time=row["create_time"],
        subscription=Subscription(
            tier=row["tier"],
            status=row["subscription_status"],
            end_time=row["subscription_end_time"],
            cancel_at_period_end=row["cancel_at_period_end"],
        ),
        email_verify_time=row["email_verify_time"],
        is_guest=row["is_guest"],
    )
