"""Owns parsing off the loop: strangers' recordings are read in processes of their own, within limits."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import orjson

from runtime.errors import Failure, Reason, invalid, recalled
from services.uploads.activity_summary import Summary, summary_of
from services.uploads.activity_worker import LENGTH_BYTES, READY

WORKER: Final = (sys.executable, "-m", "services.uploads.activity_worker")
# What a worker answers is a few hundred bytes; more is not ours.
_MAX_ANSWER_BYTES: Final = 64 * 1024
_BYTES_AT_ONCE: Final = 256 * 1024
_END_SECONDS: Final = 5.0
# The worker's own alarm is for the case that this process dies; otherwise the clock here ends it first.
_ALARM_AFTER: Final = 5.0
# What an interpreter needs; passwords and keys of the service are not for whoever tricks a decoder.
_ENVIRONMENT: Final = ("PATH", "PYTHON", "LD_LIBRARY_PATH", "LANG", "LC_", "TMPDIR", "HOME")
# Ends that come from outside: an operator's, the kernel's when memory is short. Others are the recording's doing.
_OUTSIDE: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGQUIT}


@dataclass(frozen=True, kw_only=True)
class ParsingLimits:
    """What the reading of recordings may take."""

    bytes: int = 50 * 1024 * 1024
    """The largest recording."""
    seconds: float = 20.0
    """For one recording, once a worker has it."""
    memory: int = 512 * 1024 * 1024
    """Address space of a worker, in bytes."""
    workers: int = 1
    """At the same time."""
    waiting: int = 8
    """Recordings in memory until a worker is free; more are refused."""
    idle_seconds: float = 60.0
    """After which an idle worker ends."""
    start_seconds: float = 30.0
    """Until a new worker says that it is ready."""


@asynccontextmanager
async def activity_parsing(
    limits: ParsingLimits | None = None, worker: Sequence[str] = WORKER
) -> AsyncIterator[ActivityParsing]:
    """Reads recordings for as long as the block runs. `worker` is the command of the process that does."""
    parsing = ActivityParsing(limits or ParsingLimits(), worker)
    try:
        yield parsing
    finally:
        await parsing.close()


class ActivityParsing:
    """Starts a worker when the first recording comes, keeps it while more come, and ends it when none did for a while.

    An idle service has no worker.
    """

    def __init__(self, limits: ParsingLimits, worker: Sequence[str] = WORKER) -> None:
        self._limits = limits
        self._command = worker
        self._free = asyncio.Semaphore(limits.workers)
        self._asked = 0
        self._workers: set[_Worker] = set()
        self._idle: dict[_Worker, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def summarize(self, data: bytes) -> Summary:
        """What services.uploads.activity_files.summarize says of `data`.

        Raises Failure: what that raises; FIELD_INVALID naming `file` for a recording that is too large, takes too long
        or too much memory, or breaks the worker; UNAVAILABLE when too many wait, or the worker was ended from outside.
        """
        if len(data) > self._limits.bytes:
            raise invalid("file", f"is larger than {self._limits.bytes / 2**20:g} MiB", "TOO_LARGE")
        if self._asked >= self._limits.workers + self._limits.waiting:
            raise Failure(Reason.UNAVAILABLE, "Too many recordings are waiting to be read.", retry_after=5)
        self._asked += 1
        try:
            async with self._free:
                return await self._read(data)
        finally:
            self._asked -= 1

    async def close(self) -> None:
        """Ends all workers."""
        for worker in list(self._workers):
            self._end(worker)
        while self._ending:
            await asyncio.wait(self._ending)

    async def _read(self, data: bytes) -> Summary:
        worker = self._rested() or await self._started()
        try:
            answer = await worker.ask(data, self._limits.seconds)
        except BaseException:  # cancelled, too: it would go on with what nobody waits for
            self._end(worker)
            raise
        if worker.usable:
            loop = asyncio.get_running_loop()
            self._idle[worker] = loop.call_later(self._limits.idle_seconds, self._end, worker)
        else:
            self._end(worker)
        if isinstance(answer, Failure):
            raise answer
        return answer

    def _rested(self) -> _Worker | None:
        while self._idle:
            worker, timer = self._idle.popitem()
            timer.cancel()
            if worker.usable:
                return worker
            self._end(worker)
        return None

    async def _started(self) -> _Worker:
        limits = self._limits
        arguments = str(limits.memory), str(limits.seconds + _ALARM_AFTER)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        process = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdin=PIPE, stdout=PIPE, env=environment
        )
        worker = _Worker(process)
        self._workers.add(worker)
        try:
            await worker.ready(limits.start_seconds)
        except BaseException:
            self._end(worker)
            raise
        return worker

    def _end(self, worker: _Worker) -> None:
        timer = self._idle.pop(worker, None)
        if timer is not None:
            timer.cancel()
        self._workers.discard(worker)
        task = asyncio.create_task(worker.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Worker:
    """One process, and the conversation with it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._said_last = False

    @property
    def usable(self) -> bool:
        """Whether it takes another recording, for all we know."""
        return self._process.returncode is None and not self._said_last and not self._stdout.at_eof()

    async def ready(self, seconds: float) -> None:
        """Waits until it takes recordings. Raises Failure(UNAVAILABLE) when it does not."""
        try:
            async with asyncio.timeout(seconds):
                if await self._stdout.readexactly(len(READY)) == READY:
                    return
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            pass
        raise _unavailable()

    async def ask(self, data: bytes, seconds: float) -> Summary | Failure:
        """What it says of the recording. Raises Failure when it says nothing, or not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                answer = orjson.loads(await self._exchange(data))
            self._said_last = answer["last"]
            return summary_of(answer["summary"]) if "summary" in answer else recalled(answer["failure"])
        except TimeoutError:
            raise invalid("file", "takes too long to read", "TOO_LARGE") from None
        except (OSError, EOFError):
            raise await self._fate() from None
        except (ValueError, LookupError, TypeError):  # it talks nonsense, so it has been tricked
            raise _unreadable() from None

    async def _exchange(self, data: bytes) -> bytes:
        self._stdin.write(len(data).to_bytes(LENGTH_BYTES))
        for start in range(0, len(data), _BYTES_AT_ONCE):
            self._stdin.write(data[start : start + _BYTES_AT_ONCE])
            await self._stdin.drain()
        length = int.from_bytes(await self._stdout.readexactly(LENGTH_BYTES))
        if length > _MAX_ANSWER_BYTES:
            raise ValueError(length)
        return await self._stdout.readexactly(length)

    async def _fate(self) -> Failure:
        """Why it fell silent: its end comes a moment after that of its pipes."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                status = await self._process.wait()
        except TimeoutError:
            status = None
        return _unavailable() if status in _OUTSIDE else _unreadable()

    async def end(self) -> None:
        """Ends the process and waits until it has."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._stdin.close()
        await self._process.wait()


def _unavailable() -> Failure:
    return Failure(Reason.UNAVAILABLE, "Recordings cannot be read at the moment; try again.", retry_after=1)


def _unreadable() -> Failure:
    return invalid("file", "cannot be read", "INVALID_FORMAT")
