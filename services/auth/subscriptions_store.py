"""Owns the queries on events of subscriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row, Transaction
from services.auth.accounts import Subscription
from services.auth.events_domain import SecurityEvent
from services.auth.events_store import write_event
from services.auth.subscriptions_domain import StoreEvent
from services.auth.tables import accounts, subscription_events

# One event after the other, over all replicas: what an event amounts to depends on all others of its subscribers, and
# who those are, on transfers. An event takes a few milliseconds, and stores send a few for each account in a month.
_ONE_AT_A_TIME: Final = sa.select(sa.func.pg_advisory_xact_lock(sa.literal_column("7306090909")))
_INSERT: Final = (
    postgresql.insert(subscription_events)
    .values({column.name: bindparam(column.name) for column in subscription_events.c})
    .on_conflict_do_nothing(index_elements=["source", "event_id"])
)
# Everybody whom transfers connect with a subscriber, in either direction.
_seed = sa.select(bindparam("subscriber", type_=sa.Text).label("subscriber")).cte("connected", recursive=True)
_connected: Final = _seed.union(
    sa.select(
        sa.case(
            (subscription_events.c.subscriber == _seed.c.subscriber, subscription_events.c.transferred_to),
            else_=subscription_events.c.subscriber,
        )
    ).where(
        subscription_events.c.transferred_to != sa.literal_column("''"),
        sa.or_(
            subscription_events.c.subscriber == _seed.c.subscriber,
            subscription_events.c.transferred_to == _seed.c.subscriber,
        ),
    )
)
_RELATED: Final = sa.select(*subscription_events.c).where(
    subscription_events.c.subscriber.in_(sa.select(_connected.c.subscriber))
)
# Locked until the events are written, in an order of ids, so that who deletes an account finds them, or was faster.
_STORED: Final = (
    sa.select(
        accounts.c.id,
        accounts.c.tier,
        accounts.c.subscription_status,
        accounts.c.subscription_end_time,
        accounts.c.cancel_at_period_end,
    )
    .where(
        accounts.c.id == sa.any_(bindparam("ids", type_=postgresql.ARRAY(sa.Uuid))),
        accounts.c.delete_time.is_(None),
    )
    .order_by(accounts.c.id)
    .with_for_update()
)
_WRITE: Final = (
    sa.update(accounts)
    .values(
        tier=bindparam("tier"),
        subscription_status=bindparam("subscription_status"),
        subscription_end_time=bindparam("subscription_end_time"),
        cancel_at_period_end=bindparam("cancel_at_period_end"),
    )
    .where(accounts.c.id == bindparam("account_id"))
)
FORGET_OF_ACCOUNT: Final = sa.delete(subscription_events).where(
    sa.or_(
        subscription_events.c.subscriber == sa.cast(bindparam("account_id", type_=sa.Uuid), sa.Text),
        subscription_events.c.transferred_to == sa.cast(bindparam("account_id", type_=sa.Uuid), sa.Text),
    )
)


class Receiving:
    """An event while it is taken, before any other."""

    def __init__(self, transaction: Transaction, event: StoreEvent, now: datetime, *, new: bool) -> None:
        self._transaction = transaction
        self._event = event
        self._now = now
        self.new: Final = new
        """Whether it is here for the first time."""

    async def related(self) -> list[StoreEvent]:
        """All events of its subscriber, and of those whom transfers connect with it; it is among them."""
        rows = await self._transaction.all(_RELATED, subscriber=self._event.subscriber)
        return [_event(row) for row in rows]

    async def stored(self, ids: Collection[UUID]) -> dict[UUID, Subscription]:
        """What those of the accounts that exist have now."""
        rows = await self._transaction.all(_STORED, ids=list(ids))
        return {
            row["id"]: Subscription(
                tier=row["tier"],
                status=row["subscription_status"],
                end_time=row["subscription_end_time"],
                cancel_at_period_end=row["cancel_at_period_end"],
            )
            for row in rows
        }

    async def write(self, account_id: UUID, subscription: Subscription, event: SecurityEvent) -> None:
        """Gives an account another subscription."""
        await self._transaction.execute(
            _WRITE,
            account_id=account_id,
            tier=subscription.tier,
            subscription_status=subscription.status,
            subscription_end_time=subscription.end_time,
            cancel_at_period_end=subscription.cancel_at_period_end,
        )
        await write_event(self._transaction, event, self._now)


class SubscriptionStore:
    """Events of subscriptions in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def receiving(self, event: StoreEvent, now: datetime) -> AsyncIterator[Receiving]:
        """Notes an event, unless it is known, and lets the block do what follows in the same transaction."""
        async with self._database.transaction() as transaction:
            await transaction.one(_ONE_AT_A_TIME)
            said = event.subscription
            inserted = await transaction.execute(
                _INSERT,
                source=event.source,
                event_id=event.id,
                type=event.type,
                event_time=event.time,
                receive_time=now,
                subscriber=event.subscriber,
                product=event.product,
                transferred_to=event.transferred_to,
                tier=said.tier if said else None,
                status=said.status if said else None,
                end_time=said.end_time if said else None,
                cancel_at_period_end=said.cancel_at_period_end if said else None,
            )
            yield Receiving(transaction, event, now, new=inserted > 0)


def _event(row: Row) -> StoreEvent:
    said = None
    if row["tier"] is not None:
        said = Subscription(
            tier=row["tier"],
            status=row["status"],
            end_time=row["end_time"],
            cancel_at_period_end=row["cancel_at_period_end"],
        )
    return StoreEvent(
        source=row["source"],
        id=row["event_id"],
        type=row["type"],
        time=row["event_time"],
        subscriber=row["subscriber"],
        product=row["product"],
        subscription=said,
        transferred_to=row["transferred_to"],
    )
