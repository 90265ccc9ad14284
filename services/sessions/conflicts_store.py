"""Owns the tables of policies and conflicts and the statements on them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql

from runtime.database import Database, Row
from services.sessions.changes_domain import Conflict
from services.sessions.conflicts_domain import LoggedConflict, Scope
from services.sessions.policies_domain import Policy, Side, Strategy, Winner
from services.sessions.records_domain import Key

_schema: Final = sa.MetaData(schema="sessions")
_time: Final = sa.DateTime(timezone=True)
policies: Final = sa.Table(
    "policies",
    _schema,
    sa.Column("tenant_id", sa.Integer, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("strategy", sa.Text),
    sa.Column("auto_resolve", sa.Boolean),
    sa.Column("notify_on_conflict", sa.Boolean),
    sa.Column("update_time", _time),
)
conflicts: Final = sa.Table(
    "conflicts",
    _schema,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("user_id", sa.Uuid),
    sa.Column("domain", sa.Text),
    sa.Column("record_id", sa.Text),
    sa.Column("server_version", sa.Integer),
    sa.Column("client_version", sa.Integer),
    sa.Column("strategy", sa.Text),
    sa.Column("winner", sa.Text),
    sa.Column("server_data", postgresql.JSONB),
    sa.Column("client_data", postgresql.JSONB),
    sa.Column("server_time", _time),
    sa.Column("client_time", _time),
    sa.Column("create_time", _time),
    sa.Column("resolve_time", _time),
)
push_counts: Final = sa.Table(
    "push_counts",
    _schema,
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("domain", sa.Text, primary_key=True),
    sa.Column("hour", _time, primary_key=True),
    sa.Column("tenant_id", sa.Integer),
    sa.Column("items", sa.BigInteger),
)

_POLICY: Final = sa.select(policies.c.strategy, policies.c.auto_resolve, policies.c.notify_on_conflict).where(
    policies.c.tenant_id == bindparam("tenant_id"), policies.c.domain == bindparam("domain")
)
_given: Final = postgresql.insert(policies).values({column.name: bindparam(column.name) for column in policies.c})
_SET_POLICY: Final = _given.on_conflict_do_update(
    index_elements=["tenant_id", "domain"],
    set_={name: _given.excluded[name] for name in ("strategy", "auto_resolve", "notify_on_conflict", "update_time")},
)


def _in_scope(table: sa.Table, since: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    user_id, domain = bindparam("user_id", type_=sa.Uuid), bindparam("domain", type_=sa.Text)
    return sa.and_(
        table.c.tenant_id == bindparam("tenant_id"),
        sa.or_(user_id.is_(None), table.c.user_id == user_id),
        sa.or_(domain.is_(None), table.c.domain == domain),
        since,
    )


_since: Final = bindparam("since", type_=_time)
_LOGGED: Final = _in_scope(conflicts, conflicts.c.create_time >= _since)
# Each with a condition of its own, in so many words: those that are open are found by a partial index.
_RESULTS: Final = {
    "": sa.true(),
    "manual_required": conflicts.c.winner == sa.literal_column("'none'"),
    "resolved": conflicts.c.winner != sa.literal_column("'none'"),
}


def _page(result: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return (
        sa.select(*conflicts.c)
        .where(
            _LOGGED,
            result,
            sa.tuple_(conflicts.c.create_time, conflicts.c.id)
            < sa.tuple_(
                sa.func.coalesce(bindparam("before_time", type_=_time), sa.literal_column("'infinity'::timestamptz")),
                sa.func.coalesce(
                    bindparam("before_id", type_=sa.Uuid),
                    sa.literal_column("'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid"),
                ),
            ),
        )
        .order_by(conflicts.c.create_time.desc(), conflicts.c.id.desc())
        .limit(bindparam("limit", type_=sa.Integer))
    )


_PAGES: Final = {name: _page(condition) for name, condition in _RESULTS.items()}
_TOTALS: Final = {
    name: sa.select(sa.func.count().label("total")).where(_LOGGED, condition) for name, condition in _RESULTS.items()
}
_PUSHED: Final = sa.select(sa.func.coalesce(sa.func.sum(push_counts.c["items"]), 0).label("total")).where(
    _in_scope(push_counts, push_counts.c.hour >= sa.func.date_trunc("hour", _since))
)
_ONE: Final = sa.select(*conflicts.c).where(
    conflicts.c.id == bindparam("id"), conflicts.c.user_id == bindparam("user_id")
)
_ONE_OF_TENANT: Final = sa.select(*conflicts.c).where(
    conflicts.c.id == bindparam("id"), conflicts.c.tenant_id == bindparam("tenant_id")
)

_OPEN: Final = (
    sa.select(conflicts.c.id)
    .where(
        conflicts.c.user_id == bindparam("user_id"),
        conflicts.c.winner == sa.literal_column("'none'"),
        conflicts.c.resolve_time.is_(None),
    )
    .order_by(conflicts.c.create_time.desc())
    .limit(bindparam("limit", type_=sa.Integer))
)

# What a push writes, straight on psycopg: %b sends a parameter in binary.
LOG: Final = """
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
CLOSE: Final = """
    UPDATE sessions.conflicts SET winner = %b, resolve_time = %b
    WHERE id = %b AND user_id = %b AND winner = 'none' AND resolve_time IS NULL"""


