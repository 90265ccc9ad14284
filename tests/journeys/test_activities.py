"""Recordings handed over as activities: a form, a file, a record, each once."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Edge
from tests.factories import Phone
from tests.polling import until

SAMPLES = Path(__file__).parent.parent / "uploads" / "samples"


async def add(phone: Phone, name: str, data: bytes | None = None, **given: Any) -> httpx.Response:
    """Hands a recording over, one of the samples unless it is given."""
    content = (SAMPLES / name).read_bytes() if data is None else data
    user_id = given.pop("user_id", phone.user_id)
    files = {given.pop("part", "file"): (name, content, "application/octet-stream")}
    return await phone.call("POST", f"/activities/{user_id}", files=files, timeout=60, **given)


async def records(phone: Phone, domain: str) -> list[dict[str, Any]]:
    """The user's records of a domain."""
    page = (await phone.call("GET", "/api/v1/sync/pull", params={"domains": domain})).json()
    changes: list[dict[str, Any]] = page["changes"]
    return changes


@pytest.mark.parametrize(
    ("name", "sport"),
    [
        ("garmin-fenix-5-run.fit", "running"),
        ("garmin-edge-820-bike.fit", "cycling"),
        ("cerknicko-jezero.gpx", "generic"),
        ("run.tcx", "running"),
    ],
)
async def test_a_recording_becomes_a_file_and_a_record(phone: Phone, name: str, sport: str) -> None:
    answer = await add(phone, name)
    assert answer.status_code == 201, answer.text
    added = answer.json()
    assert (added["status"], added["activity"]["sport"]) == ("created", sport)
    assert (await phone.call("GET", httpx.URL(added["file_url"]).path)).content == (SAMPLES / name).read_bytes()

    async def arrived() -> bool:
        return len(await records(phone, "activity,file")) == 2

    await until(arrived)
    (record,) = await records(phone, "activity")
    assert (record["id"], record["data"]) == (added["activity_id"], added["activity"])


async def test_the_same_recording_again_is_a_duplicate_and_changes_nothing(phone: Phone) -> None:
    first = (await add(phone, "run.tcx")).json()

    async def arrived() -> bool:
        return bool(await records(phone, "activity"))

    await until(arrived)
    (record,) = await records(phone, "activity")
    edited = {**record["data"], "sport": "hiking"}
    change = {"domain": "activity", "id": record["id"], "base_version": 1, "operation": "UPSERT", "data": edited}
    await phone.call("POST", "/api/v1/sync/push", json={"changes": [change]})
    answer = await add(phone, "run.tcx")
    assert answer.status_code == 200
    assert answer.json() == {**first, "status": "duplicate"}
    assert [one["data"] for one in await records(phone, "activity")] == [edited]
    assert len((await phone.call("GET", "/api/v1/files")).json()["files"]) == 1


async def test_the_same_recording_at_once_is_one_file_and_one_activity(phone: Phone) -> None:
    answers = await asyncio.gather(*(add(phone, "run.tcx") for _ in range(4)))
    assert sorted(one.status_code for one in answers) == [200, 200, 200, 201]
    assert len({one.json()["activity_id"] for one in answers}) == 1
    (file,) = (await phone.call("GET", "/api/v1/files")).json()["files"]
    assert file["id"] == answers[0].json()["activity_id"]
    read = await phone.call("GET", httpx.URL(file["file_url"]).path)
    assert read.content == (SAMPLES / "run.tcx").read_bytes()


