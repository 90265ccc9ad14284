"""Measures Satchel on a fresh home and prints one table: `python -m bench`, or `make bench`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from bench import (
    batched,
    calls,
    files,
    garmin,
    growth,
    health,
    identity,
    latency,
    page,
    report,
    reporting,
    streams,
    sync,
)
from bench.machine import allow_files, machine
from bench.memory import Usage, usage
from bench.rounds import Pair, compare
from bench.stack import stack

GROUPS = (
    *("calls", "identity", "batches", "sync", "files", "latency", "streams", "growth", "health", "reporting"),
    *("page", "garmin", "memory", "start"),
)
STARTS = 3
WANTED_FILES = 20_000
SETTLED = 2.0  # seconds after the start, or the load, until memory is looked at

NOTES = f"""\
Each figure is measured right beside its floor, round after round, in alternating order. Figures are medians; a ratio
is the median of the rounds' ratios, and "rounds" shows the lowest and the highest of them. The clients share the
machine's cores with everything they measure.

- {calls.FLOOR}: the generated servicer of the same rpc, answering a constant of the same size; one process,
  grpc.aio on uvloop, no interceptors. Client, token and messages are the same: {calls.IN_FLIGHT} users with a call in
  flight each, on {calls.CHANNELS} channels; as JSON on {calls.IN_FLIGHT} keep-alive connections of a client of a few
  lines.
- {batched.FLOOR}: the statement with which the service stores a batch, prepared and in binary, on one autocommitting
  psycopg connection, into a table like the service's in the same PostgreSQL, with fsync on. The rows are the same;
  there is no network, identity, validation or feed. Batches are encoded before time is taken, their ids are new each
  time, and each client is a user with a connection of its own.
- {batched.EACH}: the same batch into bench/reference_app.py, FastAPI on uvicorn with as many processes as a
  service has, pydantic, and SQLAlchemy's async ORM on asyncpg into the same PostgreSQL. It makes the same promise, a
  receipt for each item and no bad one that sinks the rest, in the ORM's way: a savepoint for each.
- {batched.BULK}: the same app without that promise: one SELECT, one add_all, and one bad item sinks its batch.
- Identity: a refresh rotates the token of one of {identity.REFRESHING} sign-ins; the floor is an UPDATE of a row like
  theirs, committed, on as many connections as the service has. Sign-ins hash with argon2id (64 MiB, three passes, four
  lanes), as the floor does; while they run, one more user asks GetMe every 50 ms.
- Files: {files.CHUNKS} MiB in chunks and {files.STREAMED:,} MiB in one go, random bytes that are new each time. The
  floor of sending is one thread that hashes each MiB with sha256 and writes it in its place, without fsync; the
  service hashes every byte twice when it comes in chunks (the chunk, the whole file) and makes it durable before it
  answers. What is left when threads on every core do nothing but that, without fsync, is a row of its own: on a machine
  without SHA instructions, or whose cores are two threads of one, it is what bounds the rows above it. The floor of
  reading is sendfile to a socket of this machine, read there in pieces of 1 MiB.
- Latency: {latency.USERS} users with two devices each, all connected through the edge. {latency.PUSHES} times, one
  after the other, a device pushes one change; time runs from there until the user's other device has it, so it is more
  than what lies between the commit and the other device.
- Streams: what the process's RSS grows by when {streams.COUNT:,} idle streams are opened, {streams.USERS} users with
  {streams.EACH} each, per stream; 1 KiB is 1,024 bytes. The gRPC streams of a user share a connection, as the edge has
  the streams of many phones on one; WebSockets have a connection each.
- Growth: the same calls, one after the other, on the same stack before and after other users' records were added, each
  time by a new user with {growth.HISTORY:,} records, after VACUUM, ANALYZE and CHECKPOINT. Medians of {growth.PUSHES}
  pushes and {growth.PULLS} pulls.
- Health: the figures are those of {health.DEVICES:,} devices that synced within {health.HOURS} hours, in
  {len(health.DOMAINS)} domains each minute; the floor adds up the same rows on one psycopg connection. One caller asks,
  one call after the other.
- Reporting: CPU time, which a busy machine hardly changes. The floor is what a push takes in a sessions process of its
  own that reports nothing, PostgreSQL left out. The figure is what it takes to note as many pushes, as fast, in another
  process, to report them, to count them in the health service, and to write that in PostgreSQL; what the same takes
  when nothing is noted is taken off.
- The page: {page.LOADS} visits in headless Chromium to the page that asks for a password, each with an empty cache,
  from the beginning of the navigation to the first contentful paint; the floor is a page of one word from Python's
  http.server. Left out where there is no chromium on PATH.
