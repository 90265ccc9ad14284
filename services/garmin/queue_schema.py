"""Owns the tables of the job queue: procrastinate's own SQL, brought into this service's schema by its revisions."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

SCHEMA: Final = "garmin"
_SEARCH_PATH: Final = f"SET LOCAL search_path TO {SCHEMA}"
_CREATE: Final = f"""
    CREATE TABLE IF NOT EXISTS {SCHEMA}.queue_schema (
        single boolean PRIMARY KEY DEFAULT true CHECK (single),
        newest text NOT NULL)"""
_NEWEST: Final = f"SELECT newest FROM {SCHEMA}.queue_schema"  # noqa: S608  # of constants
_NOTE: Final = f"""
    INSERT INTO {SCHEMA}.queue_schema (newest) VALUES (%s)
    ON CONFLICT (single) DO UPDATE SET newest = excluded.newest"""  # noqa: S608  # of constants


def newest() -> str:
    """The last migration that the installed library brings, such as 03.04.00_50_post_add_retry_failed_job_procedure."""
    return _migrations()[-1]


def bring_up(connection: Any) -> None:
    """Makes the tables what the installed library wants, in the transaction of `connection`, psycopg's own.

    A database without them gets the library's whole schema; one that has them, the migrations that came since. So every
    upgrade of the library that brings migrations is one more revision that calls this, and on a new database, where the
    first one has done it all, that revision does nothing. What was applied is noted by name, not by the library's
    version: most of its releases change no table.
    """
    connection.execute(_CREATE)
    row = connection.execute(_NEWEST).fetchone()
    path = connection.execute("SHOW search_path").fetchone()[0]
    connection.execute(_SEARCH_PATH)
    if row is None:
        connection.execute(_text("schema.sql"))
    else:
        for name in _migrations():
            if name > row[0]:
                connection.execute(_text("migrations", f"{name}.sql"))
    connection.execute("SELECT set_config('search_path', %s, true)", [path])
    connection.execute(_NOTE, [newest()])


def drop(connection: Any) -> None:
    """Drops the tables, with all that waits in them."""
    connection.execute(f"DROP TABLE {SCHEMA}.queue_schema")
    connection.execute(_DROP)


# The library's names all begin with its own.
_DROP: Final = f"""
    DO $$
    DECLARE
        one record;
    BEGIN
        FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = '{SCHEMA}' AND tablename LIKE 'procrastinate%'
        LOOP
            EXECUTE format('DROP TABLE {SCHEMA}.%I CASCADE', one.tablename);
        END LOOP;
        FOR one IN
            SELECT oid::regprocedure AS called FROM pg_proc
            WHERE pronamespace = '{SCHEMA}'::regnamespace AND proname LIKE 'procrastinate%'
        LOOP
            EXECUTE format('DROP FUNCTION %s CASCADE', one.called);
        END LOOP;
        FOR one IN
            SELECT typname FROM pg_type
            WHERE typnamespace = '{SCHEMA}'::regnamespace AND typname LIKE 'procrastinate%' AND typtype IN ('e', 'c')
        LOOP
            EXECUTE format('DROP TYPE {SCHEMA}.%I CASCADE', one.typname);
        END LOOP;
    END;
    $$"""  # noqa: S608  # of constants


def _migrations() -> list[str]:
    files = (resources.files("procrastinate.sql") / "migrations").iterdir()
    return sorted(file.name.removesuffix(".sql") for file in files if file.name.endswith(".sql"))


def _text(*path: str) -> str:
    return resources.files("procrastinate.sql").joinpath(*path).read_text(encoding="utf-8")
