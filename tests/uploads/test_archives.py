"""Archives of recordings, as people bring them from elsewhere: each file by itself, and no archive does any harm."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import struct
import warnings
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.parts import ROOT
from runtime.call import Principal
from runtime.errors import Failure, Reason, invalid
from services.uploads.activities_domain import Added, Recording
from services.uploads.archives import ArchiveLimits, Contents, Found
from services.uploads.imports_domain import TRIES, Imports
from services.uploads.limits_domain import read_limits
from services.uploads.spools import PLACES, Spool, Spools
from tests.conftest import Edge
from tests.factories import Phone
from tests.sending import until
from tests.uploads.recordings import gpx, point, sample

LIMITS = ROOT / "services" / "uploads" / "limits.json"
MIB = 2**20


def ride(number: int, inside: str = "") -> bytes:
    """A short recording, each number another one."""
    return gpx(point(f"2024-05-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z", inside=inside))


def archive(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as made:
        warnings.simplefilter("ignore")  # names that come twice are meant
        for name, data in members.items() if isinstance(members, Mapping) else members:
            made.writestr(name, data)
    return buffer.getvalue()


async def add(phone: Phone, data: bytes | BinaryIO, name: str = "export.zip") -> httpx.Response:
    files = {"file": (name, data, "application/zip")}
    return await phone.call("POST", f"/activities/{phone.user_id}", files=files, timeout=120)


def statuses(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code in (200, 201), answer.text
    return {one["filename"]: one["status"] for one in answer.json()["results"]}


def counts(answer: httpx.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "results"}


def tally(**given: int) -> dict[str, Any]:
    """The counts of an answer in which all others are 0."""
    return {"created": 0, "duplicates": 0, "failed": 0, "skipped": 0, "ignored": 0, "complete": True, **given}


async def files(phone: Phone) -> list[dict[str, Any]]:
    page = (await phone.call("GET", "/api/v1/files", params={"page_size": 1000})).json()
    found: list[dict[str, Any]] = page["files"]
    return found


STRAVA = {
    "activities/1.fit.gz": gzip.compress(sample("garmin-fenix-5-run.fit")),
    "activities/2.gpx.gz": gzip.compress(sample("cerknicko-jezero.gpx")),
    # Strava writes ten blanks ahead of what XML has to begin with.
    "activities/3.tcx.gz": gzip.compress(b" " * 10 + sample("run.tcx")),
    "activities/4.gpx": ride(4),
    "activities.csv": b"Activity ID,Activity Date\n",
    "media/1.jpg": b"\xff\xd8\xff",
    "media/": b"",
}


async def test_an_export_of_strava_becomes_files_and_records(phone: Phone) -> None:
    answer = await add(phone, archive(STRAVA))
    assert answer.status_code == 201
    assert statuses(answer) == dict.fromkeys([name for name in STRAVA if "activities/" in name], "created")
    assert counts(answer) == tally(created=4, ignored=2)
    stored = {one["id"]: one["filename"] for one in await files(phone)}
    assert stored == {
        one["activity_id"]: one["filename"].rpartition("/")[2].removesuffix(".gz") for one in answer.json()["results"]
    }
    first = answer.json()["results"][0]
    content = await phone.call("GET", httpx.URL(first["file_url"]).path)
    assert content.content == sample("garmin-fenix-5-run.fit")

    async def told() -> bool:
        page = (await phone.call("GET", "/api/v1/sync/pull", params={"domains": "activity"})).json()
        return {one["id"] for one in page["changes"]} == set(stored)

    await until(told)


async def test_an_export_of_garmin_is_an_archive_of_archives(phone: Phone) -> None:
    uploaded = "DI_CONNECT/DI-Connect-Uploaded-Files"
    inner = {
        "ada@example.com_1.fit": sample("garmin-edge-820-bike.fit"),
        "ada@example.com_2.fit": sample("weight-scale.fit"),
        "notes.txt": b"",
    }
    data = archive(
        {
            f"{uploaded}/UploadedFiles_0-_Part1.zip": archive(inner),
            f"{uploaded}/UploadedFiles_0-_Part2.zip": archive({"3.fit": sample("indoor-trainer.fit")}),
            "DI_CONNECT/DI-Connect-User/user_profile.json": b"{}",
        }
    )
    answer = await add(phone, data)
    assert answer.status_code == 201
    assert statuses(answer) == {
        f"{uploaded}/UploadedFiles_0-_Part1.zip/ada@example.com_1.fit": "created",
        f"{uploaded}/UploadedFiles_0-_Part1.zip/ada@example.com_2.fit": "skipped",
        f"{uploaded}/UploadedFiles_0-_Part2.zip/3.fit": "created",
    }
    assert counts(answer) == tally(created=2, skipped=1, ignored=2)
    assert answer.json()["results"][1]["error"] == "is FIT, but no activity"


async def test_the_same_archive_again_is_all_duplicates_and_stores_nothing(phone: Phone) -> None:
    data = archive({**STRAVA, "again/1.fit": sample("garmin-fenix-5-run.fit")})
    first = await add(phone, data)
    assert statuses(first)["again/1.fit"] == "duplicate"  # by its content, whatever its name
    answer = await add(phone, data)
    assert answer.status_code == 200
    assert set(statuses(answer).values()) == {"duplicate"}
    assert (answer.json()["created"], answer.json()["duplicates"]) == (0, 5)
    known = {one["activity_id"] for one in first.json()["results"]}
    assert {one["activity_id"] for one in answer.json()["results"]} == known
    assert len(await files(phone)) == 4


async def test_an_archive_without_recordings_is_taken_and_nothing_comes_of_it(phone: Phone) -> None:
    for data, ignored in ((archive({}), 0), (archive({"readme.txt": b"x", "__MACOSX/._1.fit": b"x"}), 2)):
        answer = await add(phone, data)
        assert (answer.status_code, answer.json()["results"], answer.json()["complete"]) == (200, [], True)
        assert answer.json()["ignored"] == ignored


def patched(data: bytes, name: str, at: int, value: bytes, *, local: int | None = None) -> bytes:
    """The archive with `value` at this place of the entry's line in the directory, and of its own header."""
    changed = bytearray(data)
    line = next(
        start for start in places(data, b"PK\x01\x02") if data[start + 46 : start + 46 + len(name)] == name.encode()
    )
    changed[line + at : line + at + len(value)] = value
    if local is not None:
        (header,) = struct.unpack_from("<I", data, line + 42)
        changed[header + local : header + local + len(value)] = value
    return bytes(changed)