- Garmin: {garmin.COUNT:,} FIT recordings of about {garmin.BYTES // 1000} KB, each of its own hour, one record a
  second, from a stand-in on this machine by way of the real library, through uploads (parsed, stored, hashed) until the
  last one is in the user's feed. Meanwhile the user asks for the status, one call after the other, 50 ms apart.
- Memory is the sum over every process of the stack as PSS, where a page that n processes share counts 1/n in each: so
  PostgreSQL's shared buffers and the libraries count once. RSS counts them in every process."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per figure (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.25, help="per measurement (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes per service (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure this group; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round to FILE")
    options = parser.parse_args()
    allow_files(WANTED_FILES)
    uvloop.run(measure(options, set(options.only or GROUPS)))


async def measure(options: argparse.Namespace, groups: set[str]) -> None:
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="satchel-bench-") as name:
        directory, workers = Path(name), options.workers
        home = directory / "home"
        starts = await _starts(home, workers) if "start" in groups else []
        pairs: list[Pair] = []
        lines: list[report.Line] = []
        finalized: list[float] = []
        beside: list[float] = []
        asked: list[float] = []
        memory: dict[str, list[Usage]] = {}
        async with stack(home, workers=workers) as running:
            about = machine(running.database_url)
            if "memory" in groups:
                await asyncio.sleep(SETTLED)
                memory["idle"] = usage(running)
            makers: dict[str, Callable[[AsyncExitStack], Awaitable[list[Pair]]]] = {
                "calls": lambda exit: calls.pairs(running, directory, exit),
                "identity": lambda exit: identity.pairs(running, exit, beside),
                "batches": lambda exit: batched.pairs(running, directory, exit, workers=workers),
                "sync": lambda exit: sync.pairs(running, exit),
                "files": lambda exit: files.pairs(running, home, exit, finalized),
                "health": lambda exit: health.pairs(running, exit, asked),
            }
            for group, make in makers.items():
                if group in groups:
                    _say(f"Measuring {group}: {options.rounds} rounds")
                    async with AsyncExitStack() as exit:
                        made = await make(exit)
                        await compare(made, rounds=options.rounds, seconds=options.seconds)
                    pairs += made
            if "identity" in groups:
                lines += [identity.beside_sign_ins(beside), await identity.verification()]
            if "health" in groups:
                lines.append(health.figures(asked))
            if "files" in groups:
                lines += [files.finalizing(finalized), await files.memory(running)]
            if "reporting" in groups:
                _say("Measuring reporting")
                lines += await reporting.lines(running, home)
            if "page" in groups:
                _say("Measuring page")
                lines += await page.lines(running, directory)
            if "latency" in groups:
                _say("Measuring latency")
                lines += await latency.lines(running)
            if memory and (pairs or lines):
                await asyncio.sleep(SETTLED)
                memory["after the load"] = usage(running)
        if "streams" in groups:
            _say("Measuring streams")
            lines += await streams.lines(home, workers=workers)
        if "growth" in groups:
            _say("Measuring growth")
            lines += await growth.lines(directory / "growth", workers=workers, say=_say)
        if "garmin" in groups:
            _say("Measuring garmin")
            lines += await garmin.lines(directory / "garmin" / "home", workers=workers)
    about["Load average before"] = f"{busy:.2f}"
    about["Run"] = f"{options.rounds} rounds of {options.seconds:g} s, processes per service: {workers} (make run: 1)"
    _print(about, pairs, lines, memory, starts)
    if options.json:
        written = report.as_json(about=about, pairs=pairs, lines=lines, memory=memory, starts=starts)
        options.json.write_text(json.dumps(written, indent=2) + "\n")


async def _starts(home: Path, workers: int) -> list[float]:
    """Seconds of a few starts on a home that an earlier start has made."""
    seconds = []
    for number in range(STARTS + 1):
        _say(f"Starting the stack ({number} of {STARTS})" if number else "Making the data directory")
        async with stack(home, workers=workers) as running:
            seconds.append(running.seconds_to_start)
    return seconds[1:]


def _print(
    about: dict[str, str],
    pairs: list[Pair],
    more: list[report.Line],
    memory: dict[str, list[Usage]],
    starts: list[float],
) -> None:
    lines = [*map(report.compared, pairs), *more]
    for when, parts in memory.items():
        target = report.IDLE_TARGET if when == "idle" else None
        lines.append(report.held(f"Memory of the stack, {when}", parts, target=target))
    if starts:
        lines.append(report.started(starts))
    facts = "\n".join(f"- {name}: {fact}" for name, fact in about.items())
    details = "\n".join(f"- {report.breakdown(f'Memory {when}', parts)}" for when, parts in memory.items())
    print("\n\n".join([facts, report.table(lines), "\n".join(filter(None, [NOTES, details]))]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