@pytest.mark.parametrize("how_far", ["started", "sent", "finalized"])
async def test_a_recording_that_is_an_upload_too_becomes_an_activity_of_that_file(phone: Phone, how_far: str) -> None:
    data = (SAMPLES / "run.tcx").read_bytes()
    asked = {"filename": "run.tcx", "mime_type": "application/vnd.garmin.tcx+xml", "total_size": len(data)}
    begun = await phone.call(
        "POST", "/api/v1/uploads/init", json={**asked, "file_hash": hashlib.sha256(data).hexdigest()}
    )
    upload_id = begun.json()["upload_id"]
    if how_far != "started":
        await phone.call("PUT", f"/api/v1/uploads/{upload_id}/content", content=data)
    if how_far == "finalized":
        await phone.call("POST", f"/api/v1/uploads/{upload_id}/finalize")
    added = await add(phone, "run.tcx")
    assert (added.status_code, added.json()["activity_id"]) == (201, upload_id)
    (file,) = (await phone.call("GET", "/api/v1/files")).json()["files"]
    assert (await phone.call("GET", httpx.URL(file["file_url"]).path)).content == data


async def test_an_activity_ends_with_its_file_once(phone: Phone) -> None:
    added = (await add(phone, "run.tcx")).json()
    other = (await add(phone, "cerknicko-jezero.gpx")).json()

    async def arrived() -> bool:
        return len(await records(phone, "activity,file")) == 4

    await until(arrived)
    edited = {**added["activity"], "sport": "hiking"}
    change = {"domain": "activity", "id": added["activity_id"], "base_version": 1, "operation": "UPSERT"}
    await phone.call("POST", "/api/v1/sync/push", json={"changes": [{**change, "data": edited}]})

    async def ended() -> bool:
        return sum(one["deleted"] for one in await records(phone, "activity,file")) == 2

    for _ in range(2):
        assert (await phone.call("DELETE", f"/api/v1/files/{added['activity_id']}")).json() == {"deleted": True}
        await until(ended)
    told = await records(phone, "activity,file")
    assert {(one["domain"], one["id"], one["version"], one["deleted"]) for one in told} == {
        ("activity", added["activity_id"], 3, True),
        ("file", added["activity_id"], 2, True),
        ("activity", other["activity_id"], 1, False),
        ("file", other["activity_id"], 1, False),
    }
    again = await add(phone, "run.tcx")
    assert (again.status_code, again.json()["status"]) == (201, "created")
    assert again.json()["activity_id"] != added["activity_id"]


@pytest.mark.parametrize("name", ["broken-crc.fit", "weight-scale.fit"])
async def test_what_is_no_activity_is_refused_and_leaves_nothing(phone: Phone, name: str) -> None:
    answer = await add(phone, name)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("file: ")
    assert (await phone.call("GET", "/api/v1/files")).json()["files"] == []


@pytest.mark.parametrize(
    ("name", "data"), [("a.fit", b""), ("../../etc/passwd", b"root"), ("a.gpx", b"<gpx"), ("a.zip", b"PK\x03\x04")]
)
async def test_garbage_is_refused(phone: Phone, name: str, data: bytes) -> None:
    answer = await add(phone, name, data)
    assert (answer.status_code, set(answer.json())) == (400, {"detail"})


async def test_a_form_without_the_file_is_refused(phone: Phone) -> None:
    answer = await add(phone, "run.tcx", part="other")
    assert (answer.status_code, answer.json()) == (400, {"detail": "file: is required"})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/octet-stream", b"x"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=\N{EURO SIGN}", b"x"),
    ],
)
async def test_what_is_no_form_is_refused(phone: Phone, content_type: str, body: bytes) -> None:
    answer = await phone.call(
        "POST", f"/activities/{phone.user_id}", content=body, headers={"content-type": content_type.encode()}
    )
    assert (answer.status_code, set(answer.json())) == (400, {"detail"})


async def test_a_recording_that_is_too_large_is_refused(phone: Phone) -> None:
    answer = await add(phone, "large.fit", b"\x0e\x20\x00\x00\x00\x00\x00\x00.FIT" + bytes(51 * 2**20))
    assert answer.status_code == 413


async def test_nobody_adds_to_somebody_elses_activities(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    assert (await add(phone, "run.tcx", user_id=other.user_id)).status_code == 403