def places(data: bytes, mark: bytes) -> Iterator[int]:
    start = data.find(mark)
    while start >= 0:
        yield start
        start = data.find(mark, start + 1)


# Offsets in a line of the directory, and in an entry's own header.
FLAGS, METHOD, CRC, PACKED, SIZE, OFFSET = 8, 10, 16, 20, 24, 42


async def test_one_bad_file_never_stops_the_others(phone: Phone) -> None:
    bad = {
        "a-broken.fit": sample("broken-crc.fit"),
        "b-garbage.fit": b"\0" * 100,
        "c-empty.gpx": b"",
        "d-no-gzip.tcx.gz": b"not gzip",
        "e-cut.fit.gz": gzip.compress(sample("indoor-trainer.fit"))[:-100],
        "f-entities.gpx": gpx(point(), head='<!DOCTYPE gpx [<!ENTITY a SYSTEM "file:///etc/passwd">]>'),
        "g-encrypted.gpx": ride(1),
        "h-method.gpx": ride(2),
        "i-crc.gpx": ride(3),
        "j-name.gpx": ride(4),
        "k-cut.zip": archive({"x.gpx": ride(5)})[:-10],
        "l-deflate.gpx": ride(6),
        "m-deep.zip": archive({"deeper.zip": archive({"x.gpx": ride(7)})}),
        "n-bomb.gpx.gz": gzip.compress(bytes(60 * MIB)),
        "o-bomb.gpx": bytes(20 * MIB),
    }
    data = archive({**bad, "z-good.gpx": ride(8)})
    data = patched(data, "g-encrypted.gpx", FLAGS, b"\x01\0", local=6)
    data = patched(data, "h-method.gpx", METHOD, struct.pack("<H", 12), local=8)
    data = patched(data, "i-crc.gpx", CRC, b"\1\2\3\4", local=14)
    data = patched(data, "j-name.gpx", 46, b"J")
    start = next(places(data, b"l-deflate.gpx")) + len("l-deflate.gpx")
    data = data[:start] + b"\xff" * 20 + data[start + 20 :]
    answer = await add(phone, data)
    assert answer.status_code == 201
    told = statuses(answer)
    assert told.pop("z-good.gpx") == "created"
    assert set(told.values()) == {"error"}
    assert len(told) == len(bad)
    assert (answer.json()["created"], answer.json()["failed"]) == (1, len(bad))
    errors = {one["filename"]: one.get("error", "") for one in answer.json()["results"]}
    assert errors["g-encrypted.gpx"] == "is encrypted"
    assert errors["o-bomb.gpx"] == errors["n-bomb.gpx.gz"] == "becomes more than 200 times larger when it is unpacked"
    assert errors["m-deep.zip/deeper.zip"] == "is an archive in an archive in an archive"
    assert errors["k-cut.zip"] == "is no whole zip archive"
    assert len(await files(phone)) == 1


