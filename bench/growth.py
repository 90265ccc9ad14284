"""Growth: whether a push and a pull take longer among two million records than among ten thousand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import psycopg
from satchel.sessions.v1 import sync_pb2, sync_pb2_grpc

from bench import batches
from bench.report import Line
from bench.stack import Stack, stack
from bench.wire import channels, metadata, sign_up

SMALL, LARGE = 10_000, 2_000_000  # records of everybody
PUSHES, PULLS = 60, 200
HISTORY = 5_000  # records of the one who is measured
TARGET = 1.5

_EACH = 1000  # records of every other user
_AT_ONCE = 100  # users
_NOT_COUNTED = 10  # plans are made anew when a table was analyzed
_FEEDS = "INSERT INTO sessions.feeds (user_id, position) SELECT unnest(%s::uuid[]), %s"
_RECORDS = """
    INSERT INTO sessions.records (
        user_id, domain, id, version, position, deleted, data, size, happen_time, change_time, create_time, update_time)
    SELECT user_id, 'journal', gen_random_uuid()::text, 1, position, false, data, octet_length(data::text),
        now() - position * interval '1 hour', now(), now(), now()
    FROM unnest(%s::uuid[]) AS user_id
    CROSS JOIN generate_series(1, %s) AS position
    CROSS JOIN LATERAL (
        SELECT jsonb_build_object('title', position::text, 'text', repeat(md5(user_id::text || position), 5)) AS data
    ) AS made"""


@dataclass(frozen=True)
class _Took:
    """Medians in seconds."""

    push: float
    pull: float


async def lines(home: Path, *, workers: int, say: Callable[[str], None]) -> list[Line]:
    """The same calls before and after the table has grown, on a stack of its own."""
    async with stack(home, workers=workers) as running:
        small = await _among(running, SMALL, say)
        large = await _among(running, LARGE, say)
    return [
        _line(f"{batches.SIZE}-change push among {LARGE:,} records, gRPC", small.push, large.push),
        _line(f"Pull of {batches.SIZE} changes among {LARGE:,} records, gRPC", small.pull, large.pull),
    ]


def _line(name: str, small: float, large: float) -> Line:
    return Line(
        name=name,
        figure=f"{large * 1000:.1f} ms",
        floor=f"{small * 1000:.1f} ms (among {SMALL:,})",
        ratio=f"{large / small:.2f}",
        target=f"at most {TARGET:g}",
        met=large / small <= TARGET,
    )


async def _among(stack: Stack, total: int, say: Callable[[str], None]) -> _Took:
    (token,) = await sign_up(stack.addresses["envoy"], 1)
    caller = metadata(token)
    async with channels(stack.addresses["sessions"], 1) as (channel,):
        stub = sync_pb2_grpc.SyncServiceStub(channel)
        for push in _pushes(HISTORY // batches.SIZE):
            await stub.PushChanges(push, metadata=caller)
        say(f"Filling the table up to {total:,} records")
        await asyncio.to_thread(_fill, stack.database_url, total)

        ready = iter(_pushes(_NOT_COUNTED + PUSHES))

        async def push() -> None:
            answer = await stub.PushChanges(next(ready), metadata=caller)
            _all(sum(receipt.status == "APPLIED" for receipt in answer.receipts))

        pushing = await _median(push, PUSHES)
        cursor = await _near_the_end(stub, caller)

        async def pull() -> None:
            asked = sync_pb2.PullChangesRequest(cursor=cursor, limit=batches.SIZE)
            _all(len((await stub.PullChanges(asked, metadata=caller)).changes))

        return _Took(pushing, await _median(pull, PULLS))


async def _median(call: Callable[[], Awaitable[None]], times: int) -> float:
    seconds = []
    for _ in range(_NOT_COUNTED + times):
        started = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - started)
    return median(seconds[_NOT_COUNTED:])


async def _near_the_end(stub: Any, caller: Any) -> str:
    """The cursor with a batch behind it."""
    rest, cursor = HISTORY + (_NOT_COUNTED + PUSHES - 1) * batches.SIZE, ""
    while rest:
        asked = sync_pb2.PullChangesRequest(cursor=cursor, limit=min(rest, 1000))
        page = await stub.PullChanges(asked, metadata=caller)
        rest, cursor = rest - len(page.changes), page.next_cursor
    return cursor


def _pushes(count: int) -> list[sync_pb2.PushChangesRequest]:
    ready = batches.push_template().fresh(count / batches.enough(1.0))
    return [sync_pb2.SyncRequest.FromString(encoded).push for encoded in islice(ready, count)]


def _all(count: int) -> None:
    if count != batches.SIZE:
        raise RuntimeError(f"{count} of {batches.SIZE} changes were answered")


def _fill(database_url: str, total: int) -> None:
    """Adds users with a thousand records each until there are `total` records."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        (there,) = connection.execute("SELECT count(*) FROM sessions.records").fetchone() or (0,)
        users = [uuid4() for _ in range((total - there) // _EACH)]
        for first in range(0, len(users), _AT_ONCE):
            some = users[first : first + _AT_ONCE]
            connection.execute(_FEEDS, [some, _EACH])
            connection.execute(_RECORDS, [some, _EACH])
        connection.execute("VACUUM ANALYZE sessions.records, sessions.feeds")
        connection.execute("CHECKPOINT")  # what the filling left to be written would be written meanwhile
