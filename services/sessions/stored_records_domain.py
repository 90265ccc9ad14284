"""Owns what other services of the mesh store in a user's feed: the server's own word, which conflicts with nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid, missing
from runtime.ids import parse_id, parse_uuid, shown_id
from services.sessions.changes_domain import Change, Decided, Refused, decide, typed_change
from services.sessions.policies_domain import Strategy, default_policy
from services.sessions.records_domain import Key
from services.sessions.sync_domain import Answer

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore

_STORE: Final = "sync.store"
# What comes now is what there is from now on.
_NEXT_VERSION: Final = default_policy(Strategy.CLIENT_WINS)
_NO_SIGN_IN: Final = UUID(int=0)


class Given(NamedTuple):
    """A record as another service wants it to be, before it is checked."""

    domain: str
    id: str
    data: Any
    """None: there is none."""
    deleted: bool


class StoredRecords:
    """Stores what other services know of a user's records."""

    def __init__(self, store: RecordStore, domains: Domains, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._domains = domains
        self._now = now

    async def store(self, user_id: str, tenant_id: int, given: Sequence[Given | Failure]) -> Answer:
        """Makes each record what it is to be, unless it is just so already; a bad one is only its own receipt's matter.

        Raises Failure: FIELD_MISSING, FIELD_INVALID for the user or the tenant.
        """
        owner, now = owner_of(user_id, tenant_id), self._now()
        items = [self._item(one, f"records[{index}]", now) for index, one in enumerate(given)]
        keys = [item.key for item in items if item.key.id]
        async with self._store.feed(owner, keys, rpc=_STORE, idempotency=None, now=now) as feed:
            if feed.erased:
                items = [_refused_for_erased(item) for item in items]
            decided = _unopposed(decide(feed, items, policy=_NEXT_VERSION))
            await feed.write(decided._replace(receipts=[]), now)  # what a service stores is no phone's push
        return Answer(receipts=decided.receipts, server_time=now)

    def _item(self, one: Given | Failure, place: str, now: datetime) -> Change | Refused:
        if isinstance(one, Failure):
            return Refused(key=Key("", ""), group="", failure=one.within(place))
        try:
            return self._change(one, now)
        except Failure as failure:
            key = Key(shown_id(one.domain), shown_id(one.id))
            return Refused(key=key, group="", failure=failure.within(place))

    def _change(self, one: Given, now: datetime) -> Change:
        key = Key(self._domains.known(one.domain), parse_id("id", one.id))
        if one.deleted:
            return Change(key=key, data=None, raw="{}", base_version=None, change_time=now, happen_time=None, group="")
        if one.data is None:
            raise missing("data")
        if not isinstance(one.data, dict):
            raise invalid("data", "must be an object", "INVALID_TYPE")
        try:
            return typed_change(key, self._domains.prepare(key.domain, one.data, now), now=now)
        except Failure as failure:
            raise failure.within("data") from None


def owner_of(user_id: str, tenant_id: int) -> Principal:
    """For whom another service calls. Raises Failure: FIELD_MISSING, FIELD_INVALID."""
    user = UUID(parse_uuid("user_id", user_id))
    if not tenant_id:
        raise missing("tenant_id")
    if tenant_id < 0:
        raise invalid("tenant_id", "must be 1 or more")
    return Principal(user_id=user, sign_in_id=_NO_SIGN_IN, tenant_id=tenant_id, role="service", tier="")


def _refused_for_erased(item: Change | Refused) -> Change | Refused:
    """What was deleted is gone already; nothing else may come into being."""
    if isinstance(item, Change) and item.data is not None:
        failure = Failure(Reason.NOT_FOUND, "The user was erased.")
        return Refused(key=item.key, group=item.group, failure=failure)
    return item


def _unopposed(decided: Decided) -> Decided:
    """The same without the conflicts: nobody has lost, since nobody else has a say."""
    return decided._replace(receipts=[one._replace(notice=None) for one in decided.receipts], conflicts=[])
