"""Strangers' recordings are read in another process, and whatever happens to that one, the service goes on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import uvloop

from runtime.errors import Failure, Reason
from services.uploads.activity_files import summarize
from services.uploads.activity_parsing import WORKER, ActivityParsing, ParsingLimits, activity_parsing
from services.uploads.activity_worker import LENGTH_BYTES
from tests.uploads.recordings import repeated, sample, tcx

RUN = sample("run.tcx")
# A worker that does what the first word of its recording says, after telling in a file that it has begun.
OBEYING = (
    sys.executable,
    "-c",
    """
import os, signal, sys, time
from pathlib import Path
from services.uploads.activity_files import summarize
from services.uploads.activity_worker import serve

def read(data):
    word, _, rest = data.partition(b" ")
    if word == b"read":
        return summarize(rest)
    Path(os.fsdecode(rest)).touch()
    if word == b"hang":
        signal.pause()
    if word == b"abort":
        os.abort()
    if word == b"exit":
        os._exit(0)
    if word == b"print":
        print("not an answer")
        os.write(1, b"nor this")
        return summarize(Path(sys.argv[3]).read_bytes())
    if word == b"tell":
        Path(os.fsdecode(rest)).write_text(repr(dict(os.environ)))
        os._exit(0)
    if word == b"eat":
        bytearray(1 << 40)
    if word == b"raise":
        raise RuntimeError("a mistake of ours")

serve(read, int(sys.argv[1]), float(sys.argv[2]))
""",
)


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        try:
            if "activity_worker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


async def refused(parsing: ActivityParsing, data: bytes) -> Failure:
    with pytest.raises(Failure) as caught:
        await parsing.summarize(data)
    return caught.value


def blamed(failure: Failure) -> str:
    """What is said of the file that was refused."""
    assert failure.reason is Reason.FIELD_INVALID
    assert [one.field for one in failure.violations] == ["file"]
    return failure.message


async def works(parsing: ActivityParsing) -> None:
    """Somebody else's recording is read."""
    assert await parsing.summarize(b"read " + RUN) == summarize(RUN)


async def test_recordings_are_read_by_one_process_that_starts_with_the_first() -> None:
    async with activity_parsing() as parsing:
        assert workers() == []
        for name in ("run.tcx", "garmin-fenix-5-run.fit", "cerknicko-jezero.gpx"):
            assert await parsing.summarize(sample(name)) == summarize(sample(name))
        [worker] = workers()
        failure = await refused(parsing, sample("broken-crc.fit"))
        assert blamed(failure) == "file: is damaged: its checksum does not match"
        assert workers() == [worker]
    assert workers() == []


async def test_an_idle_worker_ends_and_the_next_recording_starts_another() -> None:
    async with activity_parsing(ParsingLimits(idle_seconds=0.05)) as parsing:
        await parsing.summarize(RUN)
        await until(lambda: not workers())
        await parsing.summarize(RUN)


async def test_a_recording_that_takes_too_long_is_refused_and_the_next_is_read() -> None:
    async with activity_parsing(ParsingLimits(seconds=1)) as parsing:
        await parsing.summarize(RUN)
        [first] = workers()
        before = time.monotonic()
        failure = await refused(parsing, repeated("indoor-trainer.fit", 4_000_000) + RUN)
        assert blamed(failure) == "file: takes too long to read"
        assert time.monotonic() - before < 10
        await until(lambda: first not in workers())
        await parsing.summarize(RUN)


async def test_a_recording_that_is_too_large_is_refused_without_a_worker() -> None:
    async with activity_parsing(ParsingLimits(bytes=len(RUN) - 1)) as parsing:
        assert "larger than" in blamed(await refused(parsing, RUN))
        assert workers() == []


async def test_a_recording_that_takes_too_much_memory_is_refused_and_the_next_is_read() -> None:
    laps = tcx('<Activity Sport="Running">' + "<Lap><Calories>1</Calories></Lap>" * 400_000 + "</Activity>")
    async with activity_parsing(ParsingLimits(seconds=120, memory=120 * 1024 * 1024)) as parsing:
        assert blamed(await refused(parsing, laps)) == "file: takes too much memory to read"
        await parsing.summarize(RUN)


