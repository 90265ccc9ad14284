"""The receipt of a deletion: what was removed, when it was done, and nothing of whose account it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from deploy.parts import Child, running
from runtime.config import SERVICES
from runtime.server import serving
from services.auth.deletions_domain import Receipts
from tests.conftest import ALL, REACHES, Edge, config_for, envoy_for, service_part, until_healthy
from tests.factories import Phone, change, puzzle_session
from tests.polling import until

CONTENT = b"some text"


async def receipt(http: httpx.AsyncClient, receipt_id: str) -> dict[str, Any]:
    answer = await http.get(f"/v1/auth/deletions/{receipt_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def until_done(http: httpx.AsyncClient, receipt_id: str, *, seconds: float = 20) -> dict[str, Any]:
    async def done() -> bool:
        answer = await http.get(f"/v1/auth/deletions/{receipt_id}")
        return answer.status_code == 200 and answer.json()["state"] == "done"

    await until(done, seconds=seconds)
    return await receipt(http, receipt_id)


async def store_file(phone: Phone, content: bytes = CONTENT, *, finalize: bool = True) -> str:
    asked = {"filename": "a.txt", "mime_type": "text/plain", "file_hash": hashlib.sha256(content).hexdigest()}
    begun = await phone.call("POST", "/api/v1/uploads/init", json={**asked, "total_size": len(content)})
    assert begun.status_code == 201, begun.text
    upload_id: str = begun.json()["upload_id"]
    if finalize:
        await phone.call("PUT", f"/api/v1/uploads/{upload_id}/content", content=content)
        assert (await phone.call("POST", f"/api/v1/uploads/{upload_id}/finalize")).status_code == 200
    return upload_id


async def test_a_receipt_tells_what_was_removed_part_by_part(edge: Edge, phone: Phone) -> None:
    changes = [change(), change(), change(domain="task", data={"title": "x", "status": "open"})]
    pushed = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
    assert {one["status"] for one in pushed.json()["receipts"]} == {"APPLIED"}
    await phone.call("POST", "/v1/sessions", json={"sessions": [puzzle_session()]})
    await store_file(phone)
    await store_file(phone, b"another", finalize=False)

    async def in_the_feed() -> bool:
        entries = (await phone.call("GET", "/api/v1/sync/pull", params={"domains": "file"})).json()["changes"]
        return bool(entries)

    await until(in_the_feed)
    deleted = (await phone.call("DELETE", "/v1/auth/me")).json()
    told = await until_done(edge.http, deleted["receipt_id"])
    assert told == {
        "state": "done",
        "deleted_at": deleted["deleted_at"],
        "completed_at": told["completed_at"],
        "merged": False,
        "removed": {
            "account": {"sign_ins": 1, "security_events": 1},
            "records": {"journal": 2, "task": 1, "puzzle": 1, "file": 1},
            "files": 1,
            "uploads": 1,
            "bytes": len(CONTENT),
            "devices": 0,
        },
    }
    assert told["completed_at"] >= told["deleted_at"]


async def test_a_receipt_is_known_only_to_who_was_told(edge: Edge, phone: Phone) -> None:
    deleted = (await phone.call("DELETE", "/v1/auth/me")).json()
    receipt_id = deleted["receipt_id"]
    assert phone.user_id not in receipt_id
    for wrong in (
        receipt_id[:-1],
        receipt_id + "A",
        receipt_id.lower(),
        phone.user_id,
        "del_",
        "del_\u00e9",
        "x" * 5000,
    ):
        answer = await edge.http.get(f"/v1/auth/deletions/{wrong}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND"), wrong
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        (row,) = connection.execute(
            "SELECT deletions::text FROM auth.deletions WHERE account_id = %s", [phone.user_id]
        ).fetchall()
    assert receipt_id not in row[0]


def test_the_name_of_a_receipt_follows_from_the_account_and_the_secret_only() -> None:
    one, other = UUID(int=1), UUID(int=2)
    assert Receipts(b"a").id_of(one) == Receipts(b"a").id_of(one)
    assert len({Receipts(b"a").id_of(one), Receipts(b"a").id_of(other), Receipts(b"b").id_of(one)}) == 3


async def mesh_with_processes(
    stack: AsyncExitStack, database_url: str, directory: Path, *names: str
) -> tuple[Edge, list[Child]]:
    """A mesh with services of these `names` that can be killed; the others are in this process."""
    config = config_for(directory / "home", database_url=database_url)
    edge = await stack.enter_async_context(envoy_for(config, directory / "edge"))
    await stack.enter_async_context(serving(config, {name: ALL[name] for name in SERVICES if name not in names}))
    children = [await stack.enter_async_context(running(service_part(name, config, directory))) for name in names]
    await until_healthy(edge)
    somebody = await edge.phone()

    async def all_believe_them() -> bool:
        """Who asked for auth's keys before it was up asks again a moment later."""
        answers = [await somebody.call("GET", path) for path in REACHES.values()]
        return all(answer.status_code == 200 for answer in answers)

    await until(all_believe_them)
    return edge, children


async def killed_and_back(child: Child) -> None:
    child.kill()
    await child.wait()
    await child.start()
    await child.until_ready()


def let_claims_pass(database_url: str) -> None:
    """As if the time was over for which an auth service that died keeps what it has taken up from the others."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE auth.merges SET due_time = now() WHERE done_time IS NULL")
        for table in ("erasures", "mails"):
            connection.execute(f"UPDATE auth.{table} SET due_time = now()")


@pytest.mark.parametrize("victim", ["auth", "sessions", "uploads", "health"])
async def test_what_was_removed_is_counted_once_though_a_service_is_killed_in_the_middle(
    database_url: str, tmp_path: Path, new_database: Callable[[], str], victim: str
) -> None:
    async with AsyncExitStack() as stack:
        edge, (service,) = await mesh_with_processes(stack, database_url, tmp_path, victim)
        phone = await edge.phone()
        for _ in range(4):
            changes = [change() for _ in range(1000)]
            assert (await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})).status_code == 200
        await asyncio.gather(*(store_file(phone, f"file {number}".encode()) for number in range(8)))
        receipt_id = (await phone.call("DELETE", "/v1/auth/me")).json()["receipt_id"]
        await until(lambda: begun(database_url))
        await killed_and_back(service)
        if victim == "auth":
            let_claims_pass(database_url)
        told = await until_done(edge.http, receipt_id, seconds=90)
        assert told["removed"]["records"].pop("file", 0) <= 8
        assert told["removed"] == {
            "account": {"sign_ins": 1, "security_events": 1},
            "records": {"journal": 4000},
            "files": 8,
            "uploads": 0,
            "bytes": 8 * len("file 0"),
            "devices": 0,
        }
        with psycopg.connect(database_url) as connection:
            (left,) = connection.execute("SELECT count(*) FROM sessions.records WHERE NOT deleted").fetchall()
        assert left == (0,)


async def begun(database_url: str) -> bool:
    """Whether something was ended of somebody."""
    with psycopg.connect(database_url) as connection:
        return bool(
            connection.execute(
                "SELECT 1 FROM sessions.records WHERE deleted UNION ALL SELECT 1 FROM uploads.erased LIMIT 1"
            ).fetchone()
        )