def overlapping() -> bytes:
    """Two lines of the directory for the bytes of one entry: of such lines there could be any number."""
    data = archive({"a.gpx": ride(1), "b.gpx": ride(2)}, zipfile.ZIP_STORED)
    return patched(data, "b.gpx", OFFSET, b"\0\0\0\0")


def nested_in_each_other() -> bytes:
    """An entry whose bytes hold the next entries, header and all."""
    data = archive({"a.gpx": ride(1), "b.gpx": ride(2), "c.gpx": ride(3)}, zipfile.ZIP_STORED)
    end = next(places(data, b"PK\x01\x02"))
    return patched(data, "a.gpx", PACKED, struct.pack("<II", end - 60, end - 60))


WHOLE = archive({"a.gpx": ride(1), "b.gpx": ride(2)})


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(1000),
        b"PK\x05\x06",
        WHOLE[:-1],
        WHOLE[:-22],
        WHOLE[: len(WHOLE) // 2],
        overlapping(),
        nested_in_each_other(),
        patched(WHOLE, "a.gpx", OFFSET, b"\xf0\xff\xff\x7f"),
        patched(WHOLE, "a.gpx", PACKED, b"\xf0\xff\xff\x7f"),
        # The directory lies about where and how long it is.
        WHOLE[:-10] + struct.pack("<II", 2**31, 0) + b"\0\0",
        WHOLE[:-10] + struct.pack("<II", 10, 2**31) + b"\0\0",
    ],
)
async def test_what_is_no_sound_archive_is_refused_whole(phone: Phone, data: bytes) -> None:
    answer = await add(phone, data)
    assert (answer.status_code, answer.json()) == (400, {"detail": "file: is no whole zip archive"})
    assert await files(phone) == []


@pytest.mark.parametrize(("size", "status"), [(10, "error"), (2**20, "created"), (2**31, "error"), (0, "error")])
async def test_sizes_that_the_directory_invents_are_not_believed(phone: Phone, size: int, status: str) -> None:
    data = patched(WHOLE, "a.gpx", SIZE, struct.pack("<I", size))
    told = statuses(await add(phone, data))
    assert told == {"a.gpx": status, "b.gpx": "created"}


