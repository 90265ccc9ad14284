"""Uploads that go wrong at the edge: each mistake has its code, and nothing of it is left in the store or beside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import httpx
import psycopg
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from satchel.uploads.v1 import uploads_pb2 as pb
from satchel.uploads.v1 import uploads_pb2_grpc as pb_grpc

from services.uploads.limits_domain import read_limits
from tests.conftest import Edge
from tests.factories import Phone

CHUNK = 1024 * 1024
MIB = 1024 * 1024
LIMITS = read_limits()
TYPES = {mime_type: limit for limit in LIMITS.types for mime_type in limit.mime_types}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text(size: int) -> bytes:
    """A text of so many bytes that nobody has sent before."""
    return (uuid4().hex.encode() * (size // 32 + 1))[:size]


def png() -> bytes:
    """One pixel, of a colour of its own."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + uuid4().bytes[:3])
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixel) + part(b"IEND", b"")


def riff(kind: bytes, content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + kind + content


def boxes(brand: bytes, *compatible: bytes) -> bytes:
    """The boxes that sound and film of phones begin with."""
    brands = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + struct.pack(">I", 8) + b"mdat"


def fit() -> bytes:
    """A recording without a record: header and checksum."""
    head = struct.pack("<BBHI4s", 14, 0x20, 2132, 0, b".FIT")
    return head + bytes(2) + bytes(2)


PIXEL = b"\x9d\x01\x2a\x01\x00\x01\x00\x01\x40\x26\x25\xa4\x00\x03\x70\x00\xfe\xfb\x94\x00\x00"
SOUND = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 0)
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n'
# As small as a file of the type can be.
FILES = {
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xd9",
    "image/png": png(),
    "image/webp": riff(b"WEBP", b"VP8 " + struct.pack("<I", 24) + b"\x30\x01\x00" + PIXEL),
    "image/heic": boxes(b"heic", b"mif1", b"heic"),
    "image/heif": boxes(b"mif1", b"mif1", b"miaf"),
    "application/pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
    "text/plain": "Größe 5 ☕\n".encode(),
    "text/csv": b"\xef\xbb\xbfday,km\r\n1,5\r\n",
    "application/vnd.ant.fit": fit(),
    "application/gpx+xml": XML + b'<gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1"></gpx>',
    "application/vnd.garmin.tcx+xml": b"\xef\xbb\xbf" + XML + b"<TrainingCenterDatabase></TrainingCenterDatabase>",
    "audio/mpeg": b"ID3\x04\x00\x00\x00\x00\x00\x00\xff\xfb\x90\x00" + bytes(413),
    "audio/mp4": boxes(b"M4A ", b"M4A ", b"mp42", b"isom"),
    "audio/wav": riff(b"WAVE", SOUND),
    "audio/ogg": b"OggS\x00\x02" + bytes(20) + b"\x01\x13OpusHead\x01\x01\x38\x01\x80\xbb\x00\x00\x00\x00\x00",
    "video/mp4": boxes(b"isom", b"isom", b"avc1", b"mp41"),
    "video/quicktime": boxes(b"qt  ", b"qt  "),
    "video/webm": b"\x1a\x45\xdf\xa3\x8b\x42\x82\x84webm\x42\x87\x81\x04",
}


@pytest.fixture(scope="module")
async def phone(edge: Edge) -> Phone:
    """One phone for all that is refused."""
    return await edge.phone()


