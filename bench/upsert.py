"""The floor under batches: the statement that stores one, on one connection, with nothing around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import psycopg

from bench import batches
from services.sessions.device_sessions_convert import recording_from_json
from services.sessions.pushes_store import WRITE
from services.sessions.schemas import encode

_TABLE: Final = "bench.records"
_STATEMENT: Final = WRITE.replace("sessions.records", _TABLE)
_NOW: Final = datetime.now(UTC)


class Upsert:
    """The service's own statement on a table like the service's own."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._user_id = uuid4()
        self._position = 0
        self._batch = batches.sessions()
        recordings = [recording_from_json(session) for session in self._batch]
        self._raws = [encode(recording.data) for recording in recordings]
        self._times = [datetime.fromisoformat(recording.data["started_at"]) for recording in recordings]

    async def rows(self, seconds: float) -> float:
        """Rows stored per second."""
        return await asyncio.to_thread(self._rows, seconds)

    def _rows(self, seconds: float) -> float:
        ready = iter([self._parameters() for _ in range(batches.enough(seconds))])
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds and (parameters := next(ready, None)):
            self._connection.execute(_STATEMENT, parameters, prepare=True)
            done += 1
        return done * batches.SIZE / (time.perf_counter() - started)

    def _parameters(self) -> list[Any]:
        first, self._position = self._position + 1, self._position + batches.SIZE
        return [
            *(self._user_id, _NOW, _NOW),
            [session["device_type"] for session in self._batch],
            [str(uuid4()) for _ in self._batch],
            [1] * batches.SIZE,
            list(range(first, first + batches.SIZE)),
            [False] * batches.SIZE,
            self._raws,
            self._times,
            self._times,
        ]


@contextmanager
def upsert(database_url: str) -> Iterator[Upsert]:
    """The floor on the product's own server, for as long as the block runs."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (LIKE sessions.records INCLUDING ALL)")
        yield Upsert(connection)