class ConflictStore:
    """Policies and logged conflicts in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def policy(self, tenant_id: int, domain: str) -> Policy | None:
        """What the tenant has decided for the domain; None: nothing."""
        async with self._database.statements() as statements:
            row = await statements.one(_POLICY, tenant_id=tenant_id, domain=domain)
        return policy_of(row) if row else None

    async def set_policy(self, tenant_id: int, domain: str, policy: Policy, now: datetime) -> None:
        """Stores what the tenant decides for the domain from now on."""
        async with self._database.statements() as statements:
            await statements.execute(
                _SET_POLICY,
                tenant_id=tenant_id,
                domain=domain,
                strategy=str(policy.strategy),
                auto_resolve=policy.auto_resolve,
                notify_on_conflict=policy.notify_on_conflict,
                update_time=now,
            )

    async def page(
        self, scope: Scope, *, limit: int, before: tuple[datetime, UUID] | None = None
    ) -> Sequence[LoggedConflict]:
        """Conflicts in the log, newest first, below `before` (the last one of a page)."""
        async with self._database.statements() as statements:
            rows = await statements.all(
                _PAGES[scope.result],
                **_values(scope),
                limit=limit,
                before_time=before[0] if before else None,
                before_id=before[1] if before else None,
            )
        return [_conflict(row) for row in rows]

    async def totals(self, scope: Scope) -> tuple[int, int]:
        """How many conflicts, and how many pushed changes, there were."""
        async with self._database.statements() as statements:
            logged = await statements.one(_TOTALS[scope.result], **_values(scope))
            pushed = await statements.one(_PUSHED, **_values(scope))
        return int(logged["total"]) if logged else 0, int(pushed["total"]) if pushed else 0

    async def open(self, user_id: UUID, limit: int) -> Sequence[UUID]:
        """The user's newest conflicts that nobody has decided, oldest first."""
        async with self._database.statements() as statements:
            rows = await statements.all(_OPEN, user_id=user_id, limit=limit)
        return [row["id"] for row in reversed(rows)]

    async def conflict(self, user_id: UUID, id: UUID) -> LoggedConflict | None:
        """One of the user's conflicts; None when there is none."""
        async with self._database.statements() as statements:
            row = await statements.one(_ONE, id=id, user_id=user_id)
        return _conflict(row) if row else None

    async def conflict_of_tenant(self, tenant_id: int, id: UUID) -> LoggedConflict | None:
        """One of the conflicts of the tenant's users; None when there is none."""
        async with self._database.statements() as statements:
            row = await statements.one(_ONE_OF_TENANT, id=id, tenant_id=tenant_id)
        return _conflict(row) if row else None


def log_columns(conflicts: Sequence[Conflict]) -> list[list[Any]]:
    """The lists that LOG takes."""
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


def policy_of(row: Row) -> Policy:
    """A row of policies."""
    return Policy(
        strategy=Strategy(row["strategy"]),
        auto_resolve=row["auto_resolve"],
        notify_on_conflict=row["notify_on_conflict"],
    )


def _values(scope: Scope) -> dict[str, object]:
    return {
        "tenant_id": scope.tenant_id,
        "user_id": scope.user_id,
        "domain": scope.domain or None,
        "since": scope.since,
    }


def _conflict(row: Row) -> LoggedConflict:
    return LoggedConflict(
        id=row["id"],
        user_id=row["user_id"],
        key=Key(row["domain"], row["record_id"]),
        server_version=row["server_version"],
        client_version=row["client_version"],
        strategy=Strategy(row["strategy"]),
        winner=Winner(row["winner"]),
        server=Side(data=row["server_data"], time=row["server_time"]),
        client=Side(data=row["client_data"], time=row["client_time"]),
        create_time=row["create_time"],
        resolve_time=row["resolve_time"],
    )
