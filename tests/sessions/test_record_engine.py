"""The record engine under any interleaving of batches: the feed has no gap and no double, versions only grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.call import IdempotencyKey, Principal
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from services.sessions.changes_domain import Change, decide
from services.sessions.policies_domain import ESCALATION, Policy, Strategy
from services.sessions.records_domain import Key, Known
from services.sessions.records_store import RecordStore
from services.sessions.schemas import Schemas, encode

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
KEYS = [Key(domain, id) for domain in ("bike", "puzzle") for id in ("a", "b", "c")]

contents = st.none() | st.fixed_dictionaries(
    {"content": st.integers(min_value=0, max_value=2)},
    optional={"status": st.sampled_from(["open", "shut"]), "escalation_level": st.integers(min_value=0, max_value=1)},
)
changes = st.builds(
    lambda key, content, base, minutes, group: change(key, content, base, NOW - timedelta(minutes=minutes), group),
    st.sampled_from(KEYS),
    contents,
    st.none() | st.integers(min_value=0, max_value=4),
    st.integers(min_value=0, max_value=3),
    st.sampled_from(["", "", "", "one", "two"]),
)
policies = st.builds(
    lambda strategy: Policy(strategy=strategy, auto_resolve=strategy is not Strategy.MANUAL, notify_on_conflict=False),
    st.sampled_from(Strategy),
)


MANUAL = Policy(strategy=Strategy.MANUAL, auto_resolve=False, notify_on_conflict=False)


class Batch(NamedTuple):
    changes: list[Change]
    policy: Policy


batches = st.builds(Batch, st.lists(changes, min_size=1, max_size=6), policies)


def change(
    key: Key, data: dict[str, Any] | None, base: int | None = None, time: datetime = NOW, group: str = ""
) -> Change:
    return Change(
        key=key,
        data=data,
        raw=encode(data or {}),
        base_version=base,
        change_time=time,
        happen_time=None,
        group=group,
    )


class Held(NamedTuple):
    """What the model holds under a key."""

    version: int
    position: int
    data: dict[str, Any] | None
    time: datetime


class Model:
    """What the engine promises, told without it: one change after the other on a dictionary."""

    def __init__(self) -> None:
        self.position = 0
        self.records: dict[Key, Held] = {}
        self.conflicts = 0

    def push(self, batch: Batch) -> list[str]:
        told: dict[int, str] = {}
        for index, one in enumerate(batch.changes):
            if index in told:
                continue
            together = [
                other for other, each in enumerate(batch.changes) if each.group and each.group == one.group
            ] or [index]
            position, records, conflicts = self.position, dict(self.records), self.conflicts
            met = {}
            said = {}
            for member in together:
                met[member] = self.records.get(batch.changes[member].key)
                said[member] = self._apply(batch.changes[member], batch.policy.strategy)
            if len(together) > 1 and "CONFLICT" in said.values():
                self.position, self.records = position, records
                # A conflict with what the group itself had written is none with the server.
                real = {
                    member
                    for member, status in said.items()
                    if status == "CONFLICT" and met[member] == records.get(batch.changes[member].key)
                }
                self.conflicts = conflicts + len(real)
                said = {member: "CONFLICT" if member in real else "REJECTED" for member in together}
            told.update(said)
        return [told[index] for index in range(len(batch.changes))]

    def _apply(self, one: Change, strategy: Strategy) -> str:
        held = self.records.get(one.key)
        if held is None:
            return "DUPLICATE" if one.data is None else self._store(one, one.data)
        if held.data == one.data:
            return "DUPLICATE"
        if one.base_version == held.version:
            return self._store(one, one.data)
        self.conflicts += 1
        if strategy is Strategy.SERVER_WINS or strategy is Strategy.MANUAL:
            return "CONFLICT"
        if strategy is Strategy.MOST_RECENT_WINS and one.change_time <= held.time:
            return "CONFLICT"
        result = one.data
        if strategy is Strategy.PRESERVE_ESCALATION and held.data is not None:
            if one.data is None:
                if held.data.get("escalation_level"):
                    return "CONFLICT"
            else:
                result = {name: value for name, value in one.data.items() if name not in ESCALATION}
                for name in ESCALATION:
                    if name in held.data:
                        result[name] = held.data[name]
        return "DUPLICATE" if result == held.data else self._store(one, result)

    def _store(self, one: Change, data: dict[str, Any] | None) -> str:
        held = self.records.get(one.key)
        self.position += 1
        self.records[one.key] = Held(held.version + 1 if held else 1, self.position, data, one.change_time)
        return "APPLIED"


class Standing:
    """A feed that is not in a database."""

    def __init__(self, policy: Policy) -> None:
        self.known: dict[Key, Known] = {}
        self.position = 0
        self.policy = policy

    def policy_of(self, domain: str) -> Policy:
        return self.policy


@given(st.lists(batches, max_size=8))
def test_a_push_is_decided_as_the_model_says(sent: list[Batch]) -> None:
    model, feed = Model(), Standing(MANUAL)
    conflicts = 0
    for batch in sent:
        feed.policy = batch.policy
        decided = decide(feed, batch.changes)
        assert [receipt.status for receipt in decided.receipts] == model.push(batch)
        assert decided.position == model.position
        conflicts += len(decided.conflicts)
        assert conflicts == model.conflicts, "every conflict is logged, and nothing else"
        for write in decided.writes:
            held = model.records[write.key]
            assert feed.known.get(write.key, Known(0, False, {}, NOW)).version < write.version
            assert (write.version, write.position, write.deleted) == (held.version, held.position, held.data is None)
            feed.known[write.key] = Known(write.version, write.deleted, held.data or {}, write.change_time)
        for receipt in decided.receipts:
            assert receipt.version <= (model.records[receipt.key].version if receipt.key in model.records else 0)
        feed.position = decided.position


@given(st.lists(changes, min_size=1, max_size=6), policies)
def test_a_push_that_was_applied_is_a_duplicate_the_second_time(sent: list[Change], policy: Policy) -> None:
    once = list({one.key: one for one in sent if not one.group}.values())
    feed = Standing(policy)
    first = decide(feed, once)
    for write, held in ((write, {one.key: one for one in once}[write.key]) for write in first.writes):
        feed.known[write.key] = Known(write.version, write.deleted, held.data or {}, write.change_time)
    feed.position = first.position
    again = decide(feed, once)
    assert again.writes == []
    assert again.conflicts == []
    assert {receipt.status for receipt in again.receipts} <= {"DUPLICATE"}


@pytest.fixture(scope="module")
async def db(new_database: Callable[[], str]) -> AsyncIterator[Database]:
    async with database(new_database(), connections=8, name="test") as opened:
        yield opened


def user() -> Principal:
    return Principal(user_id=uuid4(), sign_in_id=uuid4(), tenant_id=1, role="user", tier="free")


async def push(store: RecordStore, caller: Principal, batch: Batch, key: IdempotencyKey | None = None) -> list[str]:
    """What every upload does, without the rules of a domain."""
    keys = [one.key for one in batch.changes]
    async with store.feed(caller, keys, rpc="test", idempotency=key, now=NOW) as feed:
        if feed.answer is not None:
            return list(feed.answer)
        decided = decide(feed, batch.changes, policy=batch.policy)
        statuses = [receipt.status for receipt in decided.receipts]
        await feed.write(decided, NOW)
        await feed.keep("test", key, statuses, NOW)
    return statuses


async def stored(db: Database, user_id: UUID) -> tuple[int, dict[Key, Held]]:
    """The feed's last position, and version, position and data by key."""
    async with db.transaction() as transaction:
        feed = await transaction.connection.execute("SELECT position FROM sessions.feeds WHERE user_id = %s", [user_id])
        rows = await transaction.connection.execute("SELECT * FROM sessions.records WHERE user_id = %s", [user_id])
        position = await feed.fetchone()
        found = await rows.fetchall()
    records = {
        Key(row["domain"], row["id"]): Held(
            row["version"], row["position"], None if row["deleted"] else row["data"], row["change_time"]
        )
        for row in found
    }
    return position["position"] if position else 0, records


