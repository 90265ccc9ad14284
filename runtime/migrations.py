"""Owns bringing a service's schema to the version its code was written for, once, however many replicas start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

SERVICES_DIRECTORY: Final = Path(__file__).parent.parent / "services"
# One lock for all services: the first process to come migrates, the others wait and find nothing to do.
_LOCK: Final = 0x5A7C4E1


def versions(service: str) -> Path:
    """The directory of the service's Alembic revisions, named 0001_what.py, 0002_what.py and so on."""
    return SERVICES_DIRECTORY / service / "migrations"


def head(service: str) -> str | None:
    """The newest revision of the service; None for a service without tables."""
    names = sorted(file.stem for file in versions(service).glob("[0-9]*.py"))
    return names[-1].partition("_")[0] if names else None


def migrate(database_url: str, service: str) -> None:
    """Brings the schema of `service` to its head; does nothing, cheaply, when it is there.

    Raises psycopg.Error when the database is away or a revision fails, which then leaves no trace.
    """
    wanted = head(service)
    if wanted is None:
        return
    with psycopg.connect(database_url, autocommit=True, connect_timeout=5) as connection:
        if _current(connection, service) == wanted:
            return
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        if _current(connection, service) != wanted:
            connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(service)))
            _upgrade(database_url, service)


def _current(connection: psycopg.Connection, service: str) -> str | None:
    try:
        row = connection.execute(
            sql.SQL("SELECT version_num FROM {}.alembic_version").format(sql.Identifier(service))
        ).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return str(row[0]) if row else None


def _upgrade(database_url: str, service: str) -> None:
    # Alembic and an engine cost 10 MB, which a process that finds its schema ready should not carry.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    scripts = ScriptDirectory(str(versions(service)), version_locations=[str(versions(service))])
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), poolclass=NullPool)
    with engine.begin() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": service,
                "fn": lambda revision, _context: scripts._upgrade_revs("head", revision),
            },
        )
        with Operations.context(context):
            context.run_migrations()
    engine.dispose()
