"""Owns the table of records and the reading of it; what is written, is written through a locked feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.call import IdempotencyKey, Principal
from runtime.database import Database, Row
from runtime.errors import Failure, Reason
from services.sessions.policies_domain import Policy
from services.sessions.pushes_store import Feed, locked_feed
from services.sessions.records_domain import Key, Record

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
        """As `feed`, for several calls that share a transaction: ask `answer_to` for each.

        Raises Failure(TOKEN_REVOKED) to a phone whose account has ended: what it hands over would be nobody's.
        """
        async with self._database.transaction() as transaction:
            feed = await locked_feed(
                transaction.connection,
                caller,
                keys,
                rpc=rpc,
                calls=calls,
                now=now,
                default_policy=self._default_policy,
            )
            if feed.erased and caller.role != "service":
                raise Failure(Reason.TOKEN_REVOKED)
            yield feed
        if feed.advanced or feed.news:
            self._committed(caller.user_id, feed.news)

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
