"""Owns the queries on application tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row, Transaction
from runtime.errors import Failure, Reason
from services.auth.accounts import Subscription
from services.auth.application_tokens_domain import ApplicationToken, HeldToken
from services.auth.events_domain import Kind, SecurityEvent
from services.auth.events_store import write_event
from services.auth.locks_store import hold_account, hold_sign_in
from services.auth.tables import accounts, time
from services.auth.tables import application_tokens as table

_now: Final = bindparam("now", type_=time)
_is_of_account: Final = table.c.account_id == bindparam("account_id", type_=sa.Uuid)

_INSERT: Final = sa.insert(table).values({column.name: bindparam(column.name) for column in table.c})
_LIVE: Final = (
    sa.select(*table.c)
    .where(_is_of_account, table.c.revoke_time.is_(None))
    .order_by(table.c.create_time.desc(), table.c.id)
)
_CHANGE: Final = (
    sa.update(table)
    .values(name=bindparam("name"), revoke_time=bindparam("revoke_time", type_=time))
    .where(table.c.id == bindparam("token_id"))
)
# Nothing that says what it was stays of a deleted account's; the row does, for every service has to learn of its end.
END_AND_FORGET: Final = (
    sa.update(table)
    .values(name=sa.literal_column("''"), revoke_time=sa.func.coalesce(table.c.revoke_time, _now))
    .where(_is_of_account)
)
_END_ALL: Final = (
    sa.update(table).values(revoke_time=_now).where(_is_of_account, table.c.revoke_time.is_(None)).returning(table.c.id)
)
_HELD: Final = (
    sa.select(
        *table.c,
        accounts.c.tenant_id,
        accounts.c.tier,
        accounts.c.subscription_status,
        accounts.c.subscription_end_time,
        accounts.c.cancel_at_period_end,
    )
    .join(accounts, accounts.c.id == table.c.account_id)
    .where(table.c.digest == sa.any_(bindparam("digests", type_=postgresql.ARRAY(sa.LargeBinary))))
)
_USED: Final = (
    sa.update(table)
    .values(last_use_time=_now)
    .where(
        table.c.id == sa.any_(bindparam("ids", type_=postgresql.ARRAY(sa.Uuid))),
        sa.func.coalesce(table.c.last_use_time < bindparam("before", type_=time), sa.true()),
    )
)


async def end_application_tokens(transaction: Transaction, account_id: UUID, now: datetime) -> int:
    """Adds to what `transaction` does that an account's tokens end; how many did."""
    ended = await transaction.all(_END_ALL, account_id=account_id, now=now)
    for row in ended:
        event = SecurityEvent(
            kind=Kind.APPLICATION_TOKEN_REVOKED, account_id=account_id, sign_in_id=row["id"], actor="system"
        )
        await write_event(transaction, event, now)
    return len(ended)


class ApplicationTokenStore:
    """Application tokens in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, token: ApplicationToken, event: SecurityEvent, most: int, *, by: UUID | None) -> None:
        """Stores a token that somebody asks for who signed in `by`.

        Raises Failure: NOT_FOUND, TOKEN_REVOKED when that has ended, ALREADY_EXISTS when the account has as many as
        `most`.
        """
        async with self._database.transaction() as transaction:
            if len(await _live(transaction, token.account_id)) >= most:
                raise Failure(Reason.ALREADY_EXISTS, f"The user has {most} tokens; end one first.")
            await hold_sign_in(transaction, by)
            await transaction.execute(_INSERT, **_values(token))
            await write_event(transaction, event, token.create_time)

    async def update(
        self,
        account_id: UUID,
        change: Callable[[Sequence[ApplicationToken]], tuple[ApplicationToken, ApplicationToken | None, SecurityEvent]],
        now: datetime,
        *,
        by: UUID | None,
    ) -> ApplicationToken:
        """Changes one of an account's tokens, or puts a successor in its place; returns what is there then.

        `change` is given those that were not ended, `by` is as in `create`. Raises what `change` raises, and Failure:
        NOT_FOUND, TOKEN_REVOKED.
        """
        async with self._database.transaction() as transaction:
            changed, successor, event = change(await _live(transaction, account_id))
            await hold_sign_in(transaction, by)
            await transaction.execute(_CHANGE, token_id=changed.id, name=changed.name, revoke_time=changed.revoke_time)
            if successor is not None:
                await transaction.execute(_INSERT, **_values(successor))
            await write_event(transaction, event, now)
        return successor or changed

    async def live(self, account_id: UUID) -> list[ApplicationToken]:
        """An account's tokens that were not ended, newest first."""
        async with self._database.statements() as statements:
            return [_token(row) for row in await statements.all(_LIVE, account_id=account_id)]

    async def held(self, digests: Sequence[bytes]) -> list[HeldToken]:
        """Those of the tokens that there ever were."""
        async with self._database.statements() as statements:
            rows = await statements.all(_HELD, digests=list(digests))
        return [_held(row) for row in rows]

    async def used(self, ids: Sequence[UUID], now: datetime, before: datetime) -> None:
        """Says that tokens were used now, unless it was said after `before`."""
        if ids:
            async with self._database.statements() as statements:
                await statements.execute(_USED, ids=list(ids), now=now, before=before)


async def _live(transaction: Transaction, account_id: UUID) -> list[ApplicationToken]:
    if not await hold_account(transaction, account_id):
        raise Failure(Reason.NOT_FOUND, "There is no such user.")
    return [_token(row) for row in await transaction.all(_LIVE, account_id=account_id)]


def _token(row: Row) -> ApplicationToken:
    values = {column.name: row[column.name] for column in table.c}
    return ApplicationToken(**{**values, "scopes": frozenset(row["scopes"])})


def _held(row: Row) -> HeldToken:
    return HeldToken(
        token=_token(row),
        tenant_id=row["tenant_id"],
        subscription=Subscription(
            tier=row["tier"],
            status=row["subscription_status"],
            end_time=row["subscription_end_time"],
            cancel_at_period_end=row["cancel_at_period_end"],
        ),
    )


def _values(token: ApplicationToken) -> dict[str, object]:
    return {column.name: getattr(token, column.name) for column in table.c} | {"scopes": sorted(token.scopes)}
