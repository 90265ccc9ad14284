"""Processes that outlived whoever started them: noted while they run, ended by the next start.

Where the kernel ends a child with its parent (Linux) there are few; elsewhere this is what ends them.
"""

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil


def note(path: Path, pid: int) -> None:
    """Notes a process with its time of birth: a pid alone may be somebody else's by the time it is read."""
    with suppress(psutil.NoSuchProcess):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{pid} {psutil.Process(pid).create_time()}\n")


def end_noted(directory: Path, grace: float = 5.0) -> list[str]:
    """Ends the noted processes that still run, after `grace` seconds by force, and returns their names."""
    files = sorted(directory.glob("*.pid"))
    found = {file.stem: process for file in files if (process := _noted(file))}
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _await_end(found.values(), grace)
    kill(found.values())
    for file in files:
        file.unlink(missing_ok=True)
    return list(found)


def kill(processes: Collection[psutil.Process]) -> None:
    """Returns when all of them are gone, or after 5 s for one that the kernel can't end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _await_end(processes, 5.0)


def alive(process: psutil.Process) -> bool:
    """Whether it still holds anything: a zombie doesn't, and in a container init may never come for it."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _await_end(processes: Collection[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _noted(file: Path) -> psutil.Process | None:
    with suppress(ValueError, psutil.NoSuchProcess):
        pid, born = file.read_text().split()
        process = psutil.Process(int(pid))
        if process.create_time() == float(born) and alive(process):
            return process
    return None
