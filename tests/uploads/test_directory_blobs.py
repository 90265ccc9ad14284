"""What uploads and files in a directory promise beyond what every store does."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import ConfigError
from services.uploads.blobs import BlobError, BlobMissing, open_blobs
from services.uploads.directory_blobs import DirectoryBlobs
from tests.blobs import CHUNK, content, ids, some_bytes, store, upload


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[DirectoryBlobs]:
    async with open_blobs(str(tmp_path / "blobs"), tmp_path) as opened:
        assert isinstance(opened, DirectoryBlobs)
        yield opened


def in_a_child(script: str, *args: object, command: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs an asyncio `main(root, *args)` in a process of its own."""
    program = f"""
import asyncio, os, resource, signal, sys
from pathlib import Path
from uuid import UUID
from services.uploads.blobs import BlobError, BlobsFull
from services.uploads.directory_blobs import DirectoryBlobs
{script}
asyncio.run(main(*sys.argv[1:]))
"""
    words = [*command, sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@given(data=st.data())
async def test_chunks_at_once_in_any_order_make_the_file(blobs: DirectoryBlobs, data: st.DataObject) -> None:
    whole = data.draw(st.binary(min_size=1, max_size=400), "bytes")
    size = data.draw(st.integers(1, len(whole)), "chunk size")
    starts = list(range(0, len(whole), size))
    order = data.draw(st.permutations(starts), "order")
    again = data.draw(st.lists(st.sampled_from(starts), max_size=4), "sent again")
    upload_id, file_id = uuid4(), uuid4()
    await asyncio.gather(
        *(blobs.write_chunk(upload_id, at // size, at, memoryview(whole)[at : at + size]) for at in [*order, *again])
    )
    await blobs.assemble(upload_id, file_id, len(starts), len(whole))
    assert await content(blobs, file_id, 0, len(whole)) == whole
    await blobs.remove(file_id)


class Disk:
    """Passes on what is asked of the disk, notes it in order, can hold the first fdatasync and fail the next ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        self.held, self.failing = threading.Event(), 0
        self.held.set()
        self._changed = threading.Condition()
        self._pwrite, self._fdatasync, self._fsync = os.pwrite, os.fdatasync, os.fsync
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        written = self._pwrite(descriptor, data, offset)
        self._note("written", offset)
        return written

    def fdatasync(self, descriptor: int) -> None:
        self._note("sync begins", descriptor)
        assert self.held.wait(30)
        if self.failing:
            self.failing -= 1
            raise OSError(5, "Input/output error")
        self._fdatasync(descriptor)
        self._note("sync ends", 0)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self._note("fsync of " + os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2], 0)

    def _note(self, what: str, offset: int) -> None:
        with self._changed:
            self.events.append((what, offset))
            self._changed.notify_all()

    def wait_for(self, what: str, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: sum(event == what for event, _ in self.events) >= count, 30)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")


@linux_only
async def test_a_chunk_is_on_the_disk_when_its_write_returns(
    blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, upload_id = Disk(monkeypatch), uuid4()

    async def write(index: int) -> None:
        await blobs.write_chunk(upload_id, index, index * 10, b"0123456789")
        events = list(disk.events)
        after = [event for event, _ in events[events.index(("written", index * 10)) + 1 :]]
        # One that began when the bytes were there, and ended.
        assert "sync ends" in after[after.index("sync begins") :]
        assert ("fsync of uploads", 0) in events

    for _ in range(20):
        await asyncio.gather(*(write(index) for index in range(6)))
        disk.events.clear()
        disk.events.append(("fsync of uploads", 0))


@linux_only
async def test_a_sync_that_fails_is_told(blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, upload_id = Disk(monkeypatch), uuid4()
    disk.failing = 100
    writes = [blobs.write_chunk(upload_id, index, index, b"1") for index in range(4)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BlobError] * 4
    disk.failing = 0
    await blobs.write_chunk(upload_id, 0, 0, b"1")


@linux_only
async def test_writes_at_the_same_time_do_not_share_an_opening(
    blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failure once for each opening: who shared one might not hear of it."""
    disk, upload_id = Disk(monkeypatch), uuid4()
    disk.held.clear()
    writes = [asyncio.create_task(blobs.write_chunk(upload_id, index, index, b"1")) for index in range(4)]
    await asyncio.to_thread(disk.wait_for, "sync begins", 4)
    disk.held.set()
    await asyncio.gather(*writes)
    assert len({descriptor for event, descriptor in disk.events if event == "sync begins"}) == 4


@linux_only
async def test_the_name_of_a_file_is_on_the_disk_when_it_is_assembled(
    blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, file_id = await upload(blobs, b"123"), uuid4()
    disk = Disk(monkeypatch)
    await blobs.assemble(upload_id, file_id, 1, 3)
    assert [event for event, _ in disk.events] == ["fsync of files", f"fsync of {file_id.hex[:2]}", "fsync of uploads"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["mkdir", "rename", "fsync"])
async def test_assembling_goes_on_after_a_kill(tmp_path: Path, step: str, moment: str) -> None:
    upload_id, file_id, data = uuid4(), uuid4(), some_bytes(CHUNK + 5)
    script = f"""
def deadly(real):
    def step(*args, **kwargs):
        if {moment == "before"}:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return step

async def main(root, upload_id, file_id):
    blobs = DirectoryBlobs(Path(root))
    data = Path(root, "source").read_bytes()
    await asyncio.gather(blobs.write_chunk(UUID(upload_id), 0, 0, data[:{CHUNK}]),
                         blobs.write_chunk(UUID(upload_id), 1, {CHUNK}, data[{CHUNK}:]))
    os.{step} = deadly(os.{step})
    await blobs.assemble(UUID(upload_id), UUID(file_id), 2, len(data))
"""
    root = tmp_path / "blobs"
    root.mkdir()
    (root / "source").write_bytes(data)
    died = in_a_child(script, root, upload_id, file_id)
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with open_blobs(str(root), tmp_path) as blobs:
        await blobs.assemble(upload_id, file_id, 2, len(data))
        assert await content(blobs, file_id, 0, len(data)) == data
        assert (await ids(blobs.uploads), await ids(blobs.files)) == ([], [file_id])


FILLING = """
async def main(root, limit):
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    blobs, chunk, upload_id = DirectoryBlobs(Path(root)), bytes(1 << 20), UUID(int=7)
    for index in range(100):
        try:
            await blobs.write_chunk(upload_id, index, index << 20, chunk)
        except BlobsFull as error:
            print(index, str(error), error.__cause__.errno)
            break
    # What was there stays readable, and making room helps.
    assert await blobs.read_chunk(upload_id, 0, 0, 1 << 20) == chunk
    await blobs.discard(upload_id)
    await blobs.write_chunk(UUID(int=8), 0, 0, chunk)
    blobs.close()
"""


def test_no_room_is_told_as_no_room(tmp_path: Path) -> None:
    # A limit on the size of files stands for the disk: it cuts a write short in the same way.
    child = in_a_child(FILLING, tmp_path / "blobs", 3_500_000)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == f"3 there is no space for files {errno.EFBIG}"


def test_a_full_disk_is_told_as_no_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=5m satchel "$0" || exit 77; exec "$@"'
    command = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(disk))
    try:
        child = in_a_child(FILLING, disk / "blobs", 0, command=command)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if child.returncode == 77 or "unshare" in child.stderr:
        pytest.skip("no file system may be mounted here")
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1].endswith(f"there is no space for files {errno.ENOSPC}")


async def test_a_directory_that_went_away_is_no_missing_file(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    upload_id, file_id = await upload(blobs, b"123"), await store(blobs, b"1234")
    (tmp_path / "blobs").rename(tmp_path / "elsewhere")
    attempts = [
        lambda: blobs.write_chunk(uuid4(), 0, 0, b"1"),
        lambda: blobs.read_chunk(upload_id, 0, 0, 3),
        lambda: blobs.assemble(upload_id, uuid4(), 1, 3),
        lambda: blobs.discard(upload_id),
        lambda: content(blobs, file_id, 0, 4),
        lambda: blobs.size(file_id),
        lambda: blobs.remove(file_id),
        lambda: ids(blobs.uploads),
        lambda: ids(blobs.files),
    ]
    for attempt in attempts:
        with pytest.raises(BlobError) as raised:
            await attempt()
        assert not isinstance(raised.value, BlobMissing)
        assert str(tmp_path) not in str(raised.value)
    (tmp_path / "elsewhere").rename(tmp_path / "blobs")
    assert await content(blobs, file_id, 0, 4) == b"1234"
    assert await ids(blobs.uploads) == [upload_id]


async def test_nothing_is_written_through_a_link(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    outside, upload_id = tmp_path / "outside", uuid4()
    outside.write_bytes(b"mine")
    (tmp_path / "blobs" / "uploads" / f"{upload_id}.part").symlink_to(outside)
    with pytest.raises(BlobError):
        await blobs.write_chunk(upload_id, 0, 0, b"theirs")
    with pytest.raises(BlobError):
        await blobs.read_chunk(upload_id, 0, 0, 4)
    assert outside.read_bytes() == b"mine"
    assert await ids(blobs.uploads) == []


async def test_names_that_are_not_ours_are_left_alone(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    upload_id, file_id = await upload(blobs, b"123"), await store(blobs, b"1234")
    uploads, shard = tmp_path / "blobs" / "uploads", tmp_path / "blobs" / "files" / file_id.hex[:2]
    elsewhere = UUID(int=file_id.int ^ 1 << 127)
    for path in [
        uploads / "notes.txt",
        uploads / f"{uuid4()}.part.old",
        uploads / f"{uuid4()}",
        uploads / f"{uuid4()}.part".upper(),
        shard / "notes",
        shard / str(elsewhere),
        shard.parent / "notes",
        shard.parent / str(uuid4()),
    ]:
        path.write_bytes(b"")
    (uploads / f"{uuid4()}.part").mkdir()
    assert (await ids(blobs.uploads), await ids(blobs.files)) == ([upload_id], [file_id])


async def test_files_are_for_this_account_only(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    await store(blobs, b"1234")
    await upload(blobs, b"123")
    for path in (tmp_path / "blobs").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


@linux_only
async def test_no_file_stays_open(blobs: DirectoryBlobs, tmp_path: Path) -> None:
    file_id = await store(blobs, some_bytes(3 * CHUNK))
    await upload(blobs, some_bytes(3 * CHUNK))
    await anext(blobs.read(file_id, 0, 3 * CHUNK))
    async with asyncio.timeout(30):
        while any(str(tmp_path / "blobs") in one for one in _open_files()):
            await asyncio.sleep(0.01)


def _open_files() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return found


async def test_a_store_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for where in [str(tmp_path / "file"), str(tmp_path / "file" / "below"), "ftp://host/path", "s3://"]:
        with pytest.raises(ConfigError, match="SATCHEL_BLOBS"):
            async with open_blobs(where, tmp_path):
                pass
