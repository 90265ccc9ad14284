"""Uploads through the edge, as seed 003 prints them: init, chunks, status, finalize, cancel, and reading the file."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import grpc
import httpx
import pytest

from services.uploads.limits_domain import read_limits
from services.uploads.servicer import CHUNKS_AT_ONCE
from tests.conftest import Edge
from tests.factories import Phone

CHUNK = 1024 * 1024
PDF = b"%PDF-1.7\n"


def pdf(size: int) -> bytes:
    """A file of so many bytes that begins like a PDF."""
    return PDF + os.urandom(size - len(PDF))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def start(phone: Phone, data: bytes, **given: Any) -> httpx.Response:
    asked = {
        "filename": "report.pdf",
        "total_size": len(data),
        "mime_type": "application/pdf",
        "file_hash": sha256(data),
        **given,
    }
    return await phone.call("POST", "/api/v1/uploads/init", json=asked)


async def send(phone: Phone, upload_id: str, index: int, data: bytes, checksum: str | None = None) -> httpx.Response:
    """Sends chunk `index` of a file."""
    chunk = data[index * CHUNK : (index + 1) * CHUNK]
    headers = {"content-type": "application/octet-stream", "x-chunk-checksum": checksum or sha256(chunk)}
    return await phone.call("POST", f"/api/v1/uploads/{upload_id}/chunk/{index}", content=chunk, headers=headers)


async def stored(phone: Phone, data: bytes, **given: Any) -> dict[str, Any]:
    """The receipt of a file that was sent in chunks."""
    begun = (await start(phone, data, **given)).json()
    for index in range(begun["total_chunks"]):
        assert (await send(phone, begun["upload_id"], index, data)).status_code == 200
    answer = await phone.call("POST", f"/api/v1/uploads/{begun['upload_id']}/finalize")
    assert answer.status_code == 200, answer.text
    receipt: dict[str, Any] = answer.json()
    return receipt


async def test_a_file_arrives_as_the_seed_shows_it(phone: Phone) -> None:
    data = pdf(10 * CHUNK)
    answer = await start(phone, data)
    assert answer.status_code == 201
    begun = answer.json()
    upload_id = begun.pop("upload_id")
    expires_at = begun.pop("expires_at")
    assert expires_at.endswith("Z")
    assert begun == {"chunk_size": 1048576, "total_chunks": 10}

    answer = await send(phone, upload_id, 0, data)
    assert answer.status_code == 200
    assert answer.json() == {"uploaded": True, "chunk_index": 0, "remaining_chunks": 9, "progress_pct": 10.0}
    for index in (2, 1):
        await send(phone, upload_id, index, data)

    answer = await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")
    assert answer.json() == {
        "upload_id": upload_id,
        "status": "active",
        "uploaded_chunks": [0, 1, 2],
        "missing_chunks": [3, 4, 5, 6, 7, 8, 9],
        "progress_pct": 30.0,
        "expires_at": expires_at,
    }
    assert answer.headers["upload-offset"] == str(3 * CHUNK)

    for index in range(3, 10):
        await send(phone, upload_id, index, data)
    answer = await phone.call("POST", f"/api/v1/uploads/{upload_id}/finalize")
    assert answer.status_code == 200
    receipt = answer.json()
    assert receipt.pop("file_url").endswith(f"/files/{upload_id}.pdf")
    assert receipt == {"finalized": True, "file_size": 10485760, "checksum": sha256(data)}

    answer = await phone.call("GET", f"/files/{upload_id}.pdf")
    assert answer.status_code == 200
    assert answer.content == data
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.headers["content-length"] == str(len(data))


async def test_an_upload_is_cancelled_as_the_seed_shows_it(phone: Phone) -> None:
    data = pdf(2 * CHUNK)
    upload_id = (await start(phone, data)).json()["upload_id"]
    await send(phone, upload_id, 0, data)
    answer = await phone.call("DELETE", f"/api/v1/uploads/{upload_id}")
    assert answer.json() == {"cancelled": True, "message": "Upload session cancelled and cleaned up"}
    assert (await phone.call("DELETE", f"/api/v1/uploads/{upload_id}")).status_code == 200
    answer = await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "UPLOAD_001")


async def test_the_limits_tell_how_much_room_is_left(phone: Phone) -> None:
    async def used() -> int:
        told = (await phone.call("GET", "/api/v1/uploads/limits")).json()
        assert told["quota_bytes"] == read_limits().quota_of("free")
        return int(told["used_bytes"])

    assert await used() == 0
    await stored(phone, pdf(3000))
    assert await used() == 3000
    announced = (await start(phone, pdf(5000))).json()["upload_id"]
    assert await used() == 8000
    await phone.call("DELETE", f"/api/v1/uploads/{announced}")
    assert await used() == 3000
    (file,) = (await phone.call("GET", "/api/v1/files")).json()["files"]
    await phone.call("DELETE", f"/api/v1/files/{file['id']}")
    assert await used() == 0


async def test_a_stream_goes_on_where_it_was_cut(phone: Phone) -> None:
    data = pdf(5 * CHUNK + 100)
    upload_id = (await start(phone, data)).json()["upload_id"]
    answer = await phone.call("PUT", f"/api/v1/uploads/{upload_id}/content", content=data[: 2 * CHUNK + 5])
    assert answer.json() == {"offset": 2 * CHUNK, "remaining_chunks": 4, "progress_pct": 33.3}
    offset = (await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")).headers["upload-offset"]
    assert offset == str(2 * CHUNK)
    answer = await phone.call(
        "PUT",
        f"/api/v1/uploads/{upload_id}/content",
        content=data[2 * CHUNK :],
        headers={"upload-offset": offset},
    )
    assert answer.json() == {"offset": len(data), "remaining_chunks": 0, "progress_pct": 100}
    receipt = (await phone.call("POST", f"/api/v1/uploads/{upload_id}/finalize")).json()
    assert receipt["checksum"] == sha256(data)


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-99", 206, slice(0, 100)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-50", 206, slice(-50, None)),
        ("bytes=0-0,5-9", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=9-5", 200, slice(None)),
    ],
)
async def test_a_part_of_a_file_is_read(phone: Phone, asked: str, status: int, expected: slice) -> None:
    data = pdf(3000)
    url = (await stored(phone, data))["file_url"]
    answer = await phone.call("GET", httpx.URL(url).raw_path.decode(), headers={"range": asked})
    assert answer.status_code == status
    assert answer.content == data[expected]
    assert answer.headers["content-length"] == str(len(data[expected]))
    if status == 206:
        start, end, _ = expected.indices(len(data))
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"


async def test_a_range_behind_the_end_is_refused(phone: Phone) -> None:
    path = httpx.URL((await stored(phone, pdf(3000)))["file_url"]).path
    answer = await phone.call("GET", path, headers={"range": "bytes=3000-"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "RANGE_NOT_SATISFIABLE")
    assert answer.headers["content-range"] == "bytes */3000"
    head = await phone.call("HEAD", path, headers={"range": "bytes=9999-"})
    assert (head.status_code, head.headers["content-range"]) == (416, "bytes */3000")
    whole = await phone.call("GET", path)
    assert "content-range" not in whole.headers


async def test_head_tells_what_get_would(phone: Phone) -> None:
    path = httpx.URL((await stored(phone, pdf(3000)))["file_url"]).path
    answer = await phone.call("HEAD", path)
    assert answer.status_code == 200
    assert answer.content == b""
    shown = await phone.call("GET", path)
    for name in ("content-type", "content-length", "etag", "accept-ranges", "content-disposition", "last-modified"):
        assert answer.headers[name] == shown.headers[name], name


async def test_a_reader_who_has_the_file_gets_304(phone: Phone) -> None:
    path = httpx.URL((await stored(phone, pdf(3000)))["file_url"]).path
    tag = (await phone.call("HEAD", path)).headers["etag"]
    answer = await phone.call("GET", path, headers={"if-none-match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["cache-control"] == "private, no-cache"  # a file that was deleted is gone for caches, too


async def test_a_file_is_its_owners_alone(edge: Edge, phone: Phone) -> None:
    path = httpx.URL((await stored(phone, pdf(3000)))["file_url"]).path
    other = await edge.phone()
    assert (await other.call("GET", path)).status_code == 403
    assert (await phone.http.get(path)).status_code == 401


async def test_a_signed_link_needs_no_token(phone: Phone) -> None:
    data = pdf(3000)
    file_id = httpx.URL((await stored(phone, data))["file_url"]).path.rpartition("/")[2].partition(".")[0]
    answer = await phone.call("POST", f"/api/v1/files/{file_id}/signed-url", json={"expires_in_seconds": 60})
    assert answer.status_code == 200, answer.text
    link = httpx.URL(answer.json()["url"]).raw_path.decode()
    assert (await phone.http.get(link)).content == data
    assert (await phone.http.get(link[:-1] + ("0" if link[-1] != "0" else "1"))).status_code == 403
    assert (await phone.http.get(link.replace("expires=", "expires=1"))).status_code == 403


async def test_files_are_listed_and_deleted(phone: Phone) -> None:
    for size in (1000, 2000, 3000):
        await stored(phone, pdf(size))
    page = (await phone.call("GET", "/api/v1/files", params={"page_size": 2})).json()
    assert [one["file_size"] for one in page["files"]] == [3000, 2000]
    rest = (await phone.call("GET", "/api/v1/files", params={"page_token": page["next_page_token"]})).json()
    assert [one["file_size"] for one in rest["files"]] == [1000]
    gone = rest["files"][0]
    for _ in range(2):
        assert (await phone.call("DELETE", f"/api/v1/files/{gone['id']}")).json() == {"deleted": True}
    assert (await phone.call("GET", httpx.URL(gone["file_url"]).path)).status_code == 404


UPLOAD_CHUNK = "/satchel.uploads.v1.UploadService/UploadChunk"


async def test_senders_who_never_send_do_not_stop_the_others(edge: Edge, phone: Phone) -> None:
    data = pdf(CHUNK + 5)
    upload_id = (await start(phone, data)).json()["upload_id"]
    metadata = (("authorization", f"Bearer {phone.access_token}"),)
    async with grpc.aio.insecure_channel(edge.mesh.address("uploads")) as channel:
        begin = channel.stream_unary(UPLOAD_CHUNK)
        slow = [begin(metadata=metadata, timeout=60) for _ in range(2 * CHUNKS_AT_ONCE)]
        for call in slow:
            await call.wait_for_connection()
        answers = await asyncio.gather(*(send(phone, upload_id, index, data) for index in range(2)))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert not any(call.done() for call in slow)
        for call in slow:
            call.cancel()


async def test_a_chunk_without_a_request_is_refused(edge: Edge, phone: Phone) -> None:
    async with grpc.aio.insecure_channel(edge.mesh.address("uploads")) as channel:
        call = channel.stream_unary(UPLOAD_CHUNK)(metadata=(("authorization", f"Bearer {phone.access_token}"),))
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
