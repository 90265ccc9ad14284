"""The record engine under any interleaving of batches: the feed has no gap and no double, versions only grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.call import IdempotencyKey
from runtime.database import Database, database
from runtime.errors import Failure, Reason
from services.sessions.records_domain import Draft, Key, Known, Outcome, Resolution, merge
from services.sessions.records_store import RecordStore
from services.sessions.schemas import encode

NOW = datetime(2026, 2, 26, 10, tzinfo=UTC)
KEYS = [Key(domain, id) for domain in ("bike", "puzzle") for id in ("a", "b", "c")]

drafts = st.builds(
    lambda key, content: draft(key, {"content": content}), st.sampled_from(KEYS), st.integers(min_value=0, max_value=2)
)
resolutions = st.sampled_from(Resolution)


class Batch(NamedTuple):
    drafts: list[Draft]
    resolution: Resolution


batches = st.builds(Batch, st.lists(drafts, min_size=1, max_size=6), resolutions)


def draft(key: Key, data: dict[str, Any]) -> Draft:
    return Draft(key=key, data=data, raw=encode(data), happen_time=NOW)


class Model:
    """What the engine promises, told without it: one batch after the other on a dictionary."""

    def __init__(self) -> None:
        self.position = 0
        self.records: dict[Key, tuple[int, int, dict[str, Any]]] = {}
        """Version, position and data by key."""

    def apply(self, batch: Batch) -> list[Outcome]:
        return [self._apply(one, batch.resolution) for one in batch.drafts]

    def _apply(self, one: Draft, resolution: Resolution) -> Outcome:
        if one.key in self.records:
            version, _, data = self.records[one.key]
            if data == one.data or resolution is Resolution.FIRST_WINS:
                return Outcome.DUPLICATE
            if resolution is Resolution.SERVER_WINS:
                return Outcome.CONFLICT
            outcome = Outcome.UPDATED
        else:
            version, outcome = 0, Outcome.CREATED
        self.position += 1
        self.records[one.key] = (version + 1, self.position, one.data)
        return outcome


@given(st.lists(batches, max_size=8))
def test_a_merge_is_what_the_model_says(sent: list[Batch]) -> None:
    model, position, known = Model(), 0, dict[Key, Known]()
    for batch in sent:
        merged = merge(known, position, batch.drafts, batch.resolution)
        assert merged.outcomes == model.apply(batch)
        assert merged.position == model.position
        for write in merged.writes:
            assert known.get(write.key, Known(0, False, {})).version < write.version
            known[write.key] = Known(write.version, write.deleted, model.records[write.key][2])
            assert (write.version, write.position) == model.records[write.key][:2]
        position = merged.position


@given(st.lists(drafts, min_size=1, max_size=6), st.integers(min_value=0, max_value=100))
def test_sending_a_batch_again_changes_nothing(sent: list[Draft], position: int) -> None:
    first = merge({}, position, sent, Resolution.FIRST_WINS)
    known = {write.key: Known(write.version, False, {"content": 0}) for write in first.writes}
    again = merge(known, first.position, sent, Resolution.FIRST_WINS)
    assert again.writes == []
    assert again.position == first.position
    assert set(again.outcomes) == {Outcome.DUPLICATE}


@pytest.fixture(scope="module")
async def db(new_database: Callable[[], str]) -> AsyncIterator[Database]:
    async with database(new_database(), connections=8, name="test") as opened:
        yield opened


async def push(store: RecordStore, user_id: UUID, batch: Batch, key: IdempotencyKey | None = None) -> list[Outcome]:
    """What every typed upload does, without the rules of a domain."""
    keys = [one.key for one in batch.drafts]
    async with store.feed(user_id, keys, rpc="test", idempotency=key, now=NOW) as feed:
        if feed.answer is not None:
            return [Outcome(one) for one in feed.answer]
        merged = merge(feed.known, feed.position, batch.drafts, batch.resolution)
        await feed.write(merged.writes, merged.position, NOW)
        await feed.keep("test", key, [str(one) for one in merged.outcomes], NOW)
    return merged.outcomes


async def stored(db: Database, user_id: UUID) -> tuple[int, dict[Key, tuple[int, int, dict[str, Any]]]]:
    """The feed's last position, and version, position and data by key."""
    async with db.transaction() as transaction:
        feed = await transaction.connection.execute("SELECT position FROM sessions.feeds WHERE user_id = %s", [user_id])
        rows = await transaction.connection.execute("SELECT * FROM sessions.records WHERE user_id = %s", [user_id])
        position = await feed.fetchone()
        found = await rows.fetchall()
    records = {Key(row["domain"], row["id"]): (row["version"], row["position"], row["data"]) for row in found}
    return position["position"] if position else 0, records


