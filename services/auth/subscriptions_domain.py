"""Owns the rules of subscriptions: what a set of events from stores amounts to, whatever order they arrived in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

from runtime.errors import Failure, Reason
from runtime.ids import parse_uuid
from runtime.telemetry import logger
from runtime.tiers import Tiers
from services.auth.accounts import NO_SUBSCRIPTION, Subscription
from services.auth.events_domain import Kind, SecurityEvent

if TYPE_CHECKING:
    from services.auth.subscriptions_store import SubscriptionStore

# A store's whole word about one purchase is a few KiB.
MAX_DOCUMENT_BYTES: Final = 256 * 1024
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)

Outcome = Literal["applied", "duplicate", "noted", "unknown_user"]


@dataclass(frozen=True, kw_only=True)
class StoreEvent:
    """Something that a store says has happened to a subscription."""

    source: str
    """Who says so: webhook or revenuecat."""
    id: str
    """Unique per source."""
    type: str
    time: datetime
    """When it happened, by the store's clock."""
    subscriber: str
    """An account's id, or what a store calls somebody who has none."""
    product: str = ""
    """What was sold; each product has a subscription of its own, of which the best one counts."""
    subscription: Subscription | None = None
    """What the subscription of the product is from then on; None: the event changes none."""
    transferred_to: str = ""
    """Who has all that the subscriber had, from then on; empty: it stays where it is."""

    @property
    def place(self) -> tuple[datetime, str, str]:
        """Where it stands among all events: by its time, and of two at once the same one first wherever they meet."""
        return self.time, self.source, self.id

    @property
    def changes(self) -> bool:
        """Whether it says anything about a subscription."""
        return self.subscription is not None or bool(self.transferred_to)


def subscriptions(events: Iterable[StoreEvent], rank: Callable[[str], int]) -> dict[str, Subscription]:
    """What each subscriber that `events` name has: a pure function of the set of them.

    `rank`: how good a tier is.
    """
    known = {(event.source, event.id): event for event in events}
    ordered = sorted(known.values(), key=lambda event: event.place)
    held: defaultdict[str, dict[str, Subscription]] = defaultdict(dict)
    for event in ordered:
        if event.transferred_to:
            moved = held.pop(event.subscriber, {})
            held[event.transferred_to].update(moved)
        elif event.subscription is not None:
            held[event.subscriber][event.product] = event.subscription
    # Which one counts is decided as of the newest event, not of now: the same events always amount to the same.
    as_of = ordered[-1].time if ordered else _FIRST
    named = {name for event in ordered for name in (event.subscriber, event.transferred_to) if name}
    return {name: _best(held.get(name, {}), as_of, rank) for name in named}


def _best(held: Mapping[str, Subscription], as_of: datetime, rank: Callable[[str], int]) -> Subscription:
    def worth(product: str) -> tuple[bool, int, datetime, str]:
        live = held[product].at(as_of).status in ("active", "cancelled")
        end = held[product].end_time or (_LAST if live else _FIRST)
        return live, rank(held[product].tier) if live else 0, end, product

    return held[max(held, key=worth)] if held else NO_SUBSCRIPTION


def account_of(subscriber: str) -> UUID | None:
    """The id of the account that a subscriber is; None: a store's own name for somebody."""
    try:
        return UUID(parse_uuid("subscriber", subscriber))
    except Failure:
        return None


def first_account(names: Iterable[str]) -> str:
    """Of the names a store has for one person the one that is an account's, in its one spelling; otherwise the first.

    Empty when there are none.
    """
    known = [name for name in names if name]
    accounts = (str(account) for name in known if (account := account_of(name)) is not None)
    return next(accounts, known[0] if known else "")


class Subscriptions:
    """Takes what stores tell, once each, and lets the accounts have what it amounts to."""

    def __init__(self, store: SubscriptionStore, tiers: Tiers, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._tiers = tiers
        self._now = now

    async def receive(self, event: StoreEvent) -> Outcome:
        """Notes an event and what it changes. Who is unknown here is no failure: the store would only repeat it."""
        now = self._now()
        async with self._store.receiving(event, now) as receiving:
            if not receiving.new:
                return "duplicate"
            if not event.changes:
                return "noted"
            amount = subscriptions(await receiving.related(), self._tiers.rank)
            due = {account: amount[name] for name in amount if (account := account_of(name)) is not None}
            before = await receiving.stored(due)
            for account, subscription in due.items():
                if account in before and before[account] != subscription:
                    detail = {"tier": subscription.tier, "status": subscription.status, "event_id": event.id}
                    changed = SecurityEvent(
                        kind=Kind.SUBSCRIPTION_CHANGED,
                        account_id=account,
                        actor=f"service:{event.source}",
                        detail=detail,
                    )
                    await receiving.write(account, subscription, changed)
        if not before:
            logger().warning("a subscription of nobody here", source=event.source, event_id=event.id)
        return "applied" if before else "unknown_user"


def check_size(document: bytes) -> None:
    """Raises Failure(TOO_LARGE) for more than a store has to say of one event."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise Failure(Reason.TOO_LARGE, f"An event has at most {MAX_DOCUMENT_BYTES} bytes.")