async def test_a_large_archive_of_the_newer_kind_is_read(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = archive({"a.gpx": ride(1), "b.gpx": ride(2)})
    assert b"PK\x06\x06" in data
    assert statuses(await add(phone, data)) == {"a.gpx": "created", "b.gpx": "created"}


async def test_names_in_an_archive_are_shown_and_lead_nowhere(phone: Phone) -> None:
    names = [
        "../../../../../../tmp/out.gpx",
        "/etc/cron.d/out.gpx",
        "C:\\windows\\out.gpx",
        "a\nb\x1b[2J.gpx",
        ".gpx",
        "x" * 5000 + ".gpx",
        "dir/ü €.gpx",
    ]
    answer = await add(phone, archive([(name, ride(number)) for number, name in enumerate(names)]))
    assert set(statuses(answer).values()) == {"created"}
    assert all(one["filename"].isprintable() and len(one["filename"]) <= 255 for one in answer.json()["results"])
    stored = {one["filename"] for one in await files(phone)}
    assert {"out.gpx", "ü €.gpx"} <= stored
    assert not any("/" in name or "\\" in name for name in stored)
    assert not Path("/tmp/out.gpx").exists()  # where the first name would lead


def limits_file(directory: Path, **archives: float) -> Path:
    content = json.loads(LIMITS.read_text())
    file = directory / "limits.json"
    file.write_text(json.dumps({**content, "archives": {**content["archives"], **archives}}))
    return file


async def test_an_archive_that_is_too_large_or_has_too_many_files_is_refused(
    own_edge: Callable[..., Awaitable[Edge]], tmp_path: Path
) -> None:
    edge = await own_edge(upload_limits=limits_file(tmp_path, size=100_000, entries=20, unpacked=5_000_000))
    phone = await edge.phone()
    large = await add(phone, archive({"a.gpx": ride(1, f"<!--{random.randbytes(120_000).hex()}-->")}))
    assert (large.status_code, set(large.json())) == (413, {"detail"})
    many = await add(phone, archive({f"{n}.gpx": ride(n) for n in range(21)}))
    assert (many.status_code, many.json()) == (413, {"detail": "file: an archive has at most 20 files"})
    assert await files(phone) == []
    inner = archive({f"{n}.gpx": ride(n) for n in range(20)})
    assert statuses(await add(phone, archive({"a.gpx": ride(30), "b.zip": inner}))) == {
        "a.gpx": "created",
        "b.zip": "error",
    }
    # Blanks are packed well, each entry below the ratio, and all together too many bytes.
    padded = {f"{n}.gpx": ride(n) + b" " * 900_000 for n in range(10)}
    told = list(statuses(await add(phone, archive(padded))).values())
    assert told == ["created"] * 5 + ["error"] * 5


async def test_a_long_list_of_contents_is_not_read(phone: Phone) -> None:
    answer = await add(phone, archive({f"{n}-{'x' * 1000}.txt": b"" for n in range(4500)}))
    assert (answer.status_code, answer.json()) == (413, {"detail": "file: an archive's list of contents is too long"})


async def test_what_does_not_fit_into_one_call_comes_with_the_next(
    own_edge: Callable[..., Awaitable[Edge]], tmp_path: Path
) -> None:
    edge = await own_edge(upload_limits=limits_file(tmp_path, seconds=0.15))
    phone = await edge.phone()
    data = archive({f"{n}.gpx": ride(n) for n in range(30)})
    created, calls, answer = 0, 0, await add(phone, data)
    while not answer.json()["complete"]:
        assert answer.json()["results"]
        created, calls = created + answer.json()["created"], calls + 1
        answer = await add(phone, data)
    assert calls > 0
    assert created + answer.json()["created"] == 30
    assert len(await files(phone)) == 30


async def test_what_was_stored_stays_when_the_caller_hangs_up(phone: Phone) -> None:
    data = archive({f"{n}.gpx": ride(n) for n in range(120)})
    call = asyncio.create_task(add(phone, data))

    async def some_are_stored() -> bool:
        return len(await files(phone)) >= 3

    await until(some_are_stored)
    assert not call.done()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    async def taken_again() -> httpx.Response | None:
        answer = await add(phone, data)
        return answer if answer.status_code != 503 else None

    answer = await until(taken_again)
    known = answer.json()["duplicates"]
    assert known >= 2  # the last of them was a file, and perhaps no activity yet
    assert counts(answer) == tally(created=120 - known, duplicates=known)
    assert len(await files(phone)) == 120


class Slow:
    """A form with an archive, whose end is not sent before it is let."""

    def __init__(self, phone: Phone, data: bytes) -> None:
        self._phone = phone
        self._data = data
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def _body(self) -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n' + self._data[:100]
        self.begun.set()
        await self.let.wait()
        yield self._data[100:] + b"\r\n--b--\r\n"

    async def call(self) -> httpx.Response:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        path = f"/activities/{self._phone.user_id}"
        return await self._phone.call("POST", path, content=self._body(), headers=headers, timeout=120)


async def test_a_user_hands_over_one_archive_at_a_time(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    slow = Slow(phone, archive({"a.gpx": ride(1)}))
    call = asyncio.create_task(slow.call())
    await slow.begun.wait()

    async def refused() -> httpx.Response | None:
        answer = await add(phone, archive({"b.gpx": ride(2)}))
        return answer if answer.status_code == 503 else None

    answer = await until(refused)
    assert answer.json() == {"detail": "Another archive of yours is being read."}
    assert int(answer.headers["retry-after"]) > 0
    assert statuses(await add(other, archive({"b.gpx": ride(2)}))) == {"b.gpx": "created"}
    assert (await add(phone, ride(3), "c.gpx")).status_code == 201  # a recording by itself
    slow.let.set()
    assert statuses(await call) == {"a.gpx": "created"}
    assert (await add(phone, archive({"d.gpx": ride(4)}))).status_code == 201


async def test_who_hangs_up_while_an_archive_comes_gives_up_the_place(phone: Phone) -> None:
    slow = Slow(phone, WHOLE)
    call = asyncio.create_task(slow.call())
    await slow.begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    async def taken() -> bool:
        return (await add(phone, WHOLE)).status_code != 503

    await until(taken)
    assert len(await files(phone)) == 2


async def test_a_form_with_half_an_archive_is_refused(phone: Phone) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + WHOLE
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = await phone.call("POST", f"/activities/{phone.user_id}", content=form, headers=headers)
    assert (answer.status_code, answer.json()) == (400, {"detail": "The form is not whole."})


def test_limits_of_archives_have_defaults_and_fit_the_edge(tmp_path: Path) -> None:
    content = json.loads(LIMITS.read_text())
    assert ArchiveLimits(**content.pop("archives")) == ArchiveLimits()
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_limits(tmp_path / "old.json").archives == ArchiveLimits()
    with pytest.raises(ValueError, match=r"archives\.seconds"):
        read_limits(limits_file(tmp_path, seconds=600))


async def test_nobody_adds_an_archive_to_somebody_elses_activities(edge: Edge, phone: Phone) -> None:
    other = await edge.phone()
    files = {"file": ("a.zip", WHOLE, "application/zip")}
    assert (await phone.call("POST", f"/activities/{other.user_id}", files=files)).status_code == 403


async def test_an_archive_is_never_in_memory_and_leaves_nothing_behind(
    own_edge: Callable[..., Awaitable[Edge]], tmp_path: Path
) -> None:
    edge = await own_edge()
    phone = await edge.phone()
    assert (await add(phone, archive({"a.gpx": ride(9999)}))).status_code == 201  # what starts with the first one
    large = tmp_path / "large.zip"
    with zipfile.ZipFile(large, "w", zipfile.ZIP_STORED) as made:
        for n in range(60):
            made.writestr(f"{n}.gpx", ride(n, f"<!--{os.urandom(MIB).hex()}-->"))
        for n in range(60, 80):
            made.writestr(f"{n}.gpx", ride(n))
    process, peak = psutil.Process(), 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            assert not list((edge.mesh.config.home / "spool").iterdir())  # it has no name that could stay
            await asyncio.sleep(0.02)

    before = process.memory_info().rss
    watching = asyncio.create_task(watch())
    with large.open("rb") as file:
        answer = await add(phone, file)
    assert not watching.done()
    watching.cancel()
    assert answer.json()["created"] == 80
    assert large.stat().st_size > 120 * MIB
    assert peak - before < 64 * MIB, f"{(peak - before) / MIB:.0f} MiB"


NAMES = st.one_of(
    st.sampled_from(["a.fit", "b.gpx.gz", "c.TCX", "d.zip", "e.txt", "f/", "._g.fit", "h.gz", "i.fit.gz"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).map(lambda text: f"{text}.gpx"),
)
BYTES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, 50).map(ride),
    st.integers(0, 50).map(lambda n: gzip.compress(ride(n))),
    st.integers(0, 50).map(lambda n: archive({"in.gpx": ride(n), "not.txt": b""})),
)
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])


