"""Owns how typed calls save records: each under its id and the tenant's policy, with a result of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import orjson

from runtime.call import IdempotencyKey, Principal
from runtime.errors import Failure, Reason, kept, recalled
from runtime.ids import parse_id
from runtime.outcomes import Tally
from services.sessions.batches import capture
from services.sessions.changes_domain import Change, Receipt, decide, typed_change
from services.sessions.records_domain import Key

if TYPE_CHECKING:
    from services.sessions.domains import Domains
    from services.sessions.records_store import RecordStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A record as it was sent, before it is checked."""

    id: Any
    """Empty or None: the server names it."""
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one item."""

    id: str
    """As it was sent or given; empty for an error in an item whose id is none."""
    status: str
    """created, updated, duplicate, conflict or error."""
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A record as it stands after a call that was about it alone."""

    id: str
    data: dict[str, Any]


class TypedRecords:
    """Saves records of one domain for calls that know no versions."""

    def __init__(
        self,
        store: RecordStore,
        domains: Domains,
        domain: str,
        *,
        is_named_by_content: Callable[[dict[str, Any]], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`is_named_by_content`: whether data without an id is the same thing whenever it is sent again."""
        self._store = store
        self._domains = domains
        self._domain = domain
        self._is_named_by_content = is_named_by_content
        self._now = now

    async def save(
        self, caller: Principal, items: Sequence[Submitted | Failure], key: IdempotencyKey | None, *, field: str
    ) -> list[Result]:
        """Stores each item; a bad one, named as field[index], is only its own result's failure."""
        now, rpc = self._now(), f"{self._domain}.save"
        changes = capture(lambda item: self._change(caller, item, now), items)
        good = [change for change in changes if isinstance(change, Change)]
        async with self._store.feed(caller, [change.key for change in good], rpc=rpc, idempotency=key, now=now) as feed:
            if feed.answer is not None:
                return [_recalled(one) for one in feed.answer]
            decided = decide(feed, good)
            await feed.write(decided, now)
            receipts = iter(decided.receipts)
            results = [
                _refused(item, change.within(f"{field}[{index}]"))
                if isinstance(change, Failure)
                else _result(next(receipts))
                for index, (item, change) in enumerate(zip(items, changes, strict=True))
            ]
            await feed.keep(rpc, key, [_kept(result) for result in results], now)
        return results

    async def save_one(self, caller: Principal, item: Submitted, key: IdempotencyKey | None) -> Stored:
        """Stores an item. Raises Failure: its refusal, or SYNC_CONFLICT when the server's version stands."""
        now, rpc = self._now(), f"{self._domain}.save_one"
        change = self._change(caller, item, now)
        async with self._store.feed(caller, [change.key], rpc=rpc, idempotency=key, now=now) as feed:
            if feed.answer is not None:
                change_id, status, data = feed.answer["id"], feed.answer["status"], feed.answer["data"]
            else:
                decided = decide(feed, [change])
                await feed.write(decided, now)
                change_id, status = change.key.id, decided.receipts[0].status
                data = orjson.loads(decided.writes[0].raw) if decided.writes else change.data
                await feed.keep(rpc, key, {"id": change_id, "status": status, "data": data}, now)
        if status == "CONFLICT":
            raise Failure(Reason.SYNC_CONFLICT, "id: the server holds another version, which stands")
        return Stored(id=change_id, data=data)

    def _change(self, caller: Principal, item: Submitted, now: datetime) -> Change:
        given = None if item.id is None or item.id == "" else parse_id("id", item.id)
        prepared = self._domains.prepare(self._domain, item.data, now)
        change = typed_change(Key(self._domain, given or ""), prepared, now=now)
        if given is not None:
            return change
        # typed_change has checked the data, so it can be written here as JSON.
        by_content = self._is_named_by_content(prepared.data)
        id = _name(caller.user_id, prepared.data) if by_content else str(uuid4())
        return change._replace(key=Key(self._domain, id))


def _name(user_id: UUID, data: dict[str, Any]) -> str:
    """An id for what has none: the same whenever the user sends the same."""
    return str(uuid5(user_id, orjson.dumps(data, option=orjson.OPT_SORT_KEYS).decode()))


def counts(results: Sequence[Result]) -> Counter[str]:
    """How many results there are of each status."""
    return Counter(result.status for result in results)


def tally_of(domain: str, results: Sequence[Result]) -> Tally:
    """What became of a batch."""
    found = counts(results)
    return Tally(domain, len(results), found["conflict"], found["error"])


def _result(receipt: Receipt) -> Result:
    applied = "created" if receipt.version == 1 else "updated"
    status = applied if receipt.status == "APPLIED" else receipt.status.lower()
    return Result(id=receipt.key.id, status=status)


def _refused(item: Submitted | Failure, failure: Failure) -> Result:
    id = item.id if isinstance(item, Submitted) else None
    shown = id[:100].encode("utf-8", "replace").decode() if isinstance(id, str) else ""
    return Result(id=shown.replace("\x00", "?"), status="error", failure=failure)


def _kept(result: Result) -> dict[str, Any]:
    """A result as JSON, for a call that is repeated. Pairs with _recalled."""
    failure = result.failure
    return {"id": result.id, "status": result.status, "failure": None if failure is None else kept(failure)}


def _recalled(said: dict[str, Any]) -> Result:
    failure = None if said["failure"] is None else recalled(said["failure"])
    return Result(id=said["id"], status=said["status"], failure=failure)
