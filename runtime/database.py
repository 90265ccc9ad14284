"""Owns the way to PostgreSQL: one pool of psycopg connections, transactions as blocks, SQLAlchemy Core as the SQL."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

import orjson
import psycopg
from psycopg import pq
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from runtime.pools import pool_metrics

# A statement that outlives its caller's patience only takes a connection away from others.
STATEMENT_TIMEOUT_MS: Final = 10_000
LOCK_TIMEOUT_MS: Final = 5_000
ACQUIRE_TIMEOUT: Final = 3.0
# Callers beyond this many waiting for a connection are told at once that the database is overloaded.
MAX_WAITING: Final = 500

# Bitmaps off: what is asked for page by page is read in an index's order, and on a table that was not yet analyzed
# PostgreSQL would rather read and sort all of a user's rows for each page.
_OPTIONS: Final = (
    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} "
    "-c timezone=UTC -c enable_bitmapscan=off"
)

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects are untyped

set_json_dumps(orjson.dumps)
set_json_loads(orjson.loads)

Connection = psycopg.AsyncConnection[DictRow]
Row = Mapping[str, Any]


class Transaction:
    """Statements on one connection, inside one transaction unless they commit by themselves."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Final = connection
        """For the hot statements, which speak psycopg directly."""

    async def execute(self, statement: ClauseElement, **values: object) -> int:
        """Runs a statement made once at import, with `values` for its bindparams; returns the rows it touched."""
        cursor = await self._run(statement, values)
        return cursor.rowcount

    async def one(self, statement: ClauseElement, **values: object) -> Row | None:
        """The first row, or None when there is none."""
        cursor = await self._run(statement, values)
        return await cursor.fetchone()

    async def all(self, statement: ClauseElement, **values: object) -> Sequence[Row]:
        """Every row."""
        cursor = await self._run(statement, values)
        return await cursor.fetchall()

    async def _run(self, statement: ClauseElement, values: dict[str, object]) -> psycopg.AsyncCursor[DictRow]:
        sql, constants = _compiled(statement)
        given = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in values.items()}
        return await self.connection.execute(sql, {**constants, **given})


class Database:
    """A pool of connections to PostgreSQL that comes back by itself when the server does."""

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction for as long as the block runs: commits at its end, rolls back when it raises.

        Raises psycopg.OperationalError or psycopg_pool.PoolTimeout when the database is away.
        """
        async with self._pool.connection() as connection:
            yield Transaction(connection)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[Transaction]:
        """As `transaction`, but each statement commits by itself: one trip to the server where that takes three."""
        async with self._pool.connection() as connection:
            try:
                await connection.set_autocommit(True)
                yield Transaction(connection)
            finally:
                if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
                    await connection.set_autocommit(False)
                else:  # left in the middle of something: nobody else may find it so, and what happened is not hidden
                    await connection.close()

    async def ping(self) -> None:
        """One trip to the server and back; raises as `transaction` when it is away."""
        async with self.statements() as statements:
            await statements.connection.execute("SELECT 1")


@asynccontextmanager
async def database(url: str, *, connections: int, name: str) -> AsyncIterator[Database]:
    """A pool of up to `connections` to `url` for as long as the block runs; `name` shows in pg_stat_activity.

    Opens even while the server is away: calls then fail until it is back.
    """
    pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=connections,
        timeout=ACQUIRE_TIMEOUT,
        max_waiting=MAX_WAITING,
        reconnect_timeout=0,
        kwargs={
            "row_factory": dict_row,
            "application_name": f"satchel-{name}",
            "options": _OPTIONS,
            "connect_timeout": 3,
        },
        check=_check,
        reset=_reset,
        open=False,
    )
    await pool.open()
    try:
        with pool_metrics(name, pool.get_stats):
            yield Database(pool)
    finally:
        await pool.close()


async def _check(connection: Connection) -> None:
    """Turns away a connection whose server went away while it was idle, without a trip to the server.

    Nothing is expected on an idle connection, so one with something to read is at its end, or is about to say so.
    """
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    if poller.poll(0):
        connection.pgconn.consume_input()
        if connection.pgconn.status != pq.ConnStatus.OK or poller.poll(0):
            raise psycopg.OperationalError("the connection was closed by the server")


async def _reset(connection: Connection) -> None:
    """Turns away a connection that comes back otherwise than it was lent: who was cancelled may have left it so.

    psycopg gives way to others wherever it has been busy for a while, also right after it has begun a pipeline; who is
    cancelled there never ends it. What is asked on such a connection is answered with nothing, and done at some time
    or other.
    """
    if connection.pgconn.pipeline_status != pq.PipelineStatus.OFF or connection.autocommit:
        raise psycopg.OperationalError("the connection was left in a pipeline, or without transactions")


@lru_cache(maxsize=512)
def _compiled(statement: ClauseElement) -> tuple[str, dict[str, Any]]:
    compiled = statement.compile(dialect=_DIALECT)
    return str(compiled), {name: value for name, value in compiled.params.items() if value is not None}