@given(st.lists(st.tuples(NAMES, BYTES), max_size=6), METHODS)
@settings(max_examples=30)
async def test_archives_of_anything_get_a_receipt_for_each_recording(
    phone: Phone, members: list[tuple[str, bytes]], method: int
) -> None:
    data = archive([(name, b"" if name.endswith("/") else content) for name, content in members], method)
    answer = await add(phone, data)
    assert answer.status_code in (200, 201), answer.text
    body = answer.json()
    assert body["complete"]
    assert len(body["results"]) == sum(body[name] for name in ("created", "duplicates", "failed", "skipped"))
    assert all(one["status"] in ("created", "duplicate", "skipped", "error") for one in body["results"])
    assert all(("activity_id" in one) != ("error" in one) for one in body["results"])
    assert (answer.status_code == 201) == (body["created"] > 0)


SEEDS = [
    archive(STRAVA),
    archive({"a.zip": archive({"b.gpx": ride(1)}), "c.gpx": ride(2)}),
    archive({"a.gpx": ride(1), "b.gpx": ride(2)}, zipfile.ZIP_STORED),
]


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=400)
def test_changed_archives_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, draw: st.DataObject
) -> None:
    changed = bytearray(seed)
    # The directory is what says where everything is: half of the changes are there.
    directory = seed.rfind(b"PK\x01\x02") if draw.draw(st.booleans()) else 0
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(directory, len(changed) - 1))
        changed[at : at + draw.draw(st.integers(0, 4))] = draw.draw(st.binary(max_size=4))
    harmless(bytes(changed), tmp_path_factory.getbasetemp())
    harmless(bytes(changed[: draw.draw(st.integers(0, len(changed)))]), tmp_path_factory.getbasetemp())