async def test_the_largest_recordings_fit_into_the_memory_of_a_worker() -> None:
    limits = ParsingLimits(seconds=200)
    # Characters outside the basic plane, which Python keeps in four bytes each.
    filler = "<!--" + "🚴" * 1000 + "-->"
    data = RUN.replace(b"<Activities>", b"<Activities>" + filler.encode() * ((limits.bytes - len(RUN)) // 4007), 1)
    assert limits.bytes - 10_000 < len(data) <= limits.bytes
    async with activity_parsing(limits) as parsing:
        assert await parsing.summarize(data) == summarize(RUN)


async def test_a_worker_that_is_killed_in_the_middle_is_replaced(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with activity_parsing(worker=OBEYING) as parsing:
        waiting = asyncio.create_task(refused(parsing, b"hang " + bytes(begun)))
        await until(begun.exists)
        [worker] = workers()
        worker.send_signal(signal.SIGKILL)
        assert (await waiting).reason is Reason.UNAVAILABLE
        await works(parsing)


async def test_a_worker_that_is_killed_while_it_rests_is_replaced() -> None:
    async with activity_parsing(worker=OBEYING) as parsing:
        await works(parsing)
        [worker] = workers()
        worker.send_signal(signal.SIGKILL)
        try:
            await works(parsing)
        except Failure as failure:  # it was asked in the moment before the service heard of its end
            assert failure.reason is Reason.UNAVAILABLE
        await works(parsing)


@pytest.mark.parametrize("word", [b"abort", b"exit", b"raise"])
async def test_a_recording_that_breaks_its_worker_is_refused_for_good(word: bytes, tmp_path: Path) -> None:
    async with activity_parsing(worker=OBEYING) as parsing:
        failure = await refused(parsing, word + b" " + bytes(tmp_path / "begun"))
        assert blamed(failure) == "file: cannot be read"
        await works(parsing)


async def test_a_worker_knows_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATCHEL_DATABASE_URL", "postgresql://satchel:hunter2@db/satchel")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    async with activity_parsing(worker=OBEYING) as parsing:
        await refused(parsing, b"tell " + bytes(tmp_path / "told"))
    told = (tmp_path / "told").read_text()
    assert "PATH" in told
    assert "hunter2" not in told


async def test_an_allocation_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async with activity_parsing(worker=OBEYING) as parsing:
        failure = await refused(parsing, b"eat " + bytes(tmp_path / "begun"))
        assert blamed(failure) == "file: takes too much memory to read"
        await works(parsing)


async def test_a_caller_who_goes_away_leaves_nothing_running(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with activity_parsing(worker=OBEYING) as parsing:
        waiting = asyncio.create_task(parsing.summarize(b"hang " + bytes(begun)))
        behind = asyncio.create_task(works(parsing))
        await until(begun.exists)
        [worker] = workers()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await behind
        assert worker not in workers()


async def test_many_at_once_share_the_workers() -> None:
    most = 0
    async with activity_parsing(ParsingLimits(workers=2, waiting=40)) as parsing:
        names = ["run.tcx", "garmin-fenix-5-run.fit", "cerknicko-jezero.gpx", "indoor-trainer.fit"] * 5
        reading = [asyncio.create_task(parsing.summarize(sample(name))) for name in names]
        while not all(one.done() for one in reading):
            most = max(most, len(workers()))
            await asyncio.wait(reading, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result() for one in reading] == [summarize(sample(name)) for name in names]
    assert most == 2


async def test_more_than_may_wait_are_told_to_come_again(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with activity_parsing(ParsingLimits(waiting=1), worker=OBEYING) as parsing:
        first = asyncio.create_task(parsing.summarize(b"hang " + bytes(begun)))
        await until(begun.exists)
        second = asyncio.create_task(works(parsing))
        await asyncio.sleep(0)
        failure = await refused(parsing, RUN)
        assert failure.reason is Reason.UNAVAILABLE
        assert failure.retry_after
        first.cancel()
        await second


def test_what_a_library_prints_is_no_answer(tmp_path: Path) -> None:
    command = (*OBEYING, "400000000", "60", str(tmp_path / "run.tcx"))
    (tmp_path / "run.tcx").write_bytes(RUN)
    request = b"print " + bytes(tmp_path / "begun")
    done = subprocess.run(command, input=len(request).to_bytes(LENGTH_BYTES) + request, capture_output=True, check=True)
    assert b'"summary"' in done.stdout
    assert b"answer" not in done.stdout
    assert b"nor this" in done.stderr


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 100,
        bytes(7) + b"\2{}",
        bytes(7) + b"\2{{",
        bytes(7) + b"\4null",
        bytes(7) + b"\x0d" + b'{"last":false}',
    ],
)
async def test_nonsense_from_a_worker_is_no_summary(said: bytes) -> None:
    code = f"import sys; sys.stdout.buffer.write(b'ready\\n' + {said!r}); sys.stdout.flush(); sys.stdin.read()"
    async with activity_parsing(worker=(sys.executable, "-c", code)) as parsing:
        assert blamed(await refused(parsing, RUN)) == "file: cannot be read"


@pytest.mark.parametrize("code", ["", "import time; time.sleep(1000)"])
async def test_a_worker_that_does_not_start_is_our_fault(code: str) -> None:
    async with activity_parsing(ParsingLimits(start_seconds=0.5), worker=(sys.executable, "-c", code)) as parsing:
        assert (await refused(parsing, RUN)).reason is Reason.UNAVAILABLE


async def test_workers_end_with_their_service(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with activity_parsing(worker=OBEYING) as parsing:
        waiting = asyncio.create_task(parsing.summarize(b"hang " + bytes(begun)))
        await until(begun.exists)
    assert workers() == []
    with pytest.raises(Failure):
        await waiting


def test_it_is_the_same_on_the_loop_of_the_services(tmp_path: Path) -> None:
    async def scenario() -> None:
        await test_a_worker_that_is_killed_in_the_middle_is_replaced(tmp_path / "killed")
        await test_a_caller_who_goes_away_leaves_nothing_running(tmp_path / "cancelled")
        await test_a_worker_that_is_killed_while_it_rests_is_replaced()
        await test_an_idle_worker_ends_and_the_next_recording_starts_another()
        await test_a_recording_that_takes_too_long_is_refused_and_the_next_is_read()
        await test_workers_end_with_their_service(tmp_path / "ended")

    for name in ("killed", "cancelled", "ended"):
        (tmp_path / name).mkdir()
    uvloop.run(scenario())


def test_a_worker_whose_service_died_ends_by_itself(tmp_path: Path) -> None:
    request = b"hang " + bytes(tmp_path / "begun")
    with subprocess.Popen([*OBEYING, "400000000", "0.5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(len(request).to_bytes(LENGTH_BYTES) + request)
        process.stdin.close()
        assert process.wait(60) == -signal.SIGALRM
    with subprocess.Popen([*WORKER, "400000000", "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
