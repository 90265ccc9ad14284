"""A domain of the operator's own: a schema file in a directory, and everything that sync does works for it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Edge, config_for, service_part
from tests.factories import Phone

PLANT = {
    "title": "A plant that somebody saw",
    "x-version": 2,
    "x-policy": "most_recent_wins",
    "x-time": "seen_at",
    "type": "object",
    "required": ["species"],
    "properties": {
        "species": {"type": "string", "minLength": 1, "maxLength": 100},
        "height_cm": {"type": "number", "minimum": 0},
        "seen_at": {"type": "string"},
    },
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "domains"
    made.mkdir()
    (made / "plant.json").write_text(json.dumps(PLANT), encoding="utf-8")
    return made


async def pushed(phone: Phone, **change: Any) -> dict[str, Any]:
    changes = [{"domain": "plant", "id": "oak-1", "operation": "UPSERT", **change}]
    answer = await phone.call("POST", "/api/v1/sync/push", json={"changes": changes})
    assert answer.status_code == 200, answer.text
    receipt: dict[str, Any] = answer.json()["receipts"][0]
    return receipt


async def test_a_record_of_a_made_up_domain_is_pushed_conflicts_and_is_pulled(
    own_edge: Callable[..., Awaitable[Edge]], directory: Path
) -> None:
    edge = await own_edge(domains=directory)
    phone = await edge.phone()
    first = {"species": "oak", "height_cm": 310, "seen_at": "2026-02-26T10:00:00Z"}
    later, earlier = {**first, "height_cm": 320}, {**first, "height_cm": 300}

    receipt = await pushed(phone, base_version=0, data=first, client_time="2026-02-26T10:00:00Z")
    assert (receipt["status"], receipt["version"]) == ("APPLIED", 1)

    # Two phones that knew nothing of each other: the later one wins, as the file says.
    receipt = await pushed(phone, base_version=0, data=later, client_time="2026-02-26T11:00:00Z")
    assert (receipt["status"], receipt["version"]) == ("APPLIED", 2)
    assert receipt["conflict"]["server_data"] == first
    receipt = await pushed(phone, base_version=1, data=earlier, client_time="2026-02-26T09:00:00Z")
    assert (receipt["status"], receipt["version"]) == ("CONFLICT", 2)
    assert receipt["conflict"]["server_data"] == later

    receipt = await pushed(phone, base_version=2, data={"species": "oak", "height_cm": -1})
    assert (receipt["status"], receipt["field"]) == ("REJECTED", "changes[0].data.height_cm")

    page = (await phone.call("GET", "/api/v1/sync/pull", params={"domains": "plant"})).json()
    shown = [(one["domain"], one["id"], one["version"], one["data"]) for one in page["changes"]]
    assert shown == [("plant", "oak-1", 2, later)]

    policy = (await phone.call("GET", "/api/v1/sync/policies/1/plant")).json()
    assert (policy["resolution_policy"], policy["auto_resolve"]) == ("most_recent_wins", True)
    log = (await phone.call("GET", "/api/v1/sync/conflicts", params={"domain": "plant"})).json()
    assert [one["winning_version"] for one in log["conflicts"]] == ["server", "client"]


async def test_a_broken_file_stops_the_start_with_one_sentence(
    database_url: str, tmp_path: Path, directory: Path
) -> None:
    broken = directory / "plant.json"
    broken.write_text('{"x-version": 1, "x-policy": "coin_toss"}', encoding="utf-8")
    config = config_for(tmp_path / "home", database_url=database_url)
    part = service_part("sessions", config, tmp_path)
    environment = {**part.env, "SATCHEL_DOMAINS": str(directory)}
    process = await asyncio.create_subprocess_exec(
        *part.command, cwd=part.cwd, env=environment, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said = (await process.communicate())[1].decode()
    assert process.returncode == os.EX_CONFIG
    assert f"satchel: {broken}: x-policy must be one of client_wins, server_wins" in said
    assert "Traceback" not in said
