"""The embedded stack's parts, for real: PostgreSQL, Redis, and the supervisor over small processes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import psutil
import psycopg
import pytest

from deploy import leftovers
from deploy.parts import Part, PartFailed, completed, running
from deploy.postgres import postgres, postgres_part
from deploy.redis import redis, redis_part, redis_server
from deploy.sockets import LONGEST_SOCKET_PATH, free_port, free_ports, redis_ping, socket_directory
from deploy.supervisor import Backoff, Supervisor

needs_redis = pytest.mark.skipif(redis_server() is None, reason="this machine has no Redis server")

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"

# A launcher that starts a part and waits, as the real one does.
LAUNCHER = """
import asyncio, sys
from pathlib import Path
from deploy.parts import Part
from deploy.supervisor import Supervisor

async def main():
    supervisor = Supervisor(say=print)
    directory = Path(sys.argv[1])
    await supervisor.start(Part(
        name="sleeper", command=[sys.executable, "-c", sys.argv[2]], log=directory / "sleeper.log",
        pid_file=directory / "sleeper.pid",
    ))
    print(supervisor.children[0].pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e")


async def eventually(check: Callable[[], Awaitable[bool] | bool], within: float = 20.0) -> None:
    deadline = monotonic() + within
    while True:
        found = check()
        if found if isinstance(found, bool) else await found:
            return
        assert monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.02)


