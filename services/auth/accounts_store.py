"""Owns the queries on accounts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.call import Role
from runtime.database import Database, Row
from runtime.errors import Failure, Reason
from services.auth.accounts import Account, Subscription
from services.auth.application_tokens_store import end_application_tokens
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.garmin_credentials_store import forget_garmin_credentials
from services.auth.sign_ins_domain import SignIn
from services.auth.sign_ins_store import end_and_forget_sign_ins, end_sign_ins, write_sign_in
from services.auth.tables import accounts, erasures, time

_now: Final = bindparam("now", type_=time)

_ACCOUNT: Final = tuple(column for column in accounts.c if column.name not in ("password_hash", "delete_time"))

_INSERT_ACCOUNT: Final = (
    postgresql.insert(accounts)
    .values({column.name: bindparam(column.name) for column in accounts.c if column.name != "delete_time"})
    .on_conflict_do_nothing(index_elements=["email"])
    .returning(accounts.c.id)
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
_INSERT_ERASURE: Final = sa.insert(erasures).values(
    account_id=bindparam("account_id"), delete_time=_now, due_time=_now, attempts=sa.literal_column("0")
)


class AccountStore:
    """Accounts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, account: Account, password_hash: str, sign_in: SignIn | None, event: SecurityEvent) -> None:
        """Stores a new account with its first sign-in, if it has one. Raises Failure(EMAIL_REGISTERED)."""
        async with self._database.transaction() as transaction:
            row = await transaction.one(
                _INSERT_ACCOUNT,
                id=account.id,
                email=account.email or None,
                password_hash=password_hash,
                tenant_id=account.tenant_id,
                role=account.role,
                tier=account.subscription.tier,
                subscription_status=account.subscription.status,
                subscription_end_time=account.subscription.end_time,
                cancel_at_period_end=account.subscription.cancel_at_period_end,
                create_time=account.create_time,
            )
            if row is None:
                raise Failure(Reason.EMAIL_REGISTERED)
            if sign_in is not None:
                await write_sign_in(transaction, sign_in)
            await write_event(transaction, event, account.create_time)

    async def delete(self, account_id: UUID, now: datetime, event: SecurityEvent) -> datetime:
        """Deletes an account, ends its sign-ins and lists its erasure elsewhere; returns when it was deleted first.

        Raises Failure(INVALID_TOKEN) when there never was such an account.
        """
        async with self._database.transaction() as transaction:
            deleted = await transaction.one(_DELETE, account_id=account_id, now=now)
            if deleted is None:
                before = await transaction.one(_DELETED, account_id=account_id)
                if before is None:
                    raise Failure(Reason.INVALID_TOKEN)
                return before["delete_time"]  # type: ignore[no-any-return]  # a column of times
            await end_and_forget_sign_ins(transaction, account_id, now)
            await end_application_tokens(transaction, account_id, now)
            await forget_garmin_credentials(transaction, account_id)
            await transaction.execute(_INSERT_ERASURE, account_id=account_id, now=now)
            await write_event(transaction, event, now)
        return now

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
            return [_account(row) for row in await statements.all(_ALL)]

    async def account_by_email(self, email: str) -> tuple[Account, str] | None:
        """The account and its password hash, or None when nobody has this e-mail."""
        async with self._database.statements() as statements:
            row = await statements.one(_ACCOUNT_BY_EMAIL, email=email)
        return (_account(row), row["password_hash"]) if row else None

    async def accounts(self, ids: Sequence[UUID]) -> dict[UUID, Account]:
        """Those of the accounts that exist, by id, in one statement."""
        async with self._database.statements() as statements:
            rows = await statements.all(_ACCOUNTS_BY_ID, ids=list(ids))
        return {row["id"]: _account(row) for row in rows}


def _account(row: Row) -> Account:
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
    )
