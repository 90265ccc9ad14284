"""What `make run` ends in, as a person at a terminal sees it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

from deploy.parts import ROOT
from deploy.sockets import free_port
from runtime.config import SERVICES
from tests.polling import until

PATIENCE = 60.0


class Terminal:
    """The launcher and what it has printed."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url
        self.printed = ""

    async def read_until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(pattern, self.printed)):
                data = await self.process.stdout.read(4096)
                assert data, f"it ended without {pattern!r}:\n{self.printed}"
                self.printed += data.decode()
        return found

    async def pid_of(self, part: str) -> int:
        return int((await self.read_until(rf"(?m)^ +{part} +pid (\d+)"))[1])


@asynccontextmanager
async def launched(home: Path, **environment: str) -> AsyncIterator[Terminal]:
    port = free_port()
    settings = {"SATCHEL_HOME": str(home), "SATCHEL_PORT": str(port), **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SATCHEL_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local"), stdout=PIPE, stderr=STDOUT, cwd=ROOT, env={**inherited, **settings}
    )
    try:
        yield Terminal(process, f"http://127.0.0.1:{port}")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def is_well(http: httpx.AsyncClient) -> bool:
    return (await http.get("/healthz")).json()["status"] in ("ok", "degraded")


def left_behind(home: Path) -> list[str]:
    """Processes that still have anything to do with the home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SATCHEL_HOME") == str(home) or str(home) in " ".join(process.cmdline()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture
def home() -> AsyncIterator[Path]:
    with TemporaryDirectory(prefix="satchel-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
async def terminal() -> AsyncIterator[Terminal]:
    """A stack for tests that leave it as it is."""
    with TemporaryDirectory(prefix="satchel-") as made:
        async with launched(Path(made)) as started:
            await started.read_until("Ctrl-C stops everything")
            yield started


async def test_the_stack_starts_mends_itself_and_leaves_nothing(home: Path) -> None:
    async with launched(home) as terminal, httpx.AsyncClient(base_url=terminal.url) as http:
        await terminal.read_until(r"Ready in \d+\.\d s")
        account = {"email": "ada@example.com", "password": "correct horse battery"}
        assert (await http.post("/v1/auth/signup", json=account)).status_code == 201
        for part in ("sessions", "postgres"):
            os.kill(await terminal.pid_of(part), signal.SIGKILL)
            await terminal.read_until(rf"{part} \(pid \d+\) exited with signal 9; restarting in")
        deadline = time.monotonic() + PATIENCE
        while (await http.get("/healthz")).status_code != 200:
            assert time.monotonic() < deadline, terminal.printed
            await asyncio.sleep(0.05)
        while (await http.post("/v1/auth/signin", json=account)).status_code != 200:
            assert time.monotonic() < deadline, terminal.printed
            await asyncio.sleep(0.05)
        terminal.process.send_signal(signal.SIGINT)
        await terminal.read_until("Stopped")
        assert await terminal.process.wait() == 0
    assert left_behind(home) == []


async def test_a_code_that_would_be_mailed_is_found_where_the_terminal_says(terminal: Terminal) -> None:
    async with httpx.AsyncClient(base_url=terminal.url) as http:
        log = Path((await terminal.read_until(r"grep one_time_code (\S+)\n"))[1])
        account = {"email": "ada@example.com", "password": "correct horse battery"}
        assert (await http.post("/v1/auth/signup", json=account)).status_code == 201
        assert (await http.post("/auth/password/request-reset", json={"email": account["email"]})).status_code == 200

        async def found() -> bool:
            return "one_time_code" in log.read_text()

        await until(found)
        (line,) = [json.loads(line) for line in log.read_text().splitlines() if "one_time_code" in line]
        reset = {"email": account["email"], "code": line["one_time_code"], "new_password": "another horse 77"}
        assert (await http.post("/auth/password/reset", json=reset)).status_code == 200


async def test_metrics_are_where_the_terminal_says(terminal: Terminal) -> None:
    async with httpx.AsyncClient() as http:
        places = dict(re.findall(r"(?m)^ +(\S+) +pid .* metrics (\S+:\d+)", terminal.printed))
        assert places.keys() == set(SERVICES)
        for place in places.values():
            assert (await http.get(f"http://{place}/readyz")).status_code == 200
            assert "rpc_server_active_requests" in (await http.get(f"http://{place}/metrics")).text


async def test_a_domain_that_is_none_ends_the_start_with_one_sentence(home: Path) -> None:
    domains = home / "domains"
    domains.mkdir()
    (domains / "plant.json").write_text("{")
    async with launched(home / "data", SATCHEL_DOMAINS=str(domains)) as terminal:
        await terminal.read_until(r"Satchel did not start: sessions: .*plant\.json: .+\n")
        assert await terminal.process.wait() == 1
        assert "restarting" not in terminal.printed
        assert "Traceback" not in terminal.printed
    assert left_behind(home) == []


async def test_several_replicas_of_each_service_start_and_stop(home: Path) -> None:
    async with launched(home, WORKERS="2") as terminal, httpx.AsyncClient(base_url=terminal.url) as http:
        await terminal.read_until(r"Ready in \d+\.\d s")
        assert await terminal.pid_of("sessions-1") != await terminal.pid_of("sessions-2")
        # A part that is slow to answer a probe on a busy machine is down for that moment.
        await until(partial(is_well, http))
        terminal.process.terminate()
        await terminal.read_until("Stopped")
    assert left_behind(home) == []


@pytest.mark.parametrize("module", ["services", "services.auth", "services.migrate"])
async def test_a_service_without_a_database_says_what_to_set(module: str, home: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdout=PIPE,
        stderr=STDOUT,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SATCHEL_HOME": str(home)},
    )
    printed, _ = await process.communicate()
    assert process.returncode == os.EX_CONFIG
    assert "SATCHEL_DATABASE_URL" in printed.decode()
    assert "Traceback" not in printed.decode()
