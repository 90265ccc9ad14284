"""Holds many streams open for long while others come and go: `python -m bench.soak`, or `make soak`."""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import grpc
import psutil
import uvloop

from bench import report
from bench.machine import allow_files
from bench.phones import ack_of, push_of
from bench.stack import Stack, stack
from bench.sync import hello, talk
from bench.wire import channels, sign_up
from deploy.sockets import http_get

PER_USER = 20
AT_ONCE = 50  # streams that are opened or closed together
INTERVAL = 10.0  # seconds between samples, or less in a short run
SAMPLES = 15  # at least
ENDED_WITHIN = 10.0  # seconds
GROWTH = 1.10  # the last fifth of the samples against the second one
SPARE_FILES = 16  # the database's and Redis's connections, which come when they are needed
SIGNED_IN_FOR = 600.0  # seconds after which other users come: access tokens expire

WANTED_FILES = 20_000

_MIB = 2**20
_HEAD = ("seconds", "streams", "RSS MiB", "files", "threads", "opened", "cancelled", "half-closed", "pushes", "pages")
_OPEN = re.compile(r"^sync_streams_open (\S+)$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="open at a time (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--churn", type=float, default=3.0, help="percent replaced per second (default: %(default)s)")
    parser.add_argument("--pushes", type=int, default=10, help="per second (default: %(default)s)")
    options = parser.parse_args()
    allow_files(WANTED_FILES)
    return uvloop.run(soak(options))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The sessions process at a moment."""

    streams: int
    """What its gauge shows."""
    rss: int
    files: int
    threads: int


@dataclass(eq=False)
class Phone:
    """A phone with a stream. It reads all the time, and says one thing at a time."""

    user: int
    call: Any
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    reader: asyncio.Task[None] | None = None
    leaving: bool = False

    async def say(self, request: bytes) -> None:
        async with self.turn:
            if not self.leaving:
                await self.call.write(request)


class Crowd:
    """Phones that come, push, read what others push, and go."""

    def __init__(self, opened: Sequence[grpc.aio.Channel]) -> None:
        self._channels = opened
        self._tokens: Sequence[str] = ()
        self.phones: set[Phone] = set()
        self.counts: Counter[str] = Counter()

    def sign_in(self, tokens: Sequence[str]) -> None:
        """These users come from now on, one on each channel."""
        self._tokens = tokens

    async def grow(self, count: int) -> None:
        """Opens streams until there are `count`, as many for each user."""
        users = range(len(self._channels))
        there = Counter(phone.user for phone in self.phones)
        wanted = [user for place in range(-(-count // len(users))) for user in users if there[user] <= place]
        wanted = wanted[: count - len(self.phones)]
        for first in range(0, len(wanted), AT_ONCE):
            await asyncio.gather(*(self._come(user) for user in wanted[first : first + AT_ONCE]))

    async def turn_over(self, count: int) -> None:
        """Closes so many, every other one by cancelling."""
        leaving = random.sample(list(self.phones), min(count, len(self.phones)))
        for first in range(0, len(leaving), AT_ONCE):
            await asyncio.gather(
                *(self._go(phone, number % 2 == 0) for number, phone in enumerate(leaving[first : first + AT_ONCE]))
            )

    async def push(self, count: int) -> None:
        """A new record each from so many of them."""
        for phone in random.sample(list(self.phones), min(count, len(self.phones))):
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await phone.say(push_of(str(uuid4())))
                self.counts["pushes"] += 1

    async def _come(self, user: int) -> None:
        phone = Phone(user, talk(self._channels[user], self._tokens[user]))
        try:
            await hello(phone.call, device_id=uuid4().hex)
        except (grpc.aio.AioRpcError, RuntimeError) as error:
            self._count_trouble(f"not let in: {error.details() if isinstance(error, grpc.RpcError) else error}")
            return
        phone.reader = asyncio.create_task(self._read(phone))
        self.phones.add(phone)
        self.counts["opened"] += 1

    async def _read(self, phone: Phone) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while (answer := await phone.call.read()) is not grpc.aio.EOF:
                kind = answer.WhichOneof("message")
                if kind == "changes":
                    self.counts["pages"] += 1
                    await phone.say(ack_of(answer.changes))
                elif kind == "receipts":
                    self.counts["receipts"] += 1
                elif kind == "refusal":
                    self._count_trouble(f"refused: {answer.refusal.reason} {answer.refusal.message}")
        if not phone.leaving:
            self.phones.discard(phone)
            self._count_trouble(f"sent away: {await phone.call.details() or 'go_away'}")

    async def _go(self, phone: Phone, cancels: bool) -> None:
        self.phones.discard(phone)
        async with phone.turn:
            phone.leaving = True
            if not cancels:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await phone.call.done_writing()
        if not cancels and phone.reader is not None:
            done, _ = await asyncio.wait({phone.reader}, timeout=ENDED_WITHIN)
            if not done:
                self._count_trouble("a half-closed stream was not ended")
        phone.call.cancel()
        if phone.reader is not None:
            await asyncio.wait({phone.reader})
        self.counts["cancelled" if cancels else "half-closed"] += 1

    def _count_trouble(self, what: str) -> None:
        self.counts[f"trouble: {what}"] += 1

    @property
    def troubles(self) -> dict[str, int]:
        """What went otherwise than it should, and how often."""
        return {name.partition(": ")[2]: times for name, times in self.counts.items() if name.startswith("trouble: ")}


async def soak(options: argparse.Namespace) -> int:
    users = -(-options.streams // PER_USER)
    # One that was cancelled may still be there when the next one comes.
    settings = {"SATCHEL_STREAMS_PER_USER": str(2 * PER_USER)}
    with tempfile.TemporaryDirectory(prefix="satchel-soak-") as name:
        async with stack(Path(name) / "home", workers=1, settings=settings) as running:
            tokens = await sign_up(running.addresses["envoy"], users)
            async with channels(running.addresses["sessions"], users) as opened:
                crowd = Crowd(opened)
                crowd.sign_in(tokens)
                await crowd.grow(users)
                await crowd.turn_over(users)
            start = await _until_closed(running)
            async with channels(running.addresses["sessions"], users) as opened:
                _say(f"Opening {options.streams:,} streams")
                crowd = Crowd(opened)
                crowd.sign_in(tokens)
                await crowd.grow(options.streams)
                _say(f"Holding them for {options.minutes:g} minutes")
                samples = await _hold(running, crowd, options)
                await crowd.turn_over(options.streams)
            end = await _until_closed(running)
    return _judge(samples, start, end, crowd)


async def _hold(stack: Stack, crowd: Crowd, options: argparse.Namespace) -> list[Sample]:
    seconds = options.minutes * 60
    interval = min(INTERVAL, seconds / SAMPLES)
    samples: list[Sample] = []
    started = time.monotonic()
    signing_in: asyncio.Task[None] | None = None
    signed_in, sample_at, tick = started, started, started
    _say(report.grid([_HEAD]).splitlines()[0])
    while (now := time.monotonic()) - started < seconds:
        if now - signed_in > SIGNED_IN_FOR:
            signing_in, signed_in = asyncio.create_task(_sign_in_others(stack, crowd, options)), now
        if now >= sample_at:
            samples.append(await _sample(stack))
            _say(_row(now - started, samples[-1], crowd))
            sample_at += interval
        if now >= tick:
            await crowd.turn_over(round(options.streams * options.churn / 100))
            await crowd.grow(options.streams)
            await crowd.push(options.pushes)
            tick = max(tick + 1, time.monotonic())
        await asyncio.sleep(max(0.0, min(tick, sample_at) - time.monotonic()))
    if signing_in is not None:
        await signing_in
    return samples


async def _sign_in_others(stack: Stack, crowd: Crowd, options: argparse.Namespace) -> None:
    crowd.sign_in(await sign_up(stack.addresses["envoy"], -(-options.streams // PER_USER)))


async def _sample(stack: Stack) -> Sample:
    (pid,) = stack.pids("sessions")
    process = psutil.Process(pid)
    host, _, port = process.environ()["SATCHEL_METRICS_ADDRESS"].rpartition(":")
    status, page = await http_get((host, int(port)), "/metrics")
    found = _OPEN.search(page)
    if found is None:
        raise RuntimeError(f"the metrics page answers {status} without the gauge of streams")
    return Sample(
        streams=int(float(found[1])),
        rss=process.memory_info().rss,
        files=process.num_fds(),
        threads=process.num_threads(),
    )


async def _until_closed(stack: Stack) -> Sample:
    """The process once no stream is open and connections are gone, or after ten seconds."""
    deadline = time.monotonic() + ENDED_WITHIN
    await asyncio.sleep(1)
    while (sample := await _sample(stack)).streams and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return sample


def _row(seconds: float, sample: Sample, crowd: Crowd) -> str:
    told = (seconds, sample.streams, sample.rss / _MIB, sample.files, sample.threads)
    counted = [f"{crowd.counts[name]}" for name in _HEAD[len(told) :]]
    cells = [f"{told[0]:.0f}", f"{told[1]}", f"{told[2]:.1f}", f"{told[3]}", f"{told[4]}", *counted]
    return "| " + " | ".join(cell.rjust(len(head)) for cell, head in zip(cells, _HEAD, strict=True)) + " |"


def _judge(samples: Sequence[Sample], start: Sample, end: Sample, crowd: Crowd) -> int:
    fifth = max(1, len(samples) // 5)
    early = median(sample.rss for sample in samples[fifth : 2 * fifth] or samples)
    late = median(sample.rss for sample in samples[-fifth:])
    verdicts = [
        (
            f"memory: {early / _MIB:.1f} MiB in the second fifth, {late / _MIB:.1f} in the last one "
            f"({late / early:.2f}, at most {GROWTH:.2f})",
            late <= early * GROWTH,
        ),
        (f"streams after all were closed: {end.streams}", end.streams == 0),
        (
            f"files: {start.files} before, {end.files} after (at most {SPARE_FILES} more)",
            end.files <= start.files + SPARE_FILES,
        ),
        *((f"{what}: {times} times", False) for what, times in crowd.troubles.items()),
    ]
    for text, good in verdicts:
        _say(f"{'ok    ' if good else 'MISSED'}  {text}")
    return 0 if all(good for _, good in verdicts) else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
