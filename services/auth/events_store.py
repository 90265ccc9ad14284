"""Owns the log of security events: written in the transaction of what happened, and told to the log with it."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.addresses import network_of
from runtime.call import Call, current
from runtime.database import Database, Transaction
from runtime.telemetry import logger
from services.auth.events_domain import Kind, LoggedEvent, SecurityEvent, fold_key_of
from services.auth.tables import accounts, security_events, time

# The tenant is that of the account; 0 where there is no account.
_INSERT: Final = postgresql.insert(security_events).values(
    {
        column.name: bindparam(column.name, type_=column.type)
        for column in security_events.c
        if column.name not in ("id", "tenant_id", "count")
    }
    | {
        "tenant_id": sa.func.coalesce(
            sa.select(accounts.c.tenant_id)
            .where(accounts.c.id == bindparam("account_id", type_=sa.Uuid))
            .scalar_subquery(),
            0,
        )
    }
)
_FOLD: Final = _INSERT.on_conflict_do_update(
    index_elements=["fold_key"],
    index_where=security_events.c.fold_key.is_not(None),
    set_={"count": security_events.c.count + sa.literal_column("1")},
)
# What is left says that it happened, and nothing of who it was or from where.
FORGET: Final = (
    sa.update(security_events)
    .values(
        ip=sa.literal_column("''"),
        user_agent=sa.literal_column("''"),
        detail=sa.literal_column("'{}'::jsonb"),
        fold_key=sa.null(),
    )
    .where(
        security_events.c.account_id == bindparam("account_id"),
        sa.or_(
            security_events.c.ip != "",
            security_events.c.user_agent != "",
            security_events.c.detail != sa.literal_column("'{}'::jsonb"),
        ),
    )
)


async def write_event(transaction: Transaction, event: SecurityEvent, now: datetime) -> None:
    """Adds an event to what `transaction` does, with where the call that is being served comes from."""
    await _write(transaction, _INSERT, event, now, fold_key=None)


async def _write(
    transaction: Transaction, statement: sa.Insert, event: SecurityEvent, now: datetime, *, fold_key: str | None
) -> None:
    call: Call | None = current.get(None)
    await transaction.execute(
        statement,
        fold_key=fold_key,
        time=now,
        kind=str(event.kind),
        account_id=event.account_id,
        sign_in_id=event.sign_in_id,
        actor=event.actor,
        ip=call.client_ip if call else "",
        user_agent=call.user_agent if call else "",
        request_id=call.request_id if call else "",
        detail=dict(event.detail),
    )
    logger().info(
        "security event",
        kind=str(event.kind),
        user=event.account_id,
        sign_in=event.sign_in_id,
        actor=event.actor,
        client=call.client_ip if call else "",
        request_id=call.request_id if call else "",
        **event.detail,
    )


class EventStore:
    """Security events in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, event: SecurityEvent, now: datetime) -> None:
        """Writes an event that goes with no other change."""
        async with self._database.statements() as statements:
            await write_event(statements, event, now)

    async def fold(self, event: SecurityEvent, now: datetime) -> None:
        """Writes an event that strangers can cause: of a kind, an account and a minute there are FOLDS rows at most."""
        call: Call | None = current.get(None)
        key = fold_key_of(event, network_of(call.client_ip) if call else "", now)
        async with self._database.statements() as statements:
            await _write(statements, _FOLD, event, now, fold_key=key)

    async def forget(self, account_id: UUID) -> dict[str, int]:
        """No event of the account says any more who it was and from where; nothing of it is counted again."""
        async with self._database.transaction() as transaction:
            await transaction.execute(FORGET, account_id=account_id)
        return {}

    async def page(
        self,
        *,
        account_id: UUID | None,
        tenant_id: int | None,
        kind: Kind | None,
        since: datetime | None,
        before: tuple[datetime, int] | None,
        limit: int,
    ) -> list[LoggedEvent]:
        """Up to `limit` events, newest first, behind the one at `before`; None: whichever."""
        given = {
            "account_id": account_id,
            "tenant_id": tenant_id,
            "kind": str(kind) if kind else None,
            "since": since,
            "before_time": before[0] if before else None,
        }
        asked = {name: value for name, value in given.items() if value is not None}
        values = {**asked, **({"before_id": before[1]} if before else {})}
        async with self._database.statements() as statements:
            rows = await statements.all(_page(frozenset(asked)), limit=limit, **values)
        return [LoggedEvent(**row) for row in rows]


@cache
def _page(asked: frozenset[str]) -> sa.Select[Any]:
    """The statement that reads a page under the conditions in `asked`, each of which has an index in its order."""
    table = security_events.c
    conditions = {
        "account_id": table.account_id == bindparam("account_id", type_=sa.Uuid),
        "tenant_id": table.tenant_id == bindparam("tenant_id", type_=sa.Integer),
        "kind": table.kind == bindparam("kind", type_=sa.Text),
        "since": table.time >= bindparam("since", type_=time),
        "before_time": sa.tuple_(table.time, table.id)
        < sa.tuple_(bindparam("before_time", type_=time), bindparam("before_id", type_=sa.BigInteger)),
    }
    return (
        sa.select(*(column for column in table if column.name not in ("tenant_id", "fold_key")))
        .where(*(conditions[name] for name in sorted(asked)))
        .order_by(table.time.desc(), table.id.desc())
        .limit(bindparam("limit", type_=sa.Integer))
    )