@settings(max_examples=40)
@given(sent=st.lists(st.lists(batches, min_size=1, max_size=4), max_size=4))
async def test_any_interleaving_of_devices_leaves_one_history(db: Database, sent: list[list[Batch]]) -> None:
    """`sent`: rounds, in each of which several devices push at the same moment."""
    store, caller = RecordStore(db, Schemas().default_policy), user()
    accepted = 0
    before: dict[Key, Held] = {}
    for at_once in sent:
        outcomes = await asyncio.gather(*(push(store, caller, batch) for batch in at_once))
        accepted += sum(one == "APPLIED" for batch in outcomes for one in batch)
        position, records = await stored(db, caller.user_id)
        assert position == accepted, "every accepted change takes exactly one position"
        positions = [record.position for record in records.values()]
        assert len(set(positions)) == len(positions), "no position twice"
        assert max(positions, default=0) == position, "the last position is taken"
        assert sum(record.version for record in records.values()) == position, "as many versions as positions"
        for key, held in before.items():
            assert records[key].version >= held.version, "versions only grow"
            assert records[key].position >= held.position, "a record only moves forward"
            assert records[key].version > held.version or records[key] == held, "another content is another version"
        before = records


@settings(max_examples=25)
@given(sent=st.lists(batches, min_size=1, max_size=5))
async def test_the_database_ends_where_the_model_ends(db: Database, sent: list[Batch]) -> None:
    store, caller, model = RecordStore(db, Schemas().default_policy), user(), Model()
    for batch in sent:
        assert await push(store, caller, batch) == model.push(batch)
    assert await stored(db, caller.user_id) == (model.position, model.records)
    async with db.transaction() as transaction:
        cursor = await transaction.connection.execute(
            "SELECT count(*) AS logged FROM sessions.conflicts WHERE user_id = %s", [caller.user_id]
        )
        assert await cursor.fetchone() == {"logged": model.conflicts}


