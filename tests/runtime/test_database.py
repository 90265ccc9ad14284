"""The way to PostgreSQL: migrations that run once, statements that match the tables, a pool that mends itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import pq, sql, waiting

from runtime.config import SERVICES
from runtime.database import Database, database
from runtime.migrations import head, migrate
from services.auth import tables as auth_tables
from services.sessions import records_store
from tests.conftest import url_of


@pytest.fixture
def empty_database(server_url: str) -> str:
    name = "empty"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url_of(server_url, name)


def test_replicas_that_start_at_once_migrate_once(empty_database: str) -> None:
    def start(_: int) -> None:
        for service in SERVICES:
            migrate(empty_database, service)

    with ThreadPoolExecutor(8) as replicas:
        list(replicas.map(start, range(8)))
    with psycopg.connect(empty_database) as connection:
        for service in ("auth", "sessions"):
            version = connection.execute(
                sql.SQL("SELECT version_num FROM {}.alembic_version").format(sql.Identifier(service))
            ).fetchall()
            assert version == [(head(service),)]


def test_a_service_without_tables_has_nothing_to_migrate(empty_database: str) -> None:
    assert head("websocket") is None
    migrate(empty_database, "websocket")
    with psycopg.connect(empty_database) as connection:
        schemas = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'websocket'").fetchall()
    assert schemas == []


@pytest.mark.parametrize("tables", [auth_tables.accounts.metadata, records_store.records.metadata])
def test_the_tables_of_the_code_are_those_of_the_migrations(tables: sa.MetaData, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        for table in tables.sorted_tables:
            rows = connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
                [table.schema, table.name],
            ).fetchall()
            assert {row[0] for row in rows} == set(table.columns.keys())


async def test_an_idle_connection_that_died_is_not_lent_out(database_url: str) -> None:
    async with database(database_url, connections=3, name="test") as db:
        for _ in range(3):
            async with db.transaction(), db.transaction(), db.transaction():
                pass
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await asyncio.gather(*(db.ping() for _ in range(3)))


async def test_a_transaction_that_fails_leaves_nothing(database_url: str) -> None:
    async with database(database_url, connections=1, name="test") as db:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as transaction:
                await transaction.connection.execute("CREATE TABLE public.half (id int)")
                raise ZeroDivisionError
        async with db.transaction() as transaction:
            cursor = await transaction.connection.execute("SELECT to_regclass('public.half') AS found")
            row = await cursor.fetchone()
        assert row == {"found": None}


@pytest.mark.parametrize("kind", ["transaction", "statements"])
async def test_wherever_somebody_is_cancelled_the_next_one_finds_a_connection_in_order(
    database_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 0

    async def give_way(seconds: float) -> None:
        """Stands in for what psycopg does when it has been busy for a while; cancels whoever comes by in his turn."""
        nonlocal left
        left -= 1
        if left == 0 and (task := asyncio.current_task()):
            task.cancel()
        await asyncio.sleep(seconds)

    monkeypatch.setattr(waiting, "MAX_BUSY_TIME", -1.0)
    monkeypatch.setattr(waiting, "sleep", give_way)

    async def use(db: Database) -> None:
        async with getattr(db, kind)() as some, some.connection.pipeline():
            await some.connection.execute("SELECT 1")
            await some.connection.execute("SELECT 2")

    async with database(database_url, connections=1, name="test") as db:
        for place in count(1):
            left = place
            try:
                await asyncio.create_task(use(db))
            except asyncio.CancelledError:
                left = 0
            if left > 0:
                break  # there are no more places
            async with db.transaction() as transaction:
                connection = transaction.connection
                cursor = await connection.execute("SELECT 3 AS three")
                assert (connection.autocommit, cursor.rowcount) == (False, 1), place
                assert connection.pgconn.transaction_status == pq.TransactionStatus.INTRANS, place
        assert place > 3


async def test_a_pool_opens_while_the_server_is_away_and_finds_it_later(
    new_database: Callable[[], str], tmp_path: object
) -> None:
    url = new_database()
    away = url.replace("host=", "host=/nowhere/", 1)
    async with database(away, connections=1, name="test") as db:
        with pytest.raises(psycopg.OperationalError):
            await db.ping()
