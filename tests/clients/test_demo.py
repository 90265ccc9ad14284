"""The simulated phones: they make a Satchel busy, say how far they are, and go when they are told to."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any
from uuid import uuid4

import psycopg

from deploy.parts import ROOT
from tests.conftest import Edge
from tests.factories import PASSWORD

MACHINES = {"bike", "rower", "treadmill"}
SYNCS = re.compile(r"([\d,]+) syncs, ([\d,]+) stored")


async def started(url: str, *arguments: str, **environment: str) -> Process:
    known = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environment}
    command = [sys.executable, "-m", "clients.demo", "--url", url, *arguments]
    return await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=known, stdout=PIPE, stderr=PIPE, preexec_fn=_heed_ctrl_c
    )


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def ended(process: Process) -> tuple[int | None, str]:
    async with asyncio.timeout(120):
        _, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return process.returncode, err.decode()


async def domains_of(edge: Edge, domain: str) -> dict[str, int]:
    """How many records the phones of this run have, by their domains."""
    async with await psycopg.AsyncConnection.connect(edge.mesh.config.database_url) as connection:
        cursor = await connection.execute(
            "SELECT r.domain, count(*) FROM sessions.records r JOIN auth.accounts a ON a.id = r.user_id"
            " WHERE a.email LIKE %s GROUP BY 1",
            [f"%@{domain}"],
        )
        return dict(await cursor.fetchall())


async def test_phones_of_every_app_are_served_until_ctrl_c(edge: Edge) -> None:
    domain = f"{uuid4().hex}.example.com"
    process = await started(edge.url, "--phones", "8", "--domain", domain)
    try:
        found: dict[str, int] = {}
        async with asyncio.timeout(90):
            while not ({"journal", "puzzle", "work_order"} <= set(found) and set(found) & MACHINES):
                await asyncio.sleep(0.2)
                found = await domains_of(edge, domain)
        process.send_signal(signal.SIGINT)
        code, said = await ended(process)
    finally:
        if process.returncode is None:
            process.kill()
    assert code == 0
    last = SYNCS.findall(said)[-1]
    assert int(last[0].replace(",", "")) >= 4, said


async def test_conflicts_are_left_to_people_only_while_it_runs(edge: Edge) -> None:
    email = f"{uuid4().hex}@example.com"
    administrator = await edge.administrator(email=email)

    async def policy() -> dict[str, Any]:
        answer = await administrator.call("GET", "/api/v1/sync/policies/1/work_order")
        body: dict[str, Any] = answer.json()
        return body

    before = await policy()
    arguments = ("--phones", "1", "--minutes", "0.001", "--domain", f"{uuid4().hex}.example.com", "--admin", email)
    # Its own sign-in is no administrator's, so it may not: said in one sentence, and nothing has changed.
    code, said = await ended(await started(edge.url, *arguments, SATCHEL_PASSWORD=PASSWORD))
    assert (code, said.startswith("demo: ")) == (1, True), said
    assert await policy() == before


async def test_a_server_that_is_not_there_is_said_in_one_sentence() -> None:
    code, said = await ended(await started("http://127.0.0.1:9", "--phones", "1"))
    assert code == 4
    assert said.splitlines()[-1].startswith("demo: http://127.0.0.1:9 cannot be reached"), said
