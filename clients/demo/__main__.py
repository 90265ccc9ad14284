"""Runs simulated phones against a Satchel: `python -m clients.demo`, or `make demo`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from getpass import getpass
from random import Random
from typing import Final

import httpx

from clients.calls import Calls, Refused, Unreachable
from clients.demo.apps import APPS, WORK_ORDERS
from clients.demo.phones import KINDS, MODELS, Phone, Tally

OK: Final = 0
REFUSED: Final = 1
UNREACHABLE: Final = 4

MAX_PHONES: Final = 500
# Seconds between two progress lines on a terminal, and elsewhere.
ON_TERMINAL: Final = 1.0
ELSEWHERE: Final = 10.0
# Of accounts that have just signed up.
TENANT: Final = 1
# Phones of one account, which meet in the same pages and orders.
PER_ACCOUNT: Final = 2
PATIENCE: Final = 30.0
# Who has a Satchel to show has just seen it run.
FIRST_PATIENCE: Final = 2.0
# Of accounts that nobody should have anywhere else.
PASSWORD: Final = "simulated phones only"  # noqa: S105  # of nobody

_EPILOG: Final = """\
The phones have accounts of their own, demo-<n>@<domain>, and stop at Ctrl-C. What they did stays. Somebody who signs in
at the server's own address as administrator of tenant 1 sees them; with --admin, conflicts of field work are left to
people meanwhile, so that there are some to resolve.

who --admin is:
  SATCHEL_PASSWORD  the password; without it the demo asks
"""


def main(words: list[str] | None = None) -> int:
    """Runs until Ctrl-C, or for as long as was asked for; returns the exit status."""
    options = _parser().parse_args(words)
    try:
        return asyncio.run(_run(options))
    except Refused as refusal:
        print(f"demo: {refusal.message}", file=sys.stderr)
        return REFUSED
    except Unreachable as away:
        print(f"demo: {away}", file=sys.stderr)
        return UNREACHABLE


async def _run(options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with httpx.AsyncClient(base_url=options.url, timeout=30) as http:
        calls = Calls(
            http,
            token="",
            patience=PATIENCE,
            first_patience=FIRST_PATIENCE,
            say=lambda text: print(text, file=sys.stderr),
        )
        await calls.call("GET", "/healthz", signed=False)
        async with _left_to_people(calls, options.admin):
            await _crowd(options, stop)
    return OK


async def _crowd(options: argparse.Namespace, stop: asyncio.Event) -> None:
    tally, random = Tally(), Random(options.seed)  # noqa: S311  # whims
    lives: list[asyncio.Task[None]] = []
    for number in range(options.phones):
        phone = _phone(number, random=Random(random.random()), tally=tally)  # noqa: S311  # whims
        email = f"demo-{number // PER_ACCOUNT + 1}@{options.domain}"
        lives.append(asyncio.create_task(phone.live(options.url, email, PASSWORD), name=f"phone {number + 1}"))
    ending, started = asyncio.create_task(stop.wait()), time.monotonic()
    try:
        while not ending.done() and time.monotonic() - started < options.minutes * 60:
            _progress(tally, len(lives), time.monotonic() - started)
            pause = ON_TERMINAL if sys.stderr.isatty() else ELSEWHERE
            rest = options.minutes * 60 - (time.monotonic() - started)
            await asyncio.wait({ending}, timeout=min(pause, max(0.0, rest)))
            for life in lives:
                if life.done():
                    life.result()
    finally:
        for task in (ending, *lives):
            task.cancel()
        await asyncio.gather(ending, *lives, return_exceptions=True)
        _progress(tally, 0, time.monotonic() - started)
        print(file=sys.stderr)


def _phone(number: int, *, random: Random, tally: Tally) -> Phone:
    # Both phones of an account have the same app.
    app = APPS[number // PER_ACCOUNT % len(APPS)]
    habits, model = KINDS[number % len(KINDS)], MODELS[number * 3 % len(MODELS)]
    return Phone(f"demo-{app.name.replace(' ', '-')}-{number + 1}", app, habits, model, random=random, tally=tally)


def _progress(tally: Tally, phones: int, seconds: float) -> None:
    counts = tally.counts
    on_line = f"{tally.signed_in - tally.offline} of {phones} phones on line, " if phones else ""
    text = (
        f"{int(seconds) // 60}:{int(seconds) % 60:02}  {on_line}"
        f"{counts['syncs']:,} syncs, {counts['stored']:,} stored, "
        f"{counts['conflicts']:,} conflicts, {counts['rejected'] + counts['refused']:,} refused, "
        f"{counts['uploads']:,} films ({tally.uploading} on their way, {counts['given_up']:,} given up)"
    )
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def _left_to_people(calls: Calls, admin: str) -> AsyncIterator[None]:
    """Conflicts of field work wait for people for as long as the block runs, if there is somebody who may say so."""
    if not admin:
        yield
        return
    password = os.environ.get("SATCHEL_PASSWORD", "")
    await calls.sign_in(admin, password or await asyncio.to_thread(getpass, f"Password of {admin}: "))
    place = f"/api/v1/sync/policies/{TENANT}/{WORK_ORDERS}"
    before = (await calls.call("GET", place)).json()
    manual = {"resolution_policy": "manual", "auto_resolve": False, "notify_on_conflict": True}
    await calls.call("PUT", place, json=manual)
    try:
        yield
    finally:
        names = ("resolution_policy", "auto_resolve", "notify_on_conflict")
        await calls.call("PUT", place, json={name: before[name] for name in names})
        await calls.sign_out()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.demo",
        description="Simulated phones of different apps: some offline, some with wrong clocks, some broken.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    url = f"http://localhost:{os.environ.get('SATCHEL_PORT') or 8080}"
    parser.add_argument("--url", default=url, help="the server (%(default)s)")
    parser.add_argument("--phones", type=_phones, default=24, help=f"how many, up to {MAX_PHONES} (%(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for how long (until Ctrl-C)")
    parser.add_argument("--seed", type=int, default=1, help="of their whims (%(default)s)")
    parser.add_argument("--admin", default="", metavar="EMAIL", help="who may leave conflicts to people")
    parser.add_argument("--domain", default="demo.example.com", help="of their addresses (%(default)s)")
    return parser


def _phones(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_PHONES:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_PHONES}")
    return number


if __name__ == "__main__":
    sys.exit(main())