def harmless(data: bytes, directory: Path) -> list[Found]:
    limits = ArchiveLimits(unpacked=10 * MIB)
    try:
        found = list(Contents(io.BytesIO(data), limits, Spools(directory / "spool").temporary).found())
    except Failure as failure:
        assert failure.reason in (Reason.FIELD_INVALID, Reason.TOO_LARGE)
        assert [one.field for one in failure.violations] == ["file"]
        return []
    assert sum(len(one.data) for one in found) <= limits.unpacked
    return found


class Busy:
    """Recordings that the server takes when it was asked often enough."""

    def __init__(self, refusals: int, *, pause: float = 5.0) -> None:
        self._refusals = refusals
        self._pause = pause
        self.asked = 0
        self.names: list[str] = []

    async def add(self, _: Principal, recording: Recording) -> Added:
        self.asked += 1
        if self._refusals:
            self._refusals -= 1
            raise Failure(Reason.UNAVAILABLE, retry_after=self._pause)
        self.names.append(recording.filename)
        raise invalid("file", "is enough for this test")


async def imported(tmp_path: Path, busy: Busy) -> tuple[Any, list[float]]:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    limits = ArchiveLimits()
    imports = Imports(busy, Spools(tmp_path), limits, monotonic=lambda: sum(paused), sleep=sleep)  # type: ignore[arg-type]
    caller = Principal(user_id=uuid4(), sign_in_id=uuid4(), tenant_id=1, role="user", tier="free")
    return await imports.add(caller, Spool(io.BytesIO(WHOLE))), paused


async def test_a_server_that_is_busy_is_asked_again_and_no_recording_is_lost(tmp_path: Path) -> None:
    busy = Busy(TRIES - 1)
    outcome, paused = await imported(tmp_path, busy)
    assert (busy.names, len(outcome.receipts), outcome.complete) == (["a.gpx", "b.gpx"], 2, True)
    assert paused == [5] * (TRIES - 1)


async def test_a_server_that_is_busy_for_longer_than_a_call_goes_on_ends_it(tmp_path: Path) -> None:
    busy = Busy(TRIES - 1, pause=100.0)
    with pytest.raises(Failure) as caught:
        await imported(tmp_path, busy)
    assert (caught.value.reason, caught.value.retry_after) == (Reason.UNAVAILABLE, 100.0)
    assert busy.asked == 3, "at 0, 100 and 200 seconds of 240"


async def test_a_server_that_stays_away_ends_the_call(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        await imported(tmp_path, Busy(TRIES))
    assert caught.value.reason is Reason.UNAVAILABLE


def test_there_are_places_for_a_few_users(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    holding = [spools.of(uuid4())() for _ in range(PLACES)]
    for one in holding:
        one.__enter__()
    with pytest.raises(Failure), spools.of(uuid4())():
        pass
    holding.pop().__exit__(None, None, None)
    with spools.of(uuid4())() as spool:
        spool.put(b"x")
    for one in holding:
        one.__exit__(None, None, None)


@pytest.mark.parametrize("buffering", [0, 8192])
def test_a_disk_that_is_full_is_said_to_be(buffering: int) -> None:
    # What is left in the buffer meets the disk again when the file is closed.
    with suppress(OSError), Path("/dev/full").open("wb", buffering=buffering) as full:
        with pytest.raises(Failure) as caught:
            Spool(full).put(b"x")
        assert caught.value.reason is Reason.UNAVAILABLE
