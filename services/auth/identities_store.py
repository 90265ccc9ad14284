"""Owns the queries on identities."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg
import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row, Transaction
from runtime.errors import Failure, Reason
from services.auth.accounts import Account
from services.auth.accounts_store import account_of_row, upgrade_guest, write_account
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.identities import Identity
from services.auth.locks_store import hold_sign_in
from services.auth.sign_ins_domain import SignIn
from services.auth.sign_ins_store import end_sign_ins_by, write_sign_in
from services.auth.tables import accounts, identities, time
from services.auth.ways_in_store import end_ways_in

_is_it: Final = sa.and_(identities.c.provider == bindparam("provider"), identities.c.subject == bindparam("subject"))

_ACCOUNT_OF: Final = (
    sa.select(*accounts.c)
    .join(identities, identities.c.account_id == accounts.c.id)
    .where(_is_it, accounts.c.delete_time.is_(None))
)
_ACCOUNT_BY_EMAIL: Final = sa.select(*accounts.c).where(accounts.c.email == bindparam("email"))
# Whoever changes what opens an account does so one after the other.
_LOCK: Final = (
    sa.select(
        accounts.c.email,
        accounts.c.email_verify_time,
        accounts.c.password_hash,
        accounts.c.issuer,
        accounts.c.is_guest,
    )
    .where(accounts.c.id == bindparam("account_id"), accounts.c.delete_time.is_(None))
    .with_for_update()
)
_INSERT: Final = (
    postgresql.insert(identities)
    .values({column.name: bindparam(column.name) for column in identities.c})
    .on_conflict_do_nothing()
    .returning(identities.c.subject)
)
# A phone tells a name only the first time.
_REFRESH: Final = (
    sa.update(identities)
    .values(
        email=bindparam("said_email"),
        email_verified=bindparam("said_verified"),
        full_name=sa.func.coalesce(sa.func.nullif(bindparam("said_name", type_=sa.Text), ""), identities.c.full_name),
    )
    .where(_is_it)
)
_ONE: Final = sa.select(*identities.c).where(_is_it)
_OF_ACCOUNT: Final = (
    sa.select(*identities.c)
    .where(identities.c.account_id == bindparam("account_id"))
    .order_by(identities.c.create_time, identities.c.provider)
)
_FORGET: Final = sa.delete(identities).where(
    identities.c.account_id == bindparam("account_id"), identities.c.provider == bindparam("provider")
)
_VERIFY: Final = (
    sa.update(accounts)
    .values(email_verify_time=sa.func.coalesce(accounts.c.email_verify_time, bindparam("now", type_=time)))
    .where(accounts.c.id == bindparam("account_id"))
)


class _Overtaken(Exception):
    """Somebody else was faster; nothing is left of what was tried."""


class IdentityStore:
    """Identities in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def account_of(self, identity: Identity) -> Account | None:
        """The account that the identity opens."""
        async with self._database.statements() as statements:
            row = await statements.one(_ACCOUNT_OF, provider=identity.provider, subject=identity.subject)
        return account_of_row(row) if row else None

    async def account_by_email(self, email: str) -> Account | None:
        """The account with this e-mail."""
        async with self._database.statements() as statements:
            row = await statements.one(_ACCOUNT_BY_EMAIL, email=email)
        return account_of_row(row) if row else None

    async def identities(self, account_id: UUID) -> Sequence[Identity]:
        """Those that open the account, oldest first."""
        async with self._database.statements() as statements:
            return [_identity(row) for row in await statements.all(_OF_ACCOUNT, account_id=account_id)]

    async def sign_in(self, sign_in: SignIn, identity: Identity, event: SecurityEvent) -> bool:
        """Stores a sign-in by an identity that opens its account; False: it does no longer."""
        try:
            async with self._database.transaction() as transaction:
                # The account first, as everybody does who changes what opens it.
                if not await write_sign_in(transaction, sign_in):
                    return False
                row = await transaction.one(_ONE, provider=identity.provider, subject=identity.subject)
                if row is None or row["account_id"] != sign_in.account_id:
                    raise _Overtaken
                await _refresh(transaction, identity)
                await write_event(transaction, event, sign_in.create_time)
        except _Overtaken:
            return False
        return True

    async def create(self, account: Account, identity: Identity, sign_in: SignIn, event: SecurityEvent) -> bool:
        """Stores a new account that the identity opens, with its first sign-in; False: somebody was faster."""
        try:
            async with self._database.transaction() as transaction:
                if not await write_account(transaction, account, ""):
                    return False
                if not await _write_identity(transaction, account.id, identity):
                    raise _Overtaken
                await write_sign_in(transaction, sign_in)
                await write_event(transaction, event, account.create_time)
        except _Overtaken:
            return False
        return True

    async def link_by_email(
        self, identity: Identity, sign_in: SignIn, *, reclaimed: SecurityEvent | None, events: Sequence[SecurityEvent]
    ) -> bool:
        """Lets the identity open the account that has its e-mail, and stores its sign-in there.

        Where nobody has proved before that the address is theirs, every way into the account ends first, which is
        `reclaimed`; None: somebody has. False: the account has changed. Raises Failure(IDENTITY_TAKEN) when somebody
        else of the same provider opens it.
        """
        account_id, now = sign_in.account_id, sign_in.create_time
        try:
            async with self._database.transaction() as transaction:
                row = await transaction.one(_LOCK, account_id=account_id)
                if row is None or row["email"] != identity.proved_email:
                    return False
                if (row["email_verify_time"] is None) != (reclaimed is not None):
                    return False
                if reclaimed is not None:
                    await end_ways_in(transaction, account_id, now)
                    await transaction.execute(_VERIFY, account_id=account_id, now=now)
                    await write_event(transaction, reclaimed, now)
                if not await _write_identity(transaction, account_id, identity):
                    await self._refuse_second(transaction, account_id, identity)
                    raise _Overtaken
                if not await write_sign_in(transaction, sign_in):
                    raise _Overtaken
                for event in events:
                    await write_event(transaction, event, now)
        except _Overtaken:
            return False
        return True

    async def upgrade(self, identity: Identity, sign_in: SignIn, *, events: Sequence[SecurityEvent]) -> bool:
        """Makes the guest of `sign_in` an account that the identity opens, and stores the sign-in.

        False: somebody was faster. Raises Failure: NOT_A_GUEST, INVALID_TOKEN when the guest is gone.
        """
        try:
            async with self._database.transaction() as transaction:
                await _sign_up(transaction, sign_in.account_id, identity, sign_in.create_time)
                if not await _write_identity(transaction, sign_in.account_id, identity):
                    raise _Overtaken
                if not await write_sign_in(transaction, sign_in):
                    raise _Overtaken
                for event in events:
                    await write_event(transaction, event, sign_in.create_time)
        except (_Overtaken, psycopg.errors.UniqueViolation):
            return False
        return True

    async def link(
        self,
        account_id: UUID,
        identity: Identity,
        event: SecurityEvent,
        *,
        signed_up: SecurityEvent,
        by: UUID | None,
    ) -> Identity:
        """Lets the identity open the account of who signed in `by`; returns it as it is stored.

        A guest's account is `signed_up` by that. Raises Failure: IDENTITY_TAKEN, INVALID_TOKEN when the account is
        gone, TOKEN_REVOKED when the sign-in has ended, EMAIL_REGISTERED.
        """
        try:
            return await self._link(account_id, identity, event, signed_up, by)
        except psycopg.errors.UniqueViolation:
            raise Failure(
                Reason.EMAIL_REGISTERED, "An account has this address: sign in to it, and merge the guest into it."
            ) from None

    async def _link(
        self, account_id: UUID, identity: Identity, event: SecurityEvent, signed_up: SecurityEvent, by: UUID | None
    ) -> Identity:
        async with self._database.transaction() as transaction:
            row = await transaction.one(_LOCK, account_id=account_id)
            if row is None:
                raise Failure(Reason.INVALID_TOKEN)
            await hold_sign_in(transaction, by)
            if identity.proved_email and row["email"] == identity.proved_email:
                await transaction.execute(_VERIFY, account_id=account_id, now=identity.create_time)
            if await _write_identity(transaction, account_id, identity):
                if row["is_guest"]:
                    await _sign_up(transaction, account_id, identity, identity.create_time)
                    await write_event(transaction, signed_up, identity.create_time)
                await write_event(transaction, event, identity.create_time)
                return identity
            stored = await transaction.one(_ONE, provider=identity.provider, subject=identity.subject)
            if stored is not None and stored["account_id"] == account_id:
                await _refresh(transaction, identity)
                return _identity({**stored, "email": identity.email, "email_verified": identity.email_verified})
            await self._refuse_second(transaction, account_id, identity)
            raise Failure(Reason.IDENTITY_TAKEN)

    async def unlink(
        self, account_id: UUID, provider: str, *, keep: UUID, method: str, now: datetime, event: SecurityEvent
    ) -> int:
        """Ends that the account's identity of `provider` opens it, and its sign-ins by `method` but for `keep`.

        Returns how many sign-ins ended. Raises Failure: NOT_FOUND, LAST_WAY_IN.
        """
        async with self._database.transaction() as transaction:
            account = await transaction.one(_LOCK, account_id=account_id)
            linked = [row["provider"] for row in await transaction.all(_OF_ACCOUNT, account_id=account_id)]
            if account is None or provider not in linked:
                raise Failure(Reason.NOT_FOUND, "No identity of this provider opens the account.")
            if linked == [provider] and not account["password_hash"] and not account["issuer"]:
                raise Failure(
                    Reason.LAST_WAY_IN,
                    "Nothing else would open the account: set a password or link another provider first.",
                )
            await transaction.execute(_FORGET, account_id=account_id, provider=provider)
            ended = await end_sign_ins_by(transaction, account_id, method, keep=keep, now=now)
            await write_event(transaction, event, now)
        return ended

    async def _refuse_second(self, transaction: Transaction, account_id: UUID, identity: Identity) -> None:
        """Raises Failure(IDENTITY_TAKEN) when another identity of the same provider opens the account."""
        for row in await transaction.all(_OF_ACCOUNT, account_id=account_id):
            if row["provider"] == identity.provider and row["subject"] != identity.subject:
                raise Failure(
                    Reason.IDENTITY_TAKEN,
                    "Another identity of this provider opens the account; sign in with it, and unlink it first.",
                )