@pytest.fixture(scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.UploadServiceStub(channel)


def refusal(answer: httpx.Response, status: int, code: str) -> list[tuple[str, str]]:
    """The fields that a refusal of this status and code names."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == code, answer.text[:300]
    assert error["message"]
    return [(one["field"], one["reason"]) for one in error["details"]]


async def start(phone: Phone, data: bytes = b"", **given: Any) -> httpx.Response:
    asked = {
        "filename": "notes.txt",
        "total_size": len(data),
        "mime_type": "text/plain",
        "file_hash": sha256(data),
        **given,
    }
    return await phone.call("POST", "/api/v1/uploads/init", content=json.dumps(asked).encode())


async def begun(phone: Phone, data: bytes, **given: Any) -> str:
    answer = await start(phone, data, **given)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["upload_id"])


async def send(
    phone: Phone, upload_id: str, index: object, chunk: bytes, checksum: str | bytes | None = None
) -> httpx.Response:
    headers: dict[str, Any] = {"content-type": "application/octet-stream"}
    if checksum != "":
        headers["x-chunk-checksum"] = sha256(chunk) if checksum is None else checksum
    return await phone.call("POST", f"/api/v1/uploads/{upload_id}/chunk/{index}", content=chunk, headers=headers)


async def put(phone: Phone, upload_id: str, content: Any, offset: str | None = None) -> httpx.Response:
    headers = {} if offset is None else {"upload-offset": offset}
    return await phone.call("PUT", f"/api/v1/uploads/{upload_id}/content", content=content, headers=headers)


async def finalize(phone: Phone, upload_id: str) -> httpx.Response:
    return await phone.call("POST", f"/api/v1/uploads/{upload_id}/finalize")


async def stored(phone: Phone, data: bytes, **given: Any) -> str:
    """The id of a file that has arrived."""
    upload_id = await begun(phone, data, **given)
    assert (await put(phone, upload_id, data)).status_code == 200
    answer = await finalize(phone, upload_id)
    assert answer.status_code == 200, answer.text
    return upload_id


async def missing(phone: Phone, upload_id: str) -> list[int]:
    answer = await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")
    assert answer.status_code == 200, answer.text
    chunks: list[int] = answer.json()["missing_chunks"]
    return chunks


def blobs(edge: Edge) -> Path:
    return edge.mesh.config.home / "blobs"


def tree(edge: Edge) -> dict[str, int]:
    """Every file of the mesh but the logs, and its size."""
    home = edge.mesh.config.home
    return {str(path.relative_to(home)): path.stat().st_size for path in home.rglob("*") if path.is_file()}


def uploads_of(edge: Edge, phone: Phone) -> int:
    with psycopg.connect(edge.mesh.config.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM uploads.uploads WHERE user_id = %b", [UUID(phone.user_id)]
        ).fetchone()
    return int(row[0]) if row else 0


class TestStarts:
    @pytest.mark.parametrize(
        ("given", "status", "code", "fields"),
        [
            ('"total_size": 0', 400, "SYNC_002", [("total_size", "REQUIRED")]),
            ('"total_size": -1', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": 1.5', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": 1e-300', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": 1e300', 413, "PAYLOAD_TOO_LARGE", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": 1e400', 400, "SYNC_001", []),
            ('"total_size": NaN', 400, "SYNC_001", []),
            ('"total_size": "NaN"', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": "Infinity"', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": "-Infinity"', 400, "SYNC_001", [("total_size", "OUT_OF_RANGE")]),
            ('"total_size": "x"', 400, "SYNC_001", [("total_size", "INVALID_TYPE")]),
            ('"mime_type": ""', 400, "SYNC_002", [("mime_type", "REQUIRED")]),
            ('"mime_type": "application/x-msdownload"', 400, "SYNC_001", [("mime_type", "UNKNOWN_VALUE")]),
            ('"mime_type": "text/html"', 400, "SYNC_001", [("mime_type", "UNKNOWN_VALUE")]),
            ('"file_hash": ""', 400, "SYNC_002", [("file_hash", "REQUIRED")]),
            ('"file_hash": "abc"', 400, "SYNC_001", [("file_hash", "INVALID_FORMAT")]),
            (f'"file_hash": "{"g" * 64}"', 400, "SYNC_001", [("file_hash", "INVALID_FORMAT")]),
            (f'"file_hash": "{"ab" * 32}\\n"', 400, "SYNC_001", [("file_hash", "INVALID_FORMAT")]),
            ('"filename": ""', 400, "SYNC_002", [("filename", "REQUIRED")]),
            ('"filename": "..."', 400, "SYNC_001", [("filename", "INVALID_FORMAT")]),
            ('"filename": "/etc/"', 400, "SYNC_001", [("filename", "INVALID_FORMAT")]),
            ('"filename": "\\u202e\\u0000\\u200b"', 400, "SYNC_001", [("filename", "INVALID_FORMAT")]),
            (f'"filename": "{"x" * 256}"', 400, "SYNC_001", [("filename", "TOO_LONG")]),
            (f'"filename": "{chr(0x958) * 200}"', 400, "SYNC_001", [("filename", "TOO_LONG")]),
        ],
        ids=lambda value: value[:40] if isinstance(value, str) else "",
    )
    async def test_a_start_that_is_refused_leaves_nothing(
        self, edge: Edge, phone: Phone, given: str, status: int, code: str, fields: list[tuple[str, str]]
    ) -> None:
        before = tree(edge), uploads_of(edge, phone)
        name = given.split('"')[1]
        good = {"filename": "a.txt", "total_size": 1, "mime_type": "text/plain", "file_hash": "ab" * 32}
        rest = json.dumps({key: one for key, one in good.items() if key != name})
        answer = await phone.call("POST", "/api/v1/uploads/init", content=f"{rest[:-1]}, {given}}}".encode())
        assert refusal(answer, status, code) == fields
        assert (tree(edge), uploads_of(edge, phone)) == before

    @pytest.mark.parametrize("mime_type", TYPES)
    async def test_a_type_has_its_limit_to_the_byte(self, phone: Phone, mime_type: str) -> None:
        limit = TYPES[mime_type]
        answer = await start(phone, total_size=limit.max_size, mime_type=mime_type)
        assert answer.status_code == 201
        assert (await CALLS["cancel"](phone, answer.json()["upload_id"])).status_code == 200
        answer = await start(phone, total_size=limit.max_size + 1, mime_type=mime_type)
        assert refusal(answer, 413, "PAYLOAD_TOO_LARGE") == [("total_size", "OUT_OF_RANGE")]

    async def test_what_is_over_the_quota_is_refused_and_a_cancelled_upload_gives_its_room_back(
        self, edge: Edge
    ) -> None:
        phone, size = await edge.phone(), TYPES["video/mp4"].max_size
        begun = []
        for number in range(LIMITS.quota_of("free") // size):
            answer = await start(phone, total_size=size, mime_type="video/mp4", file_hash=f"{number:064x}")
            assert answer.status_code == 201
            begun.append(answer.json()["upload_id"])
        one_more = {"total_size": size, "mime_type": "video/mp4", "file_hash": "ef" * 32}
        assert refusal(await start(phone, **one_more), 403, "AUTH_FORBIDDEN") == []
        assert (await phone.call("DELETE", f"/api/v1/uploads/{begun[0]}")).status_code == 200
        assert (await start(phone, **one_more)).status_code == 201

    @pytest.mark.parametrize(
        ("filename", "kept"),
        [
            ("../../../etc/passwd", "passwd"),
            ("..\\..\\boot.ini", "boot.ini"),
            ("/absolute/walk.txt", "walk.txt"),
            ("C:\\Users\\me\\walk.txt", "walk.txt"),
            ("a\0b\n\r\t\x1b[31mc.txt", "ab[31mc.txt"),
            ("invoice\u202etxt.exe", "invoicetxt.exe"),
            ("\u2066a\u2069\u200f.txt", "a.txt"),
            ("x" * 255, "x" * 255),
            ("\U0001f600" * 255, "\U0001f600" * 255),
            ("ferien \U0001f3d6.txt", "ferien \U0001f3d6.txt"),
            ("تمرين.txt", "تمرين.txt"),
            ("cafe\u0301.txt", "caf\u00e9.txt"),
            ('a"b\\"c;d%22.txt', '"c;d%22.txt'),
            (".bashrc", "bashrc"),
            ("CON", "CON"),
            (" a . ", "a"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    async def test_a_filename_is_shown_and_never_a_path(
        self, edge: Edge, phone: Phone, filename: str, kept: str
    ) -> None:
        before = set(tree(edge))
        file_id = await stored(phone, text(100), filename=filename)
        assert set(tree(edge)) - before == {f"blobs/files/{file_id[:2]}/{file_id}"}
        listed = (await phone.call("GET", "/api/v1/files?page_size=1")).json()["files"]
        assert [(one["id"], one["filename"]) for one in listed] == [(file_id, kept)]
        answer = await phone.call("GET", f"/files/{file_id}.txt")
        disposition = answer.headers["content-disposition"]
        assert disposition.startswith('attachment; filename="')
        assert disposition.count('"') == 2
        assert disposition.isascii()
        assert disposition.isprintable()

    @pytest.mark.parametrize("mime_type", TYPES)
    async def test_every_type_that_is_listed_is_taken(self, phone: Phone, mime_type: str) -> None:
        data = FILES[mime_type]
        file_id = await stored(phone, data, mime_type=mime_type)
        answer = await phone.call("GET", f"/files/{file_id}.{TYPES[mime_type].mime_types[mime_type]}")
        assert (answer.content, answer.headers["content-type"]) == (data, mime_type)

    @pytest.mark.parametrize("mime_type", ["image/heic", "image/heif"])
    @pytest.mark.parametrize(
        ("brand", "compatible"),
        [
            (b"heic", (b"mif1", b"heic")),
            (b"heic", (b"mif1", b"MiHB", b"MiHE", b"MiPr", b"miaf", b"heic", b"tmap")),
            (b"heix", (b"mif1", b"heix", b"miaf")),
            (b"hevc", (b"msf1", b"hevc", b"iso8")),
            (b"mif1", (b"mif1", b"heic", b"hevc")),
            (b"mif1", (b"heix",)),
            (b"msf1", (b"msf1", b"hevc")),
            (b"heif", ()),
        ],
        ids=lambda value: value.decode() if isinstance(value, bytes) else None,
    )
    async def test_the_pictures_of_all_phones_are_known(
        self, phone: Phone, mime_type: str, brand: bytes, compatible: tuple[bytes, ...]
    ) -> None:
        data = boxes(brand, *compatible) + uuid4().bytes
        await stored(phone, data, mime_type=mime_type)

    @pytest.mark.parametrize(
        "data", [boxes(b"avif", b"mif1", b"miaf"), boxes(b"mif1", b"avif"), boxes(b"mp42", b"heic"), b"\0\0\0\1ftyp"]
    )
    async def test_what_only_looks_like_such_a_picture_has_failed(self, phone: Phone, data: bytes) -> None:
        upload_id = await begun(phone, data, mime_type="image/heic")
        assert (await put(phone, upload_id, data)).status_code == 200
        assert refusal(await finalize(phone, upload_id), 400, "SYNC_001") == [("mime_type", "MISMATCH")]

    @pytest.mark.parametrize("mime_type", [one for one in TYPES if one != "image/png"])
    async def test_a_picture_that_is_sent_as_something_else_has_failed(
        self, edge: Edge, phone: Phone, mime_type: str
    ) -> None:
        before, data = tree(edge), png()
        upload_id = await begun(phone, data, mime_type=mime_type)
        assert (await put(phone, upload_id, data)).status_code == 200
        assert refusal(await finalize(phone, upload_id), 400, "SYNC_001") == [("mime_type", "MISMATCH")]
        refusal(await finalize(phone, upload_id), 404, "UPLOAD_001")
        assert tree(edge) == before


class TestEnds:
    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (
                {"file_hash": "ab" * 32},
                "The upload has failed. The file is not what file_hash says; start a new upload.",
            ),
            ({"mime_type": "image/png"}, "The upload has failed. mime_type: is not what the file holds"),
        ],
        ids=["hash", "type"],
    )
    async def test_the_status_of_an_upload_that_failed_says_why(
        self, phone: Phone, stub: Any, given: dict[str, str], why: str
    ) -> None:
        data = text(2000)
        upload_id = await begun(phone, data, **given)
        assert (await put(phone, upload_id, data)).status_code == 200
        assert (await finalize(phone, upload_id)).status_code == 400
        for answer in (
            await phone.call("GET", f"/api/v1/uploads/{upload_id}/status"),
            await finalize(phone, upload_id),
            await put(phone, upload_id, data),
        ):
            refusal(answer, 404, "UPLOAD_001")
            assert answer.json()["error"]["message"] == why
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetUploadStatus(pb.GetUploadStatusRequest(upload_id=upload_id), metadata=phone.metadata)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, why)

    async def test_the_status_of_an_upload_that_was_ended_says_how(self, edge: Edge, phone: Phone) -> None:
        cancelled = await begun(phone, text(2000))
        await phone.call("DELETE", f"/api/v1/uploads/{cancelled}")
        deleted = await stored(phone, text(2000))
        await phone.call("DELETE", f"/api/v1/files/{deleted}")
        for upload_id, why in ((cancelled, "The upload was cancelled"), (deleted, "The file was deleted")):
            answer = await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")
            refusal(answer, 404, "UPLOAD_001")
            assert answer.json()["error"]["message"] == f"{why}; start a new upload."
            other = await (await edge.phone()).call("GET", f"/api/v1/uploads/{upload_id}/status")
            refusal(other, 403, "UPLOAD_001")
            assert why not in other.text


class TestChunks:
    @pytest.mark.parametrize(
        ("index", "chunk", "checksum", "code", "fields"),
        [
            (0, CHUNK - 1, None, "SYNC_001", [("content", "OUT_OF_RANGE")]),
            (0, CHUNK + 1, None, "SYNC_001", [("content", "OUT_OF_RANGE")]),
            (0, 0, None, "SYNC_001", [("content", "OUT_OF_RANGE")]),
            (1, CHUNK, None, "SYNC_001", [("content", "OUT_OF_RANGE")]),
            (1, 99, None, "SYNC_001", [("content", "OUT_OF_RANGE")]),
            (-1, CHUNK, None, "SYNC_001", [("chunk_index", "OUT_OF_RANGE")]),
            (2, 100, None, "SYNC_001", [("chunk_index", "OUT_OF_RANGE")]),
            (2**31 - 1, CHUNK, None, "SYNC_001", [("chunk_index", "OUT_OF_RANGE")]),
            (2**31, CHUNK, None, "SYNC_001", [("chunk_index", "INVALID_TYPE")]),
            ("x", CHUNK, None, "SYNC_001", [("chunk_index", "INVALID_TYPE")]),
            ("1.5", CHUNK, None, "SYNC_001", [("chunk_index", "INVALID_TYPE")]),
            (0, CHUNK, "", "SYNC_002", [("x-chunk-checksum", "REQUIRED")]),
            (0, CHUNK, "abc", "SYNC_001", [("x-chunk-checksum", "INVALID_FORMAT")]),
            (0, CHUNK, "g" * 64, "SYNC_001", [("x-chunk-checksum", "INVALID_FORMAT")]),
            (0, CHUNK, "ab" * 33, "SYNC_001", [("x-chunk-checksum", "INVALID_FORMAT")]),
            (0, CHUNK, "sha256=" + "ab" * 32, "SYNC_001", [("x-chunk-checksum", "INVALID_FORMAT")]),
            (0, CHUNK, sha256(b"other"), "UPLOAD_002", [("x-chunk-checksum", "MISMATCH")]),
        ],
        ids=str,
    )
    async def test_a_chunk_that_is_refused_is_not_stored(
        self,
        edge: Edge,
        phone: Phone,
        index: object,
        chunk: int,
        checksum: str | None,
        code: str,
        fields: list[tuple[str, str]],
    ) -> None:
        upload_id = await begun(phone, text(CHUNK + 100))
        before = tree(edge)
        assert refusal(await send(phone, upload_id, index, text(chunk), checksum), 400, code) == fields
        assert await missing(phone, upload_id) == [0, 1]
        assert tree(edge) == before

    async def test_a_checksum_is_written_in_any_case(self, phone: Phone) -> None:
        data = text(100)
        upload_id = await begun(phone, data, file_hash=sha256(data).upper())
        assert (await send(phone, upload_id, 0, data, sha256(data).upper())).status_code == 200
        assert (await finalize(phone, upload_id)).json()["checksum"] == sha256(data)

    async def test_other_bytes_for_a_stored_chunk_are_refused(self, phone: Phone) -> None:
        data = text(100)
        upload_id = await begun(phone, data)
        assert (await send(phone, upload_id, 0, data)).status_code == 200
        other = await send(phone, upload_id, 0, text(100))
        assert refusal(other, 400, "UPLOAD_002") == [("chunk_index", "CONFLICT")]
        assert (await finalize(phone, upload_id)).json()["checksum"] == sha256(data)

    @pytest.mark.parametrize("length", ["content-length: 9437184", "transfer-encoding: chunked"])
    async def test_a_body_over_8_mib_is_too_large(self, edge: Edge, phone: Phone, length: str) -> None:
        upload_id, before = await begun(phone, text(100)), tree(edge)
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        head = f"POST /api/v1/uploads/{upload_id}/chunk/0 HTTP/1.1\r\nhost: edge\r\n{length}\r\n"
        writer.write(f"{head}authorization: {phone.headers['authorization']}\r\n\r\n".encode())
        body = bytes(9 * MIB)
        writer.write(b"%x\r\n%b\r\n" % (len(body), body) if "chunked" in length else body)
        # The answer is read while the body is being sent: the edge may not read it to its end.
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"}}")
        writer.transport.abort()
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'"PAYLOAD_TOO_LARGE"' in answer
        assert tree(edge) == before


class TestStreams:
    @pytest.mark.parametrize(
        "offset", ["-1", "1", "x", str(CHUNK - 1), str(3 * CHUNK), "1e6", "0x0", "1" * 17, f"+{CHUNK}", "1048576.0"]
    )
    async def test_an_offset_that_is_none_is_refused(self, edge: Edge, phone: Phone, offset: str) -> None:
        upload_id, before = await begun(phone, text(2 * CHUNK + 100)), tree(edge)
        fields = refusal(await put(phone, upload_id, b"x" * CHUNK, offset), 400, "SYNC_001")
        assert [field for field, _ in fields] == ["upload-offset"]
        assert await missing(phone, upload_id) == [0, 1, 2]
        assert tree(edge) == before

    async def test_the_offset_of_a_complete_upload_is_one(self, phone: Phone) -> None:
        data = text(CHUNK + 100)
        upload_id = await begun(phone, data)
        await put(phone, upload_id, data)
        offset = (await phone.call("GET", f"/api/v1/uploads/{upload_id}/status")).headers["upload-offset"]
        assert offset == str(len(data))
        answer = await put(phone, upload_id, b"", offset)
        assert answer.json() == {"offset": len(data), "remaining_chunks": 0, "progress_pct": 100}

    async def test_an_answer_tells_of_the_first_gap(self, phone: Phone) -> None:
        data = text(3 * CHUNK)
        upload_id = await begun(phone, data)
        answer = await put(phone, upload_id, data[2 * CHUNK :], str(2 * CHUNK))
        assert answer.json() == {"offset": 0, "remaining_chunks": 2, "progress_pct": 33.3}
        answer = await put(phone, upload_id, data[: 2 * CHUNK])
        assert answer.json() == {"offset": len(data), "remaining_chunks": 0, "progress_pct": 100}

    @pytest.mark.parametrize("more", [1, CHUNK, 3 * CHUNK])
    async def test_more_bytes_than_the_file_has_are_refused_and_not_kept(
        self, edge: Edge, phone: Phone, more: int
    ) -> None:
        data = text(CHUNK + 100)
        upload_id = await begun(phone, data)
        fields = refusal(await put(phone, upload_id, data + bytes(more)), 400, "SYNC_001")
        assert fields == [("content", "OUT_OF_RANGE")]
        assert (blobs(edge) / "uploads" / f"{upload_id}.part").stat().st_size <= len(data)
        assert await missing(phone, upload_id) == []
        assert (await finalize(phone, upload_id)).json()["checksum"] == sha256(data)

    async def test_a_body_that_is_cut_leaves_whole_chunks(self, edge: Edge, phone: Phone) -> None:
        data = text(4 * CHUNK)
        upload_id = await begun(phone, data)
        _, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        head = f"PUT /api/v1/uploads/{upload_id}/content HTTP/1.1\r\nhost: edge\r\ncontent-length: {len(data)}\r\n"
        writer.write(f"{head}authorization: {phone.headers['authorization']}\r\n\r\n".encode())
        writer.write(data[: 2 * CHUNK + 500])
        await writer.drain()
        async with asyncio.timeout(20):
            while await missing(phone, upload_id) != [2, 3]:
                await asyncio.sleep(0.02)
        writer.transport.abort()
        assert (await put(phone, upload_id, data[2 * CHUNK :], str(2 * CHUNK))).status_code == 200
        assert (await finalize(phone, upload_id)).json()["checksum"] == sha256(data)


CALLS = {
    "status": lambda phone, id: phone.call("GET", f"/api/v1/uploads/{id}/status"),
    "chunk": lambda phone, id: send(phone, id, 0, b"x" * 100),
    "stream": lambda phone, id: put(phone, id, b"x" * 100),
    "finalize": finalize,
    "cancel": lambda phone, id: phone.call("DELETE", f"/api/v1/uploads/{id}"),
}
every_call = pytest.mark.parametrize("call", CALLS)


class TestUploadsThatAreNoMore:
    @every_call
    @pytest.mark.parametrize("id", ["unknown", "x", "%00", "..%2f..%2fetc", "%2e%2e", "null", "x" * 3000])
    async def test_an_id_that_is_none_is_not_found(self, edge: Edge, phone: Phone, call: str, id: str) -> None:
        before = tree(edge)
        answer = await CALLS[call](phone, str(uuid4()) if id == "unknown" else id)
        if "%" in id:  # the edge has no such path
            assert answer.status_code in (400, 404)
        else:
            assert refusal(answer, 404, "UPLOAD_001") == []
        assert tree(edge) == before

    @every_call
    async def test_somebody_elses_is_forbidden(self, edge: Edge, phone: Phone, call: str) -> None:
        upload_id, before = await begun(await edge.phone(), text(100)), tree(edge)
        assert refusal(await CALLS[call](phone, upload_id), 403, "UPLOAD_001") == []
        assert tree(edge) == before

    @every_call
    async def test_an_expired_one_says_so(self, edge: Edge, phone: Phone, call: str) -> None:
        data = text(100)
        upload_id = await begun(phone, data)
        await put(phone, upload_id, data)
        with psycopg.connect(edge.mesh.config.database_url, autocommit=True) as connection:
            past = "UPDATE uploads.uploads SET expire_time = now() - interval '1 second' WHERE id = %b"
            connection.execute(past, [UUID(upload_id)])
        assert refusal(await CALLS[call](phone, upload_id), 410, "UPLOAD_003") == []
        assert await begun(phone, data) != upload_id, "the same words start a new one"

    @every_call
    async def test_a_cancelled_one_is_not_found(self, edge: Edge, phone: Phone, call: str) -> None:
        before, data = tree(edge), text(100)
        upload_id = await begun(phone, data)
        await put(phone, upload_id, data)
        assert (await CALLS["cancel"](phone, upload_id)).status_code == 200
        answer = await CALLS[call](phone, upload_id)
        if call == "cancel":
            assert answer.status_code == 200, "a second time is harmless"
        else:
            assert refusal(answer, 404, "UPLOAD_001") == []
        assert tree(edge) == before

    @every_call
    async def test_one_that_is_not_what_it_said_has_failed(self, edge: Edge, phone: Phone, call: str) -> None:
        before, data = tree(edge), text(100)
        upload_id = await begun(phone, data, file_hash=sha256(text(100)))
        await put(phone, upload_id, data)
        assert refusal(await finalize(phone, upload_id), 400, "UPLOAD_002") == [("file_hash", "MISMATCH")]
        assert refusal(await CALLS[call](phone, upload_id), 404, "UPLOAD_001") == []
        assert tree(edge) == before
        assert (await phone.call("GET", f"/files/{upload_id}.txt")).status_code == 404

    async def test_a_completed_one_goes_on_telling_what_it_is(self, edge: Edge, phone: Phone) -> None:
        data = text(CHUNK + 100)
        upload_id = await stored(phone, data)
        before = tree(edge)
        receipts = [(await finalize(phone, upload_id)).json() for _ in range(3)]
        assert receipts[0] == receipts[1] == receipts[2]
        assert receipts[0]["checksum"] == sha256(data)
        answer = await send(phone, upload_id, 0, data[:CHUNK])
        assert (answer.status_code, answer.json()["remaining_chunks"], answer.json()["progress_pct"]) == (200, 0, 100)
        answer = await put(phone, upload_id, data)
        assert answer.json() == {"offset": len(data), "remaining_chunks": 0, "progress_pct": 100}
        assert await missing(phone, upload_id) == []
        assert refusal(await CALLS["cancel"](phone, upload_id), 409, "CONFLICT") == []
        assert refusal(await send(phone, upload_id, 2, data[:CHUNK]), 400, "SYNC_001")
        assert tree(edge) == before

    async def test_one_with_missing_chunks_lists_them(self, phone: Phone) -> None:
        data = text(4 * CHUNK)
        upload_id = await begun(phone, data)
        await send(phone, upload_id, 1, data[CHUNK : 2 * CHUNK])
        answer = await finalize(phone, upload_id)
        fields = refusal(answer, 400, "SYNC_002")
        assert fields == [(f"chunks[{index}]", "REQUIRED") for index in (0, 2, 3)]
        assert "0, 2, 3" in answer.json()["error"]["message"]
        assert await missing(phone, upload_id) == [0, 2, 3]

    async def test_one_with_thousands_of_missing_chunks_lists_the_first(self, phone: Phone) -> None:
        upload_id = await begun(phone, b"", total_size=2000 * CHUNK, mime_type="video/mp4", file_hash="cd" * 32)
        answer = await finalize(phone, upload_id)
        assert refusal(answer, 400, "SYNC_002") == [(f"chunks[{index}]", "REQUIRED") for index in range(20)]
        assert "1980 more" in answer.json()["error"]["message"]


class TestFiles:
    @pytest.mark.parametrize(
        "wanted",
        ["bytes", "bytes=", "bytes=-", "bytes=x-y", "bytes=1-x", "bytes=--1", "bytes=5-1", "items=0-1", "bytes=0-1,3-4",
         "bytes = 0-1", "bytes=0-1;", f"bytes={'9' * 30}-", "bytes=\t0-1", "0-1", "=", "bytes=-" + "9" * 19],
    )  # fmt: skip
    async def test_a_range_that_is_none_is_not_heard(self, phone: Phone, wanted: str) -> None:
        data = text(1000)
        file_id = await stored(phone, data)
        answer = await phone.call("GET", f"/files/{file_id}.txt", headers={"range": wanted})
        assert (answer.status_code, answer.content) == (200, data)

    @pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-2000", "bytes=-0", f"bytes={'9' * 18}-"])
    async def test_a_range_that_the_file_has_not_is_refused(self, phone: Phone, wanted: str) -> None:
        file_id = await stored(phone, text(1000))
        answer = await phone.call("GET", f"/files/{file_id}.txt", headers={"range": wanted})
        assert refusal(answer, 416, "RANGE_NOT_SATISFIABLE") == []

    @pytest.mark.parametrize(
        "name",
        ["{id}", "{id}.pdf", "{id}.txt.txt", "x", "..%2f..%2fetc%2fpasswd", "%2e%2e/x", "{unknown}.txt", "{id}%00"],
    )
    async def test_what_is_no_files_name_is_not_found(self, phone: Phone, name: str) -> None:
        file_id = await stored(phone, text(10))
        answer = await phone.call("GET", "/files/" + name.format(id=file_id, unknown=uuid4()))
        if "%" in name:  # the edge has no such path
            assert answer.status_code in (400, 404)
        else:
            refusal(answer, 404, "NOT_FOUND")

    async def test_an_upload_that_is_no_file_yet_is_not_read(self, phone: Phone) -> None:
        data = text(10)
        upload_id = await begun(phone, data)
        await put(phone, upload_id, data)
        refusal(await phone.call("GET", f"/files/{upload_id}.txt"), 404, "NOT_FOUND")
        refusal(await phone.call("DELETE", f"/api/v1/files/{upload_id}"), 404, "NOT_FOUND")
        answer = await phone.call("POST", f"/api/v1/files/{upload_id}/signed-url", json={})
        refusal(answer, 404, "NOT_FOUND")

    async def test_somebody_elses_file_is_forbidden(self, edge: Edge, phone: Phone) -> None:
        file_id, before = await stored(await edge.phone(), text(10)), tree(edge)
        for verb, path in (
            ("GET", f"/files/{file_id}.txt"),
            ("DELETE", f"/api/v1/files/{file_id}"),
            ("POST", f"/api/v1/files/{file_id}/signed-url"),
        ):
            refusal(await phone.call(verb, path), 403, "AUTH_FORBIDDEN")
        assert tree(edge) == before

    async def test_a_link_that_has_died_says_so(self, phone: Phone) -> None:
        file_id = await stored(phone, text(10))
        answer = await phone.call("POST", f"/api/v1/files/{file_id}/signed-url", json={"expires_in_seconds": 1})
        path = httpx.URL(answer.json()["url"]).raw_path.decode()
        deadline = time.monotonic() + 10
        while (answer := await phone.http.get(path)).status_code == 200 and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        refusal(answer, 410, "LINK_EXPIRED")

    @pytest.mark.parametrize("name", ["x", "{unknown}.txt"])
    async def test_a_head_that_is_refused_has_no_body(self, edge: Edge, phone: Phone, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        head = f"HEAD /files/{name.format(unknown=uuid4())} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n"
        writer.write(f"{head}authorization: {phone.headers['authorization']}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 404")
        assert answer.endswith(b"\r\n\r\n")


def chunk_message(whole: bytes, index: int, /, **given: Any) -> pb.UploadChunksRequest:
    chunk = whole[index * CHUNK : (index + 1) * CHUNK]
    return pb.UploadChunksRequest(**{"chunk_index": index, "data": chunk, "checksum": sha256(chunk)} | given)


class TestGrpc:
    """The same by gRPC callers, through the edge."""

    async def asked(self, rpc: Any, *messages: Any, phone: Phone, again: int = 5) -> tuple[Any, str]:
        """The answer, or the reason of the refusal."""
        try:
            streamed = isinstance(rpc, grpc.aio.StreamUnaryMultiCallable)
            return await rpc(iter(messages) if streamed else messages[0], metadata=phone.metadata), ""
        except grpc.aio.AioRpcError as error:
            status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
            if status is None and error.code() is grpc.StatusCode.INTERNAL and again:
                # Where the refusal comes before all is sent, grpc may tell of the write and forget the refusal.
                return await self.asked(rpc, *messages, phone=phone, again=again - 1)
            assert status is not None, error
            assert status.details[0].Unpack(info)
            return None, info.reason

    async def test_chunks_come_in_any_order(self, stub: Any, phone: Phone) -> None:
        data = text(5 * CHUNK + 9)
        upload_id = await begun(phone, data)
        order = [3, 0, 5, 0, 1]
        messages = [chunk_message(data, index, upload_id=upload_id) for index in order]
        answer = await stub.UploadChunks(iter(messages), metadata=phone.metadata)
        assert (answer.uploaded_chunks, answer.remaining_chunks, answer.progress_pct) == (5, 2, 66.7)
        # Who has named it once need not name it again.
        messages = [chunk_message(data, 2, upload_id=upload_id), chunk_message(data, 4)]
        answer = await stub.UploadChunks(iter(messages), metadata=phone.metadata)
        assert (answer.remaining_chunks, answer.progress_pct) == (0, 100)
        request = pb.FinalizeUploadRequest(upload_id=upload_id)
        receipt = await stub.FinalizeUpload(request, metadata=phone.metadata)
        assert receipt.checksum == sha256(data)

    @pytest.mark.parametrize("messages", [[], [pb.UploadChunksRequest(data=b"x")]], ids=["none", "unnamed"])
    async def test_chunks_of_no_upload_are_not_found(self, stub: Any, phone: Phone, messages: list[Any]) -> None:
        answer = await self.asked(stub.UploadChunks, *messages, phone=phone)
        assert answer == (None, "UPLOAD_NOT_FOUND")

    async def test_chunks_of_two_uploads_do_not_share_a_stream(self, stub: Any, phone: Phone) -> None:
        data = text(2 * CHUNK)
        upload_id, other = await begun(phone, data), await begun(phone, text(2 * CHUNK))
        messages = [chunk_message(data, 0, upload_id=upload_id), chunk_message(data, 1, upload_id=other)]
        answer = await self.asked(stub.UploadChunks, *messages, phone=phone)
        assert answer == (None, "FIELD_INVALID")
        assert await missing(phone, upload_id) == [1]
        assert await missing(phone, other) == [0, 1]

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"checksum": sha256(b"other")}, "CHUNK_CHECKSUM"),
            ({"checksum": ""}, "FIELD_MISSING"),
            ({"checksum": "x"}, "FIELD_INVALID"),
            ({"data": b"short"}, "FIELD_INVALID"),
            ({"chunk_index": 8}, "FIELD_INVALID"),
            ({"chunk_index": -1}, "FIELD_INVALID"),
        ],
        ids=str,
    )
    async def test_what_came_before_a_wrong_chunk_is_stored(
        self, stub: Any, phone: Phone, wrong: dict[str, Any], reason: str
    ) -> None:
        data = text(8 * CHUNK)
        upload_id = await begun(phone, data)
        messages = [chunk_message(data, index, **(wrong if index == 3 else {})) for index in range(8)]
        messages[0].upload_id = upload_id
        answer = await self.asked(stub.UploadChunks, *messages, phone=phone)
        assert answer == (None, reason)
        rest = await missing(phone, upload_id)
        assert set(rest) >= {3, 7}
        assert not {0, 1, 2} & set(rest)

    @pytest.mark.parametrize("size", [1, 1000, 256 * 1024, 3 * CHUNK])
    async def test_a_file_goes_up_and_comes_down_as_a_stream(self, stub: Any, phone: Phone, size: int) -> None:
        data = text(2 * CHUNK + 77)
        upload_id = await begun(phone, data)
        skipped = CHUNK if size == 1 else 0
        if skipped:
            await send(phone, upload_id, 0, data[:CHUNK])
            size = 100_000
        pieces = [HttpBody(data=data[at : at + size]) for at in range(skipped, len(data), size)]
        messages = [pb.UploadContentRequest(content=piece) for piece in pieces]
        messages[0].upload_id, messages[0].offset = upload_id, skipped
        answer = await stub.UploadContent(iter(messages), metadata=phone.metadata)
        assert (answer.offset, answer.remaining_chunks, answer.progress_pct) == (len(data), 0, 100)
        await stub.FinalizeUpload(pb.FinalizeUploadRequest(upload_id=upload_id), metadata=phone.metadata)
        request = pb.GetFileRequest(name=f"{upload_id}.txt")
        answers = [one async for one in stub.GetFile(request, metadata=phone.metadata)]
        assert b"".join(one.data for one in answers) == data
        assert [one.content_type for one in answers][:2] == ["text/plain", ""]
        ranged = (*phone.metadata, ("range", "bytes=5-9"))
        assert [one.data async for one in stub.GetFile(request, metadata=ranged)] == [data[5:10]]

    @pytest.mark.parametrize("offset", [-1.0, 0.5, 1.0, float("nan"), float("inf"), 1e300, 3.0 * CHUNK])
    async def test_an_offset_that_is_none_is_refused(self, stub: Any, phone: Phone, offset: float) -> None:
        upload_id = await begun(phone, text(2 * CHUNK + 77))
        message = pb.UploadContentRequest(upload_id=upload_id, offset=offset, content=HttpBody(data=b"x" * CHUNK))
        answer = await self.asked(stub.UploadContent, message, phone=phone)
        assert answer == (None, "FIELD_INVALID")
        assert await missing(phone, upload_id) == [0, 1, 2]

    @pytest.mark.parametrize("size", [float("nan"), float("inf"), float("-inf"), -1.0, 1.5])
    async def test_a_size_that_is_none_is_refused(self, stub: Any, phone: Phone, size: float) -> None:
        asked = pb.InitUploadRequest(filename="a.txt", total_size=size, mime_type="text/plain", file_hash="ab" * 32)
        assert await self.asked(stub.InitUpload, asked, phone=phone) == (None, "FIELD_INVALID")

    async def test_nobody_streams_without_a_token_or_into_somebody_elses_upload(
        self, edge: Edge, stub: Any, phone: Phone
    ) -> None:
        data = text(2 * CHUNK)
        upload_id, other = await begun(phone, data), await edge.phone()
        stranger = replace(other, access_token="garbage")
        for caller, reason in ((other, "UPLOAD_FORBIDDEN"), (stranger, "INVALID_TOKEN")):
            message = chunk_message(data, 0, upload_id=upload_id)
            answer = await self.asked(stub.UploadChunks, message, phone=caller)
            assert answer == (None, reason)
        assert await missing(phone, upload_id) == [0, 1]
