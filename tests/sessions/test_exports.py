"""The export: all that a user has in one download that anybody can check for being whole."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psycopg
import pytest
from satchel.sessions.v1 import sync_pb2 as pb
from satchel.sessions.v1 import sync_pb2_grpc as pb_grpc

from deploy.parts import running
from deploy.postgres import postgres_part
from tests.conftest import Edge, config_for, edge_of
from tests.factories import Phone

PATH = "/api/v1/sync/export"


async def push(phone: Phone, *changes: dict[str, Any]) -> list[str]:
    answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
    assert answer.status_code == 200, answer.text
    return [one["status"] for one in answer.json()["receipts"]]


def upsert(id: str, data: dict[str, Any], domain: str = "journal", base: int = 0) -> dict[str, Any]:
    return {"domain": domain, "id": id, "base_version": base, "operation": "UPSERT", "data": data}


async def export(phone: Phone) -> list[dict[str, Any]]:
    answer = await phone.call("GET", PATH)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


async def test_of_a_user_without_anything_there_is_a_header_and_an_end(phone: Phone) -> None:
    header, end = await export(phone)
    assert header.pop("export_time")
    assert header == {"format": "satchel-export", "version": 1, "user_id": phone.user_id}
    assert end == {"end": True, "records": 0, "conflicts": 0}


async def test_it_is_a_file_of_json_lines(phone: Phone) -> None:
    answer = await phone.call("GET", PATH)
    assert answer.headers["content-type"] == "application/jsonl"
    assert answer.headers["content-disposition"] == 'attachment; filename="satchel-export.jsonl"'
    assert answer.content.endswith(b"\n")


async def test_records_tombstones_totals_and_conflicts_are_in_it_in_their_order(edge: Edge, phone: Phone) -> None:
    await push(phone, upsert("a", {"title": "first", "text": "größer, 大"}), upsert("b", {"title": "b", "text": ""}))
    await push(phone, {"domain": "journal", "id": "b", "base_version": 1, "operation": "DELETE"})
    await phone.call("PATCH", "/users/me/stats", json={"total_xp": 99})
    task = {"title": "mine", "status": "open"}
    await push(phone, upsert("t", task, "task"))
    for title in ("his", "hers"):
        assert "APPLIED" in await push(phone, upsert("t", {**task, "title": title}, "task", base=9))
    other = await edge.phone()
    await push(other, upsert("x", {"title": "another's", "text": ""}))

    _, *lines, end = await export(phone)
    records = [one for one in lines if one["type"] == "record"]
    assert [(one["domain"], one["id"], one["version"], one["deleted"]) for one in records] == [
        ("journal", "a", 1, False),
        ("journal", "b", 2, True),
        ("stats", "me", 1, False),
        ("task", "t", 3, False),
    ]
    assert [one["data"] for one in records[:3]] == [{"title": "first", "text": "größer, 大"}, {}, {"total_xp": 99}]
    assert all(one["update_time"] for one in records)
    conflicts = lines[len(records) :]
    assert [(one["type"], one["mobile_id"]) for one in conflicts] == [("conflict", "t")] * 2
    assert [one["server_data"]["title"] for one in conflicts] == ["his", "mine"], "newest first"
    assert [one["client_data"]["title"] for one in conflicts] == ["hers", "his"]
    assert end == {"end": True, "records": 4, "conflicts": 2}


async def test_thousands_of_records_come_whole_and_once(phone: Phone) -> None:
    ids = [str(uuid4()) for _ in range(3000)]
    for start in range(0, len(ids), 1000):
        await push(phone, *(upsert(id, {"title": id, "text": "x" * 500}) for id in ids[start : start + 1000]))
    _, *lines, end = await export(phone)
    assert [one["id"] for one in lines] == ids
    assert [one["data"]["title"] for one in lines] == ids
    assert end["records"] == 3000


def store_42_megabytes(edge: Edge, phone: Phone) -> None:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        connection.execute("INSERT INTO sessions.feeds (user_id, position) VALUES (%s, 420)", [phone.user_id])
        connection.execute(
            "INSERT INTO sessions.records (user_id, domain, id, version, position, deleted, data, size, create_time,"
            " update_time) SELECT %s, 'journal', 'r' || place, 1, place, false, jsonb_build_object('text', %s::text),"
            " 100011, now(), now() FROM generate_series(1, 420) AS place",
            [phone.user_id, "x" * 100_000],
        )


async def test_more_than_the_edge_holds_of_other_answers_passes(edge: Edge, phone: Phone) -> None:
    store_42_megabytes(edge, phone)
    size, last, lines = 0, b"", 0
    async with edge.http.stream("GET", PATH, headers=phone.headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            size, last, lines = size + len(line), line.encode(), lines + 1
    assert size > 40 * 1024 * 1024
    assert (json.loads(last), lines) == ({"end": True, "records": 420, "conflicts": 0}, 422)


async def test_a_grpc_caller_gets_the_same_in_messages_that_are_not_large(edge: Edge, phone: Phone) -> None:
    await push(phone, *(upsert(f"r{number}", {"text": "x" * 10_000}) for number in range(100)))
    async with grpc.aio.insecure_channel(edge.target) as channel:
        call = pb_grpc.SyncServiceStub(channel).ExportRecords(
            pb.ExportRecordsRequest(), metadata=phone.metadata, timeout=30
        )
        pieces = [piece async for piece in call]
    assert len(pieces) > 3
    assert max(len(piece.data) for piece in pieces) < 512 * 1024
    lines = b"".join(piece.data for piece in pieces).splitlines()
    assert [json.loads(line)["id"] for line in lines[1:-1]] == [f"r{number}" for number in range(100)]
    assert json.loads(lines[-1]) == {"end": True, "records": 100, "conflicts": 0}


async def test_a_caller_who_goes_away_in_the_middle_leaves_nothing_running(edge: Edge, phone: Phone) -> None:
    await push(phone, *(upsert(f"r{number}", {"text": "x" * 10_000}) for number in range(500)))
    async with grpc.aio.insecure_channel(edge.target) as channel:
        for _ in range(10):
            call = pb_grpc.SyncServiceStub(channel).ExportRecords(pb.ExportRecordsRequest(), metadata=phone.metadata)
            assert (await call.read()).data
            call.cancel()
    assert (await export(phone))[-1]["records"] == 500


async def test_one_that_cannot_go_on_breaks_the_line_and_one_that_cannot_begin_is_refused() -> None:
    with TemporaryDirectory(prefix="satchel-") as made:
        directory = Path(made)
        part = postgres_part(directory / "postgres", log=directory / "postgres.log")
        async with (
            running(part) as server,
            edge_of(config_for(directory / "home", database_url=part.url), directory / "edge") as edge,
        ):
            phone = await edge.phone()
            store_42_megabytes(edge, phone)
            got = bytearray()
            async with edge.http.stream("GET", PATH, headers=phone.headers) as answer:
                with pytest.raises(httpx.RemoteProtocolError):
                    async for piece in answer.aiter_bytes():
                        got += piece
                        if server.running:
                            server.kill()
                            await server.wait()
            assert answer.status_code == 200
            assert b'"format":"satchel-export"' in got[:100]
            assert b'"end":true' not in got[-200:]
            refused = await phone.call("GET", PATH)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "UNAVAILABLE")
            assert "content-disposition" not in refused.headers