async def _sign_up(transaction: Transaction, guest_id: UUID, identity: Identity, now: datetime) -> None:
    """Adds to what `transaction` does that a guest becomes an account with the identity's address, if it proves one."""
    await upgrade_guest(transaction, guest_id, identity.proved_email, "")
    if identity.proved_email:
        await transaction.execute(_VERIFY, account_id=guest_id, now=now)


async def _write_identity(transaction: Transaction, account_id: UUID, identity: Identity) -> bool:
    """False: it is there already, or the account has another of its provider."""
    row = await transaction.one(
        _INSERT,
        provider=identity.provider,
        subject=identity.subject,
        account_id=account_id,
        email=identity.email,
        email_verified=identity.email_verified,
        full_name=identity.full_name,
        create_time=identity.create_time,
    )
    return row is not None


async def _refresh(transaction: Transaction, identity: Identity) -> None:
    await transaction.execute(
        _REFRESH,
        provider=identity.provider,
        subject=identity.subject,
        said_email=identity.email,
        said_verified=identity.email_verified,
        said_name=identity.full_name,
    )


def _identity(row: Row) -> Identity:
    return Identity(
        provider=row["provider"],
        subject=row["subject"],
        email=row["email"],
        email_verified=row["email_verified"],
        full_name=row["full_name"],
        create_time=row["create_time"],
    )
