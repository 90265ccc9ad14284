"""Owns the tables of the record engine and every query on them; a batch is one statement, whatever its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import orjson
import psycopg
import sqlalchemy as sa
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.arrays import BigIntegers, Booleans, Column, Integers, Texts, Times
from runtime.call import IdempotencyKey, Principal
from runtime.database import Connection, Database, Row
from runtime.errors import Failure, Reason
from services.sessions.changes_domain import Conflict, Decided
from services.sessions.policies_domain import Policy, Strategy, Winner
from services.sessions.records_domain import KEY_LIFETIME, Key, Known, Record, Write

_schema: Final = sa.MetaData(schema="sessions")
_time: Final = sa.DateTime(timezone=True)
records: Final = sa.Table(
    "records",
    _schema,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer),
    sa.Column("position", sa.BigInteger),
    sa.Column("deleted", sa.Boolean),
    sa.Column("data", postgresql.JSONB),
    sa.Column("size", sa.Integer),
    sa.Column("happen_time", _time),
    sa.Column("change_time", _time),
    sa.Column("create_time", _time),
    sa.Column("update_time", _time),
)

# The hot statements, straight on psycopg: %b sends a parameter in binary.
_CREATE_FEED: Final = "INSERT INTO sessions.feeds (user_id, position) VALUES (%b, 0) ON CONFLICT DO NOTHING"
# The row's lock puts the user's writers in a line. What is read after it, is read after the one before committed.
_LOCK_FEED: Final = "SELECT position FROM sessions.feeds WHERE user_id = %b FOR UPDATE"
_ANSWER: Final = """
    SELECT key, digest, answer FROM sessions.idempotency_keys
    WHERE user_id = %b AND rpc = %b AND key = ANY(%b) AND create_time > %b"""
# One look into the primary key for each, whatever the planner thinks of the table: with lists, or with a join, it may
# walk all of the user's records instead.
_KNOWN: Final = """
    SELECT known.* FROM unnest(%b::text[], %b::text[]) AS wanted (domain, id)
    CROSS JOIN LATERAL (
        SELECT domain, id, version, deleted, data, coalesce(change_time, update_time) AS change_time
        FROM sessions.records
        WHERE user_id = %b AND records.domain = wanted.domain AND records.id = wanted.id OFFSET 0) AS known"""
WRITE: Final = """
    INSERT INTO sessions.records AS known (
        user_id, domain, id, version, position, deleted, data, size, happen_time, change_time, create_time, update_time)
    SELECT %b::uuid, domain, id, version, position, deleted, data::jsonb, octet_length(data), happen_time, change_time,
        %b::timestamptz, %b::timestamptz
    FROM unnest(
        %b::text[], %b::text[], %b::int4[], %b::int8[], %b::bool[], %b::text[], %b::timestamptz[], %b::timestamptz[])
        AS new (domain, id, version, position, deleted, data, happen_time, change_time)
    ON CONFLICT (user_id, domain, id) DO UPDATE SET
        version = excluded.version, position = excluded.position, deleted = excluded.deleted, data = excluded.data,
        size = excluded.size, happen_time = excluded.happen_time, change_time = excluded.change_time,
        update_time = excluded.update_time"""
_ADVANCE_FEED: Final = "UPDATE sessions.feeds SET position = %b WHERE user_id = %b"
_POLICIES: Final = """
    SELECT domain, strategy, auto_resolve, notify_on_conflict FROM sessions.policies
    WHERE tenant_id = %b AND domain = ANY(%b::text[])"""
_LOG_CONFLICTS: Final = """
    INSERT INTO sessions.conflicts (
        id, tenant_id, user_id, domain, record_id, server_version, client_version, strategy, winner,
        server_data, client_data, server_time, client_time, create_time)
    SELECT id, %b::int4, %b::uuid, domain, record_id, server_version, client_version, strategy, winner,
        server_data::jsonb, client_data::jsonb, server_time, client_time, %b::timestamptz
    FROM unnest(
        %b::uuid[], %b::text[], %b::text[], %b::int4[], %b::int4[], %b::text[], %b::text[], %b::text[], %b::text[],
        %b::timestamptz[], %b::timestamptz[])
        AS new (id, domain, record_id, server_version, client_version, strategy, winner, server_data, client_data,
            server_time, client_time)"""
_CLOSE_CONFLICT: Final = """
    UPDATE sessions.conflicts SET winner = %b, resolve_time = %b
    WHERE id = %b AND user_id = %b AND winner = 'none' AND resolve_time IS NULL"""
_COUNT_PUSHED: Final = """
    INSERT INTO sessions.push_counts AS known (user_id, domain, hour, tenant_id, items)
    SELECT %b::uuid, domain, date_trunc('hour', %b::timestamptz), %b::int4, items
    FROM unnest(%b::text[], %b::int8[]) AS new (domain, items)
    ON CONFLICT (user_id, domain, hour) DO UPDATE SET items = known.items + excluded.items"""
_KEEP_ANSWER: Final = """
    INSERT INTO sessions.idempotency_keys (user_id, rpc, key, digest, answer, create_time)
    VALUES (%b, %b, %b, %b, %b, %b)
    ON CONFLICT (user_id, rpc, key) DO UPDATE SET
        digest = excluded.digest, answer = excluded.answer, create_time = excluded.create_time"""

_own: Final = sa.and_(records.c.user_id == bindparam("user_id"), records.c.domain == bindparam("domain"))
_live: Final = records.c.deleted.is_(sa.false())
RECORD: Final = tuple(
    records.c[name] for name in ("domain", "id", "version", "position", "deleted", "data", "happen_time", "update_time")
)
_ONE: Final = sa.select(*RECORD).where(_own, records.c.id == bindparam("id"))
_TAKEN: Final = (
    sa.select(sa.literal(1))
    .where(records.c.domain == sa.literal_column("'exercise'"), records.c.id == bindparam("id"))
    .limit(1)
)
_PAGE: Final = (
    sa.select(*RECORD)
    .where(
        _own,
        _live,
        records.c.happen_time
        >= sa.func.coalesce(bindparam("since", type_=_time), sa.literal_column("'-infinity'::timestamptz")),
        sa.or_(
            bindparam("exercise_id", type_=sa.Text).is_(None),
            records.c.data["exercise_id"].astext == bindparam("exercise_id", type_=sa.Text),
        ),
        sa.tuple_(records.c.happen_time, records.c.id)
        < sa.tuple_(
            sa.func.coalesce(bindparam("before_time", type_=_time), sa.literal_column("'infinity'::timestamptz")),
            sa.func.coalesce(bindparam("before_id", type_=sa.Text), sa.literal_column("''")),
        ),
    )
    .order_by(records.c.happen_time.desc(), records.c.id.desc())
    .limit(bindparam("limit", type_=sa.Integer))
)
_COUNT: Final = sa.select(sa.func.count().label("total")).where(_own, _live)


class Feed:
    """A user's feed inside a transaction that holds its lock."""

    def __init__(
        self,
        connection: Connection,
        caller: Principal,
        *,
        position: int,
        known: Mapping[Key, Known],
        policies: Mapping[str, Policy],
        default_policy: Callable[[str], Policy],
        answers: Mapping[str, Row],
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._policies = policies
        self.news: Final[list[UUID]] = []
        """Conflicts written here that the user's devices are to be told of."""
        self.advanced = False
        """Whether anything was written to the feed."""
        self._default_policy = default_policy
        self.position: Final = position
        """The last position taken; 0 for a feed that is empty."""
        self.known: Final = known
        """What is stored under the keys that were asked for."""
        self._answers = answers
        self.answer: Any = None
        """What the call was answered before; None: it is new, or there are several."""

    def policy_of(self, domain: str) -> Policy:
        """The tenant's policy for one of the domains that were asked for, or the default."""
        return self._policies.get(domain) or self._default_policy(domain)

    def answer_to(self, call: IdempotencyKey | None) -> Any:
        """What a call with this key was answered before; None: it is new.

        Raises Failure(IDEMPOTENCY_CONFLICT) when the key was used for another request of the rpc in the last 24 hours.
        """
        before = self._answers.get(call.key) if call else None
        if before is None or call is None:
            return None
        if before["digest"] != call.digest:
            raise Failure(Reason.IDEMPOTENCY_CONFLICT)
        return before["answer"]

    async def count_by_day(self, domain: str, days: Sequence[date]) -> dict[date, int]:
        """How many records of `domain`, deleted ones too, took place on each of these days in UTC."""
        cursor = await self._connection.execute(
            """
            SELECT day, count(records.id) AS total
            FROM unnest(%s::date[]) AS day
            JOIN sessions.records ON user_id = %s AND domain = %s
                AND happen_time >= day::timestamp AT TIME ZONE 'UTC'
                AND happen_time < (day + 1)::timestamp AT TIME ZONE 'UTC'
            GROUP BY day""",
            [list(days), self._caller.user_id, domain],
        )
        return {row["day"]: row["total"] for row in await cursor.fetchall()}

    async def write(self, decided: Decided, now: datetime) -> None:
        """Stores what a push came to, logs its conflicts and advances the feed."""
        connection, caller = self._connection, self._caller
        pushed = Counter(receipt.key.domain for receipt in decided.receipts if receipt.status != "REJECTED")
        async with connection.pipeline():
            if decided.writes:
                self.advanced = True
                values = [caller.user_id, now, now, *_write_columns(decided.writes)]
                await connection.execute(WRITE, values, prepare=True)
                await connection.execute(_ADVANCE_FEED, [decided.position, caller.user_id], prepare=True)
            if decided.conflicts:
                self.news.extend(one.id for one in decided.conflicts if one.policy.notify_on_conflict)
                values = [caller.tenant_id, caller.user_id, now, *_conflict_columns(decided.conflicts)]
                await connection.execute(_LOG_CONFLICTS, values, prepare=True)
            if pushed:
                values = [caller.user_id, now, caller.tenant_id, list(pushed), list(pushed.values())]
                await connection.execute(_COUNT_PUSHED, values, prepare=True)

    async def close_conflict(self, id: UUID, winner: Winner, now: datetime) -> bool:
        """Notes who won an open conflict of the caller; false when it was decided already."""
        values = [str(winner), now, id, self._caller.user_id]
        cursor = await self._connection.execute(_CLOSE_CONFLICT, values, prepare=True)
        return cursor.rowcount == 1

    async def keep(self, rpc: str, key: IdempotencyKey | None, answer: Any, now: datetime) -> None:
        """Keeps what the call was answered for repeats with the same key; nothing for a call without one."""
        if key is not None:
            values = [self._caller.user_id, rpc, key.key, key.digest, Jsonb(answer), now]
            await self._connection.execute(_KEEP_ANSWER, values, prepare=True)


class RecordStore:
    """Records in PostgreSQL."""

    def __init__(
        self,
        database: Database,
        default_policy: Callable[[str], Policy],
        *,
        committed: Callable[[UUID, Sequence[UUID]], None] = lambda *_: None,
    ) -> None:
        """`default_policy`: that of a domain on which the tenant has not decided.

        `committed` is told whose feed has advanced, once it has, and of which conflicts the user wants to know.
        """
        self._database = database
        self._default_policy = default_policy
        self._committed = committed

    @asynccontextmanager
    async def feed(
        self, caller: Principal, keys: Sequence[Key], *, rpc: str, idempotency: IdempotencyKey | None, now: datetime
    ) -> AsyncIterator[Feed]:
        """The caller's feed, locked, with what is known under `keys`, for as long as the block runs.

        Raises Failure(IDEMPOTENCY_CONFLICT) when the key was used for another request of `rpc` in the last 24 hours.
        """
        async with self.feed_of_calls(caller, keys, rpc=rpc, calls=[idempotency], now=now) as feed:
            feed.answer = feed.answer_to(idempotency)
            yield feed

    @asynccontextmanager
    async def feed_of_calls(
        self,
        caller: Principal,
        keys: Sequence[Key],
        *,
        rpc: str,
        calls: Sequence[IdempotencyKey | None],
        now: datetime,
    ) -> AsyncIterator[Feed]:
        """As `feed`, for several calls that share a transaction: ask `answer_to` for each."""
        user_id = caller.user_id
        names = [call.key for call in calls if call is not None]
        async with self._database.transaction() as transaction:
            connection = transaction.connection
            standing = await _locked(connection, user_id, keys, rpc, names, now)
            if standing is None:  # the user's first call
                await connection.execute(_CREATE_FEED, [user_id], prepare=True)
                standing = await _locked(connection, user_id, keys, rpc, names, now)
            if standing is None:
                raise LookupError("the feed that was just created is gone")
            position, answers, known = standing
            # Nothing can meet where all is new and named once.
            meeting = bool(known) or len(set(keys)) < len(keys)
            policies = await _policies(connection, caller.tenant_id, keys) if meeting else {}
            feed = Feed(
                connection,
                caller,
                position=position,
                known=known,
                policies=policies,
                default_policy=self._default_policy,
                answers=answers,
            )
            yield feed
        if feed.advanced or feed.news:
            self._committed(user_id, feed.news)

    async def record(self, user_id: UUID, key: Key) -> Record | None:
        """One of the user's records, tombstones included; None when there is none."""
        async with self._database.statements() as statements:
            row = await statements.one(_ONE, user_id=user_id, domain=key.domain, id=key.id)
        return record_of(row) if row else None

    async def exercise_exists(self, id: str) -> bool:
        """Whether anybody has an exercise session with this id."""
        async with self._database.statements() as statements:
            return await statements.one(_TAKEN, id=id) is not None

    async def page(
        self,
        user_id: UUID,
        domain: str,
        *,
        limit: int,
        since: datetime | None = None,
        exercise_id: str | None = None,
        before: tuple[datetime, str] | None = None,
    ) -> list[Record]:
        """Live records of a domain, newest first, from `since` on, below `before` (the last one of a page)."""
        async with self._database.statements() as statements:
            rows = await statements.all(
                _PAGE,
                user_id=user_id,
                domain=domain,
                limit=limit,
                since=since,
                exercise_id=exercise_id,
                before_time=before[0] if before else None,
                before_id=before[1] if before else None,
            )
        return [record_of(row) for row in rows]

    async def count(self, user_id: UUID, domain: str) -> int:
        """How many live records of a domain the user has."""
        async with self._database.statements() as statements:
            row = await statements.one(_COUNT, user_id=user_id, domain=domain)
        return int(row["total"]) if row else 0


async def _locked(
    connection: Connection, user_id: UUID, keys: Sequence[Key], rpc: str, names: Sequence[str], now: datetime
) -> tuple[int, Mapping[str, Row], dict[Key, Known]] | None:
    """The feed's position, earlier answers by idempotency key, and what is known under `keys`; None: no feed."""
    answered: psycopg.AsyncCursor[DictRow] | None = None
    async with connection.pipeline():
        locked = await connection.execute(_LOCK_FEED, [user_id], prepare=True)
        if names:
            values = [user_id, rpc, Texts(names), now - KEY_LIFETIME]
            answered = await connection.execute(_ANSWER, values, prepare=True)
        domains, ids = Texts([key.domain for key in keys]), Texts([key.id for key in keys])
        found = await connection.execute(_KNOWN, [domains, ids, user_id], prepare=True)
    row = await locked.fetchone()
    if row is None:
        return None
    answers = {one["key"]: one for one in await answered.fetchall()} if answered else {}
    known = {
        Key(one["domain"], one["id"]): Known(one["version"], one["deleted"], one["data"], one["change_time"])
        for one in await found.fetchall()
    }
    return row["position"], answers, known


async def _policies(connection: Connection, tenant_id: int, keys: Iterable[Key]) -> dict[str, Policy]:
    """What the tenant has decided for the domains of these keys."""
    domains = list({key.domain for key in keys})
    found = await connection.execute(_POLICIES, [tenant_id, domains], prepare=True)
    return {row["domain"]: _policy(row) for row in await found.fetchall()}


def _write_columns(writes: Sequence[Write]) -> list[Column]:
    keys, versions, positions, deleted, raws, happen_times, change_times = zip(*writes, strict=True)
    domains, ids = zip(*keys, strict=True)
    return [
        *(Texts(domains), Texts(ids), Integers(versions), BigIntegers(positions), Booleans(deleted), Texts(raws)),
        *(Times(happen_times), Times(change_times)),
    ]


def _conflict_columns(conflicts: Sequence[Conflict]) -> list[list[Any]]:
    rows = (
        (
            one.id,
            one.key.domain,
            one.key.id,
            one.server_version,
            one.client_version,
            str(one.policy.strategy),
            str(one.winner),
            None if one.server.data is None else orjson.dumps(one.server.data).decode(),
            None if one.client.data is None else orjson.dumps(one.client.data).decode(),
            one.server.time,
            one.client.time,
        )
        for one in conflicts
    )
    return [list(column) for column in zip(*rows, strict=True)]


def _policy(row: Row) -> Policy:
    return Policy(
        strategy=Strategy(row["strategy"]),
        auto_resolve=row["auto_resolve"],
        notify_on_conflict=row["notify_on_conflict"],
    )


def record_of(row: Row) -> Record:
    """A row of RECORD."""
    return Record(
        key=Key(row["domain"], row["id"]),
        version=row["version"],
        position=row["position"],
        deleted=row["deleted"],
        data=row["data"],
        happen_time=row["happen_time"],
        update_time=row["update_time"],
    )
