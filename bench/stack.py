"""The product under measurement: the stack of `make run` as a child process on a home of its own."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.servers import LOOPBACK
from deploy.parts import Part, running
from deploy.postgres import postgres_part
from deploy.sockets import free_port, http_get

STOP_WITHIN = 30.0  # seconds

# A line of the launcher's list: name, pid, where it listens.
_CHILD = re.compile(r"^  (\S+) +pid (\d+) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Stack:
    pid: int
    """The launcher."""
    parts: Mapping[str, int]
    """Names of the launcher's parts and their pids; a service's processes are numbered when it has several."""
    addresses: Mapping[str, str]
    """host:port of each service, and of the edge."""
    database_url: str
    seconds_to_start: float
    """From the start of the launcher until it said Ready and /healthz answered 200."""

    def pids(self, service: str) -> list[int]:
        """Of the processes of a service."""
        return [pid for name, pid in self.parts.items() if name.partition("-")[0] == service]


@asynccontextmanager
async def stack(home: Path, *, workers: int, settings: Mapping[str, str] | None = None) -> AsyncIterator[Stack]:
    """The stack on `home`, with `workers` processes per service, for as long as the block runs.

    `settings` are variables of the environment, beside those that every measurement has.
    """
    port, log = free_port(), home.with_name("launcher.log")
    log.unlink(missing_ok=True)

    async def ready() -> bool:
        if "\nReady in " not in log.read_text():
            return False
        return (await http_get((LOOPBACK, port), "/healthz"))[0] == 200

    part = Part(
        name="satchel",
        command=[sys.executable, "-m", "deploy.local"],
        log=log,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("SATCHEL_")},
            "SATCHEL_HOME": str(home),
            "SATCHEL_PORT": str(port),
            "SATCHEL_RATE_LIMITS": "off",
            "WORKERS": str(workers),
            **(settings or {}),
        },
        ready=ready,
        grace=STOP_WITHIN,
    )
    started = time.monotonic()
    async with running(part) as child:
        seconds = time.monotonic() - started
        found = {name: (int(pid), place) for name, pid, place in _CHILD.findall(log.read_text())}
        yield Stack(
            pid=child.pid or 0,
            parts={name: pid for name, (pid, _) in found.items()},
            addresses={
                **{name.partition("-")[0]: place for name, (_, place) in found.items()},
                "envoy": f"{LOOPBACK}:{port}",
            },
            database_url=postgres_part(home / "postgres").url,
            seconds_to_start=seconds,
        )
