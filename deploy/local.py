"""The embedded stack in the foreground, as `make run` starts it: all up, kept up, and stopped together."""

import asyncio
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from deploy import leftovers
from deploy.edge import reaches_all
from deploy.metrics import gathered, served
from deploy.parts import Child, PartFailed, completed
from deploy.settings import Refused, Settings, from_environment
from deploy.sockets import check_free, http_get
from deploy.stack import MAIL_TO_LOG, Stack
from deploy.supervisor import Supervisor

READY_WITHIN = 60.0  # seconds until /healthz has to answer 200
WANTED_FILES = 65536  # open files: a phone's stream takes one at the edge, and some systems start at 256


def main() -> int:
    try:
        settings = from_environment(os.environ)
        with _alone(settings.home):
            _check_port(settings.bind, settings.port, "SATCHEL_PORT")
            if settings.metrics_port:
                _check_port("127.0.0.1", settings.metrics_port, "SATCHEL_METRICS_PORT")
            return asyncio.run(_run(settings))
    except (Refused, PartFailed) as reason:
        say(f"Satchel did not start: {reason}")
        return 1


def say(text: str) -> None:
    """Prints a line; a terminal that was closed must not keep us from stopping what we started."""
    with suppress(OSError):
        print(text, flush=True)


async def _run(settings: Settings) -> int:
    supervisor = Supervisor(say=say)
    stop_asked = asyncio.Event()
    ctrl_c = 0

    def on_signal(number: signal.Signals) -> None:
        nonlocal ctrl_c
        # Only Ctrl-C counts twice: make passes a SIGTERM on that its whole group may have got already.
        ctrl_c += number == signal.SIGINT
        if ctrl_c > 1:
            supervisor.kill()
        if not stop_asked.is_set():
            say("\nStopping (Ctrl-C again to kill)" if number == signal.SIGINT else "Stopping")
            stop_asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup a hang-up is ignored, and stays so.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)

    pages = AsyncExitStack()
    starting = asyncio.create_task(_bring_up(settings, supervisor, pages))
    stopping = asyncio.create_task(stop_asked.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await pages.aclose()
        await supervisor.stop()
    say("Stopped")
    return 0


async def _bring_up(settings: Settings, supervisor: Supervisor, pages: AsyncExitStack) -> None:
    stack = Stack.build(settings)
    for name in await asyncio.to_thread(leftovers.end_noted, stack.run):
        say(f"Ended {name}, which a killed run had left behind")
    say(f"Starting Satchel (data and logs in {_short(settings.home)})")
    await supervisor.start(*stack.storage(), until_ready=True)
    await completed(stack.migration())
    for tier in stack.services():
        await supervisor.start(*tier)
    await supervisor.start(stack.edge())
    await _until_healthy(settings, stack, supervisor)
    page = partial(gathered, supervisor.children, stack.admin)
    metrics = await pages.enter_async_context(served(page, settings.metrics_port))
    # From when this process was made, so that the interpreter's own start counts.
    _greet(settings, stack, supervisor, metrics, time.time() - psutil.Process().create_time())


async def _until_healthy(settings: Settings, stack: Stack, supervisor: Supervisor) -> None:
    """Returns when the mesh says that it is well, and the edge has found so too: a first call must not be refused."""
    deadline = time.monotonic() + READY_WITHIN
    answer = (0, "")
    while time.monotonic() < deadline:
        if supervisor.refusals:
            raise PartFailed("\n".join(supervisor.refusals))
        answer = await http_get((settings.probe_host, settings.port), "/healthz")
        # Each process by itself too: the mesh's answer comes from any of those that share an address.
        if answer[0] == 200 and await reaches_all(stack.admin) and await _all_answer(supervisor):
            return
        await asyncio.sleep(0.05)
    silent = [child for child in supervisor.children if not await _answers(child)]
    lines = [f"not healthy after {READY_WITHIN:g} s"]
    for child in silent:
        state = "does not answer" if child.running else "keeps ending"
        lines += [f"  {child.part.name} {state}; see {_short(child.part.log)}"]
        lines += [f"    {line}" for line in child.last_lines()]
    if answer[0]:
        lines += [f"  GET /healthz answers {answer[0]}: {answer[1].strip()}"]
    raise PartFailed("\n".join(lines))


async def _all_answer(supervisor: Supervisor) -> bool:
    return all(await asyncio.gather(*map(_answers, supervisor.children)))


async def _answers(child: Child) -> bool:
    """Whether a part runs and, if it has an address, takes a connection there."""
    if not child.running or not await child.part.ready():
        return False
    host, _, port = child.part.url.rpartition(":")
    if host != "127.0.0.1":
        return True
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return True
    return False


def _greet(settings: Settings, stack: Stack, supervisor: Supervisor, metrics: str, seconds: float) -> None:
    rows = [
        (
            *(child.part.name, f"pid {child.pid}", _place(child.part.url)),
            f"metrics {child.part.metrics}" if child.part.metrics else "",
            _short(child.part.log),
        )
        for child in supervisor.children
    ]
    for name, url in (("postgres", settings.database_url), ("redis", settings.redis_url)):
        if url:
            rows.append((name, "external", _without_password(url), "", ""))
    if not stack.environment.get("SATCHEL_REDIS_URL"):
        rows.append(("redis", "none", "no redis-server or valkey-server on PATH: running without", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    url = settings.public_url
    body = '{"email":"ada@example.com","password":"correct horse battery"}'
    say(
        f"\nReady in {seconds:.1f} s\n\n"
        f"  REST, gRPC, gRPC-Web  {url}\n"
        f"  WebSocket             {url.replace('http', 'ws', 1)}/ws/mobile/sync/?device_id=...\n"
        f"  Operator's page       {url}/ (SATCHEL_ADMIN_EMAIL says who signs in there)\n"
        f"  The API, to be tried  {url}/docs\n"
        f"  Health                {url}/healthz\n"
        f"  Metrics               {metrics}, and http://<metrics>/metrics and /readyz of each process\n\n"
        f"  curl -X POST {url}/v1/auth/signup -H 'content-type: application/json' -d '{body}'\n\n"
        f"{_mail(stack)}"
        "Ctrl-C stops everything"
    )


def _mail(stack: Stack) -> str:
    """Where to look for the mail that nobody gets."""
    if stack.environment["SATCHEL_SMTP_URL"] != MAIL_TO_LOG:
        return ""
    logs = stack.log("auth" if stack.settings.workers == 1 else "auth-*")
    return f"  Mail is not sent but logged: grep one_time_code {_short(logs)}\n\n"


def _place(url: str) -> str:
    """Where a part listens, for reading: the socket file of a database URL rather than the URL."""
    if url.startswith("postgresql:///"):
        return _short(Path(dict(pair.split("=", 1) for pair in urlsplit(url).query.split("&"))["host"]))
    if url.startswith("unix://"):
        return _short(Path(url.removeprefix("unix://")))
    return url


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _short(path: Path) -> str:
    """Relative to where the command was typed, if it is below that."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Holds `home` for this stack: two on the same data would end it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refused(f"SATCHEL_HOME {home} can't be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 32).decode().strip()
        os.close(lock)
        raise Refused(
            f"another stack (pid {owner}) uses {_short(home)}; stop it, or set SATCHEL_HOME and SATCHEL_PORT"
        ) from None
    try:
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def _check_port(host: str, port: int, setting: str) -> None:
    try:
        check_free(host, port)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Refused(f"port {port} on {host}: {reason}; set {setting}") from None


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    _raise_file_limit()
    sys.exit(main())