CLIENT_WINS = Policy(strategy=Strategy.CLIENT_WINS, auto_resolve=True, notify_on_conflict=False)
ONE = Batch([change(KEYS[0], {"content": 1})], CLIENT_WINS)


async def test_the_same_key_gets_the_first_answer_and_stores_nothing_twice(db: Database) -> None:
    store, caller = RecordStore(db, Schemas().default_policy), user()
    key = IdempotencyKey(key="upload-1", digest=b"one")
    answers = await asyncio.gather(*(push(store, caller, ONE, key) for _ in range(8)))
    assert answers == [["APPLIED"]] * 8
    assert await stored(db, caller.user_id) == (1, {KEYS[0]: Held(1, 1, {"content": 1}, NOW)})


async def test_the_same_key_with_other_content_is_refused(db: Database) -> None:
    store, caller = RecordStore(db, Schemas().default_policy), user()
    await push(store, caller, ONE, IdempotencyKey(key="upload-1", digest=b"one"))
    with pytest.raises(Failure) as refused:
        await push(store, caller, ONE, IdempotencyKey(key="upload-1", digest=b"two"))
    assert refused.value.reason is Reason.IDEMPOTENCY_CONFLICT


async def test_a_failure_in_the_middle_of_a_batch_leaves_nothing(db: Database) -> None:
    store, caller = RecordStore(db, Schemas().default_policy), user()
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        async with store.feed(caller, [KEYS[0]], rpc="test", idempotency=None, now=NOW) as feed:
            good = decide(feed, ONE.changes, policy=CLIENT_WINS)
            await feed.write(good, NOW)
            bad = good.writes[0]._replace(key=KEYS[1], position=2, raw="no json")
            await feed.write(good._replace(writes=[bad], position=2), NOW)
    assert await stored(db, caller.user_id) == (0, {})


async def test_a_user_cut_off_while_holding_the_feed_blocks_nobody(db: Database) -> None:
    store, caller = RecordStore(db, Schemas().default_policy), user()
    with pytest.raises(psycopg.OperationalError):
        async with store.feed(caller, [KEYS[0]], rpc="test", idempotency=None, now=NOW), db.transaction() as other:
            await other.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND datname = current_database() AND pid <> pg_backend_pid()"
            )
    assert await push(store, caller, ONE) == ["APPLIED"]
