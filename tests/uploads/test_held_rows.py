"""Uploads whose rows somebody holds for long: who wants to end them is told to come again, and nobody else waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import psycopg
import pytest

from tests.conftest import Edge
from tests.sending import Sending, some_file

# More than the service has connections.
MANY = 24


@pytest.mark.parametrize("kind", ["upload", "file"])
async def test_many_who_would_end_what_is_held_leave_the_others_their_connections(
    own_edge: Callable[..., Awaitable[Edge]], kind: str
) -> None:
    edge = await own_edge()
    sending, other = await Sending.started(await edge.phone(), some_file(0.5)), await edge.phone()
    await sending.rest()
    path = sending.path
    if kind == "file":
        await sending.finalized()
        path = f"/api/v1/files/{sending.id}"
    async with await psycopg.AsyncConnection.connect(edge.mesh.config.database_url) as holder:
        await holder.execute("SELECT FROM uploads.uploads WHERE id = %s FOR UPDATE", [sending.id])
        ending = [asyncio.create_task(sending.phone.call("DELETE", path)) for _ in range(MANY)]

        async def look() -> list[httpx.Response]:
            """What the others are told until the last of these has its answer."""
            answers = []
            while not all(task.done() for task in ending):
                answers.append(await other.call("GET", "/api/v1/files"))
            return answers

        answers = await look()
    assert {one.status_code for one in answers} == {200}
    assert max(one.elapsed.total_seconds() for one in answers) < 2
    for one in await asyncio.gather(*ending):
        assert (one.status_code, one.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert int(one.headers["retry-after"]) > 0
    assert (await sending.phone.call("DELETE", path)).status_code == 200