async def answer(url: str, query: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return row[0]


def python(code: str, directory: Path, name: str = "child") -> Part:
    return Part(name=name, command=[sys.executable, "-c", code], log=directory / f"{name}.log")


async def test_postgres_starts_on_a_socket_file_and_is_durable(
    short_path: Path,
) -> None:
    async with postgres(short_path) as url:
        assert await answer(url, "SELECT current_database()") == "satchel"
        assert str(await answer(url, "SHOW server_version")).startswith("18")
        assert await answer(url, "SHOW fsync") == "on"
        assert await answer(url, "SHOW listen_addresses") == ""


async def test_postgres_keeps_its_data_through_kill_9_and_a_restart(short_path: Path) -> None:
    async with running(postgres_part(short_path)) as server:
        url = server.part.url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute("CREATE TABLE kept (id int)")
            await connection.execute("INSERT INTO kept VALUES (7)")
            # A busy backend outlives its server, and would keep a new one from starting.
            busy = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
            backend = connection.info.backend_pid
            await asyncio.sleep(0)
            server.kill()
            assert await server.wait() == -signal.SIGKILL
            await server.start()
            await server.until_ready()
            await eventually(lambda: gone(backend))
            with pytest.raises(psycopg.OperationalError):
                await busy
        assert await answer(url, "SELECT id FROM kept") == 7


async def test_postgres_starts_beside_a_stale_pid_file(short_path: Path) -> None:
    async with postgres(short_path):
        pass
    # The pid of a live process, as after a reboot that gave it to somebody else.
    (short_path / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{short_path / 'data'}\n")
    async with postgres(short_path) as url:
        assert await answer(url, "SELECT 1") == 1


async def test_an_interrupted_first_start_leaves_nothing_in_the_way(short_path: Path) -> None:
    half = short_path / "data.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    async with postgres(short_path) as url:
        assert await answer(url, "SELECT 1") == 1


async def test_postgres_works_in_a_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20) / "er"
    async with postgres(deep) as url:
        assert await answer(url, "SELECT 1") == 1
        assert str(deep) not in url


@needs_redis
async def test_redis_starts_on_a_socket_file_and_comes_back_after_kill_9(short_path: Path) -> None:
    part = redis_part(short_path)
    assert part is not None
    async with running(part) as server:
        path = Path(part.url.removeprefix("unix://"))
        server.kill()
        await server.wait()
        assert not await redis_ping(path)
        await server.start()
        await server.until_ready()
        assert await redis_ping(path)


async def test_no_redis_server_means_no_url(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.redis.redis_server", lambda: None)
    async with redis(short_path) as url:
        assert url is None


def test_free_ports_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in (*ports, free_port()):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_a_socket_directory_always_fits(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / ("x" * 100)):
        assert len(str(socket_directory(directory, "some.sock") / "some.sock")) <= LONGEST_SOCKET_PATH


def test_the_back_off_doubles_up_to_its_limit_and_forgets_after_a_long_run() -> None:
    backoff = Backoff(first=0.2, longest=1.0, healthy_after=30)
    assert [backoff.after(0.1) for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.after(31) == 0.2


async def test_a_killed_part_is_restarted_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(say=said.append, backoff=lambda: Backoff(first=0.01))
    await supervisor.start(python(SLEEPER, tmp_path))
    try:
        [child] = supervisor.children
        first = child.pid
        await eventually(lambda: "up" in child.last_lines())
        child.kill()
        await eventually(lambda: child.running and child.pid != first)
        await eventually(lambda: len(said) == 2)
        assert said[0].startswith(f"child (pid {first}) exited with signal 9; restarting in 0.01 s")
        assert said[1] == f"child is running again (pid {child.pid})"
    finally:
        await supervisor.stop()
    assert not child.running


async def test_a_part_that_keeps_dying_waits_longer_and_shows_its_last_words(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    supervisor = Supervisor(say=said.append, backoff=lambda: Backoff(first=0.01))
    await supervisor.start(python("print('no such key'); raise SystemExit(3)", tmp_path))
    try:
        await eventually(lambda: sum("restarting" in line for line in said) >= 3)
    finally:
        await supervisor.stop()
    deaths = [line for line in said if "restarting" in line]
    delays = [death.splitlines()[0].rpartition(" in ")[2] for death in deaths[:3]]
    assert delays == ["0.01 s", "0.02 s", "0.04 s"]
    assert "exited with code 3" in deaths[0]
    assert deaths[0].splitlines()[1:] == ["    no such key"]


async def test_parts_stop_last_started_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = """
import signal, sys
def stop(*_):
    open({order!r}, "a").write({name!r} + "\\n"); sys.exit()
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
signal.pause()
"""
    supervisor = Supervisor(say=print)
    for name in ("storage", "service", "edge"):
        await supervisor.start(python(code.format(order=str(order), name=name), tmp_path, name))
    for child in supervisor.children:
        await eventually(lambda child=child: child.last_lines() == ["up"])  # type: ignore[misc]
    await supervisor.stop()
    assert order.read_text().split() == ["edge", "service", "storage"]


async def test_a_part_that_ignores_sigterm_is_killed_with_its_own_children(
    tmp_path: Path,
) -> None:
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], stdout=subprocess.DEVNULL).pid, flush=True)
signal.pause()
"""
    part = Part(name="deaf", command=[sys.executable, "-c", code], log=tmp_path / "deaf.log", grace=0.1)
    async with running(part) as child:
        await eventually(lambda: bool(child.last_lines()))
        grandchild = int(child.last_lines()[0])
    assert not child.running
    await eventually(lambda: gone(grandchild))


async def test_a_launcher_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), SLEEPER], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    with launcher.stdout as output:
        pid = int(await asyncio.to_thread(output.readline))
    assert not gone(pid)
    launcher.kill()
    await asyncio.to_thread(launcher.wait)
    if sys.platform != "linux":  # elsewhere the next start does it
        assert leftovers.end_noted(tmp_path) == ["sleeper"]
    await eventually(lambda: gone(pid))


async def test_the_next_start_ends_what_a_killed_launcher_left(tmp_path: Path) -> None:
    left = await asyncio.create_subprocess_exec(sys.executable, "-c", SLEEPER, stdout=asyncio.subprocess.DEVNULL)
    leftovers.note(tmp_path / "left.pid", left.pid)
    (tmp_path / "reused.pid").write_text(f"{os.getpid()} 1.0\n")  # born at another time: not the one that was noted
    assert await asyncio.to_thread(leftovers.end_noted, tmp_path) == ["left"]
    await left.wait()
    assert gone(left.pid)
    assert list(tmp_path.glob("*.pid")) == []


async def test_a_part_that_fails_to_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match=r"(?s)child .*exited with code 4.*out of luck"):
        await completed(python("print('out of luck'); raise SystemExit(4)", tmp_path))


async def test_a_log_that_grew_large_is_put_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.parts.LOG_LIMIT", 3)
    for _ in range(2):
        await completed(python("print('hello')", tmp_path))
    assert (tmp_path / "child.log").read_text() == "hello\n"
    assert (tmp_path / "child.log.1").read_text() == "hello\n"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or not leftovers.alive(psutil.Process(pid))
