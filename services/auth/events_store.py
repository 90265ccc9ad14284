"""Owns the log of security events: written in the transaction of what happened, and told to the log with it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy import bindparam

from runtime.call import Call, current
from runtime.database import Database, Transaction
from runtime.telemetry import logger
from services.auth.events_domain import SecurityEvent
from services.auth.tables import accounts, security_events

# The tenant is that of the account; 0 where there is no account.
_INSERT: Final = sa.insert(security_events).values(
    {column.name: bindparam(column.name) for column in security_events.c if column.name not in ("id", "tenant_id")}
    | {
        "tenant_id": sa.func.coalesce(
            sa.select(accounts.c.tenant_id)
            .where(accounts.c.id == bindparam("account_id", type_=sa.Uuid))
            .scalar_subquery(),
            0,
        )
    }
)


# What stays of a deleted account's events no longer says from where it was used.
FORGET_ORIGINS: Final = (
    sa.update(security_events)
    .values(ip=sa.literal_column("''"), user_agent=sa.literal_column("''"))
    .where(security_events.c.account_id == bindparam("account_id"))
)


async def write_event(transaction: Transaction, event: SecurityEvent, now: datetime) -> None:
    """Adds an event to what `transaction` does, with where the call that is being served comes from."""
    call: Call | None = current.get(None)
    await transaction.execute(
        _INSERT,
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