@settings(max_examples=40)
@given(sent=st.lists(st.lists(batches, min_size=1, max_size=4), max_size=4))
async def test_any_interleaving_of_devices_leaves_one_history(db: Database, sent: list[list[Batch]]) -> None:
    """`sent`: rounds, in each of which several devices push at the same moment."""
    store, user_id = RecordStore(db), uuid4()
    accepted = 0
    before: dict[Key, tuple[int, int, dict[str, Any]]] = {}
    for at_once in sent:
        outcomes = await asyncio.gather(*(push(store, user_id, batch) for batch in at_once))
        accepted += sum(one in (Outcome.CREATED, Outcome.UPDATED) for batch in outcomes for one in batch)
        position, records = await stored(db, user_id)
        assert position == accepted, "every accepted change takes exactly one position"
        positions = [record[1] for record in records.values()]
        assert len(set(positions)) == len(positions), "no position twice"
        assert max(positions, default=0) == position, "the last position is taken"
        assert sum(record[0] for record in records.values()) == position, "as many versions as positions"
        for key, (version, place, data) in before.items():
            assert records[key][0] >= version, "versions only grow"
            assert records[key][1] >= place, "a record only moves forward"
            assert records[key][0] > version or records[key][2] == data, "another content is another version"
        before = records


@settings(max_examples=25)
@given(sent=st.lists(batches, min_size=1, max_size=5))
async def test_the_database_ends_where_the_model_ends(db: Database, sent: list[Batch]) -> None:
    store, user_id, model = RecordStore(db), uuid4(), Model()
    for batch in sent:
        assert await push(store, user_id, batch) == model.apply(batch)
    assert await stored(db, user_id) == (model.position, model.records)


async def test_the_same_key_gets_the_first_answer_and_stores_nothing_twice(db: Database) -> None:
    store, user_id = RecordStore(db), uuid4()
    batch = Batch([draft(KEYS[0], {"content": 1})], Resolution.CLIENT_WINS)
    key = IdempotencyKey(key="upload-1", digest=b"one")
    answers = await asyncio.gather(*(push(store, user_id, batch, key) for _ in range(8)))
    assert answers == [[Outcome.CREATED]] * 8
    assert await stored(db, user_id) == (1, {KEYS[0]: (1, 1, {"content": 1})})


async def test_the_same_key_with_other_content_is_refused(db: Database) -> None:
    store, user_id = RecordStore(db), uuid4()
    batch = Batch([draft(KEYS[0], {"content": 1})], Resolution.CLIENT_WINS)
    await push(store, user_id, batch, IdempotencyKey(key="upload-1", digest=b"one"))
    with pytest.raises(Failure) as refused:
        await push(store, user_id, batch, IdempotencyKey(key="upload-1", digest=b"two"))
    assert refused.value.reason is Reason.IDEMPOTENCY_CONFLICT


async def test_a_failure_in_the_middle_of_a_batch_leaves_nothing(db: Database) -> None:
    store, user_id = RecordStore(db), uuid4()
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        async with store.feed(user_id, [KEYS[0]], rpc="test", idempotency=None, now=NOW) as feed:
            good = merge(feed.known, feed.position, [draft(KEYS[0], {"content": 1})], Resolution.CLIENT_WINS)
            await feed.write(good.writes, good.position, NOW)
            await feed.write([good.writes[0]._replace(key=KEYS[1], position=2, raw="no json")], 2, NOW)
    assert await stored(db, user_id) == (0, {})


async def test_a_user_cut_off_while_holding_the_feed_blocks_nobody(db: Database) -> None:
    store, user_id = RecordStore(db), uuid4()
    batch = Batch([draft(KEYS[0], {"content": 1})], Resolution.CLIENT_WINS)
    with pytest.raises(psycopg.OperationalError):
        async with store.feed(user_id, [KEYS[0]], rpc="test", idempotency=None, now=NOW), db.transaction() as other:
            await other.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND datname = current_database() AND pid <> pg_backend_pid()"
            )
    assert await push(store, user_id, batch) == [Outcome.CREATED]
