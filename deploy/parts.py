"""One part of the stack: what it takes to run it (`Part`), and its process (`Child`)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from deploy import leftovers

ROOT = Path(__file__).resolve().parent.parent
TETHER = Path(__file__).with_name("tether.py")

LOG_LIMIT = 10 * 1024 * 1024  # bytes; a larger log is put aside when its part starts
POLL_INTERVAL = 0.02  # seconds between two looks at whether a part is ready


class PartFailed(Exception):
    """A part did not start; the message is for the person at the terminal."""


async def _nothing() -> None:
    return None


async def _at_once() -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    command: Sequence[str]
    log: Path
    # Where it listens, as people and clients write it; empty for a part that doesn't.
    url: str = ""
    # host:port of its /metrics and /readyz; empty for a part that has none.
    metrics: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path = ROOT
    # The account to run as; empty for ours.
    user: str = ""
    # Runs before every start.
    prepare: Callable[[], Awaitable[None]] = _nothing
    # Whether it answers yet.
    ready: Callable[[], Awaitable[bool]] = _at_once
    # Runs before it is told to stop.
    drain: Callable[[], Awaitable[None]] = _nothing
    # Ends what outlives its first process.
    sweep: Callable[[], None] = lambda: None
    stop_signal: signal.Signals = signal.SIGTERM
    # What it gets when we die without telling it.
    orphan_signal: signal.Signals = signal.SIGKILL
    # Seconds between the stop signal and SIGKILL.
    grace: float = 10.0
    # Where its pid is noted for the next start to find; None where nobody would look.
    pid_file: Path | None = None


class Child:
    """The process of a part. It can be started again after it ended, however it ended."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """None before the first start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process; it may not answer yet."""
        part = self.part
        await part.prepare()
        with _open_log(part.log) as log:
            self._log_start = log.tell()
            spawning = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(TETHER)),
                    *(str(int(part.orphan_signal)), str(os.getpid()), part.user),
                    *part.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(part.env),
                    cwd=part.cwd,
                    # A session of its own: Ctrl-C at the terminal is for us, and we stop the parts in order.
                    start_new_session=True,
                )
            )
            try:
                self._process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # The process may exist by now; whoever cancelled us stops what we hold.
                self._process = await spawning
                raise
        if part.pid_file:
            leftovers.note(part.pid_file, self._process.pid)

    async def until_ready(self, deadline: float = 30.0) -> None:
        """Returns when the part answers. Raises PartFailed when it ends first or takes `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                while not await self.part.ready():
                    if not self.running:
                        raise PartFailed(self.obituary(await self.wait()))
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            raise PartFailed(
                "\n".join([f"{self.part.name} did not answer in {deadline:g} s", *self.last_lines()])
            ) from None

    async def wait(self) -> int:
        """The exit code; the negative number of the signal that ended it."""
        if self._process is None:
            return 0
        code = await self._process.wait()
        # Its group may outlive it: a worker of a worker, a shell's child.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self.part.pid_file:
            self.part.pid_file.unlink(missing_ok=True)
        return code

    async def stop(self) -> None:
        """Asks, waits up to the part's grace, then kills. Returns when nothing of the part runs."""
        if self.running:
            with suppress(OSError, TimeoutError):
                await self.part.drain()
            self._signal(self.part.stop_signal)
            try:
                await asyncio.wait_for(self.wait(), self.part.grace)
            except TimeoutError:
                self.kill()
        await self.wait()
        self.part.sweep()

    def kill(self) -> None:
        """SIGKILL, now; `wait` then collects it."""
        self._signal(signal.SIGKILL)

    async def restart(self) -> None:
        """Stops it if it runs, and returns when it answers again."""
        await self.stop()
        await self.start()
        await self.until_ready()

    def last_lines(self, count: int = 12) -> list[str]:
        """The end of what it wrote since its last start."""
        with suppress(OSError), self.part.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").splitlines()[-count:]
        return []

    def obituary(self, code: int) -> str:
        """How it ended and the last it said, for a terminal."""
        lines = [f"{self.part.name} (pid {self.pid}) {ending(code)}"]
        return "\n".join(lines + [f"    {line}" for line in self.last_lines()])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[Child]:
    """The part, answering, for as long as the block runs. Nothing restarts it but the block."""
    child = Child(part)
    try:
        await child.start()
        await child.until_ready()
        yield child
    finally:
        await child.stop()


async def completed(part: Part) -> None:
    """Runs a part that ends by itself. Raises PartFailed when it fails."""
    child = Child(part)
    try:
        await child.start()
        code = await child.wait()
    finally:
        await child.stop()
    if code != 0:
        raise PartFailed(child.obituary(code))


def ending(code: int) -> str:
    return f"exited with signal {-code}" if code < 0 else f"exited with code {code}"


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")
