"""Owns what a push does to the tables: the user's feed locked, what is known read, and all of it written at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from runtime.arrays import BigIntegers, Booleans, Column, Integers, Texts, Times
from runtime.call import IdempotencyKey, Principal
from runtime.database import Connection, Row
from runtime.errors import Failure, Reason
from services.sessions.changes_domain import Decided
from services.sessions.conflicts_store import CLOSE, LOG, log_columns, policy_of
from services.sessions.policies_domain import Policy, Winner
from services.sessions.records_domain import KEY_LIFETIME, Key, Known, Write

# The hot statements, straight on psycopg: %b sends a parameter in binary.
_CREATE_FEED: Final = "INSERT INTO sessions.feeds (user_id, position) VALUES (%b, 0) ON CONFLICT DO NOTHING"
# The row's lock puts the user's writers in a line. What is read after it, is read after the one before committed.
_LOCK_FEED: Final = """
    SELECT position, erase_time IS NOT NULL AS erased FROM sessions.feeds WHERE user_id = %b FOR UPDATE"""
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


class Feed:
    """A user's feed inside a transaction that holds its lock."""

    def __init__(
        self,
        connection: Connection,
        caller: Principal,
        *,
        position: int,
        erased: bool,
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
        self.erased: Final = erased
        """Whether all that the user had was erased, since the account has ended."""
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
                values = [caller.tenant_id, caller.user_id, now, *log_columns(decided.conflicts)]
                await connection.execute(LOG, values, prepare=True)
            if pushed:
                values = [caller.user_id, now, caller.tenant_id, list(pushed), list(pushed.values())]
                await connection.execute(_COUNT_PUSHED, values, prepare=True)

    async def close_conflict(self, id: UUID, winner: Winner, now: datetime) -> bool:
        """Notes who won an open conflict of the caller; false when it was decided already."""
        values = [str(winner), now, id, self._caller.user_id]
        cursor = await self._connection.execute(CLOSE, values, prepare=True)
        return cursor.rowcount == 1

    async def keep(self, rpc: str, key: IdempotencyKey | None, answer: Any, now: datetime) -> None:
        """Keeps what the call was answered for repeats with the same key; nothing for a call without one."""
        if key is not None:
            values = [self._caller.user_id, rpc, key.key, key.digest, Jsonb(answer), now]
            await self._connection.execute(_KEEP_ANSWER, values, prepare=True)


async def locked_feed(
    connection: Connection,
    caller: Principal,
    keys: Sequence[Key],
    *,
    rpc: str,
    calls: Sequence[IdempotencyKey | None],
    now: datetime,
    default_policy: Callable[[str], Policy],
) -> Feed:
    """The caller's feed with what is known under `keys`, locked until the connection's transaction ends."""
    user_id = caller.user_id
    names = [call.key for call in calls if call is not None]
    standing = await _locked(connection, user_id, keys, rpc, names, now)
    if standing is None:  # the user's first call
        await connection.execute(_CREATE_FEED, [user_id], prepare=True)
        standing = await _locked(connection, user_id, keys, rpc, names, now)
    if standing is None:
        raise LookupError("the feed that was just created is gone")
    feed, answers, known = standing
    # Nothing can meet where all is new and named once.
    meeting = bool(known) or len(set(keys)) < len(keys)
    policies = await _policies(connection, caller.tenant_id, keys) if meeting else {}
    return Feed(
        connection,
        caller,
        position=feed["position"],
        erased=feed["erased"],
        known=known,
        policies=policies,
        default_policy=default_policy,
        answers=answers,
    )


async def _locked(
    connection: Connection, user_id: UUID, keys: Sequence[Key], rpc: str, names: Sequence[str], now: datetime
) -> tuple[Row, Mapping[str, Row], dict[Key, Known]] | None:
    """The feed's row, earlier answers by idempotency key, and what is known under `keys`; None: no feed."""
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
    return row, answers, known


async def _policies(connection: Connection, tenant_id: int, keys: Iterable[Key]) -> dict[str, Policy]:
    """What the tenant has decided for the domains of these keys."""
    domains = list({key.domain for key in keys})
    found = await connection.execute(_POLICIES, [tenant_id, domains], prepare=True)
    return {row["domain"]: policy_of(row) for row in await found.fetchall()}


def _write_columns(writes: Sequence[Write]) -> list[Column]:
    keys, versions, positions, deleted, raws, happen_times, change_times = zip(*writes, strict=True)
    domains, ids = zip(*keys, strict=True)
    return [
        *(Texts(domains), Texts(ids), Integers(versions), BigIntegers(positions), Booleans(deleted), Texts(raws)),
        *(Times(happen_times), Times(change_times)),
    ]
